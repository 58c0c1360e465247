/**
 * A tenant's counters and open reservations: in memory, written once a second while they change, so an object that is
 * moved or killed forgets at most its last second: what was admitted in it may be admitted once more, and its
 * generations hold no slot. Meters of idle keys are read only when they are used again.
 *
 * A reservation whose gateway fell silent (no settle, no renewal) is an orphan after `patience_ms`: the alarm asks the
 * backend what the generation used, stops it and settles. Settling twice does nothing.
 */
import type { TokenUsage } from '../../src/protocol.ts'
import {
  admit,
  begin,
  grantLease,
  Meter,
  milliTokens,
  returnLease,
  settle,
  type Ask,
  type Lease,
  type MeterState,
  type Reservation,
  type Scope,
} from './limits.ts'
import { abandonTokens, claim, grantTokens, returnTokens, type TokenLease } from './token-lease.ts'
import type { LeaseGrant, Taken, Use } from './tenant-record.ts'

const patience_ms = 30_000
/** A lease is known for so long after its time: longer than isolates tell again what they got no answer to. */
const lease_kept_ms = 15_000
const settled_kept_ms = 600_000
/** Of the generations that their gateways ended themselves, so many are remembered: a second end comes soon or never. */
const ended_kept_max = 10_000

interface Open {
  use: Use
  reservation: Reservation
  prompt_tokens: number
  deadline_ms: number
}

export class Ledger {
  readonly #storage: DurableObjectStorage
  readonly #meters = new Map<string, Meter>()
  readonly #changed = new Set<string>()
  readonly #open = new Map<string, Open>()
  /** Reservations that storage has; most end before they are ever written. */
  readonly #saved = new Set<string>()
  /** Reservations made and ended since the last write. */
  readonly #unsaved = new Set<string>()
  readonly #leases = new Map<string, Lease>()
  readonly #tokenLeases = new Map<string, TokenLease>()
  /** Orphans that the alarm settled: when. */
  readonly #settled = new Map<string, number>()
  readonly #ended = new Set<string>()
  #leaseCount = 0

  constructor(storage: DurableObjectStorage) {
    this.#storage = storage
    for (const [name, open] of storage.kv.list<Open>({ prefix: 'open:' })) {
      const id = name.slice('open:'.length)
      this.#open.set(id, open)
      this.#saved.add(id)
      for (const { id } of open.reservation.held) this.meter(id).running++
    }
  }

  get changed(): boolean {
    return this.#changed.size > 0 || this.#unsaved.size > 0
  }

  readonly meter = (id: string): Meter => {
    let meter = this.#meters.get(id)
    if (meter === undefined) {
      meter = new Meter(this.#storage.kv.get<MeterState>(`meter:${id}`))
      this.#meters.set(id, meter)
    }
    return meter
  }

  touch(scopes: { id: string }[]): void {
    for (const { id } of scopes) this.#changed.add(id)
  }

  admit(requestId: string, use: Use, scopes: Scope[], ask: Ask, now_ms: number) {
    const result = admit(scopes, ask, now_ms)
    if (result.kind !== 'admitted') return result
    const { reservation } = result
    this.#keepOpen(requestId, use, reservation, ask.prompt_tokens, now_ms)
    return result
  }

  /** A generation that began without asking; `taken`: out of a lease. One whose end was told first does not begin again. */
  begin(
    requestId: string,
    use: Use,
    scopes: Scope[],
    prompt_tokens: number,
    now_ms: number,
    taken?: Taken,
  ): void {
    const lease = taken === undefined ? undefined : this.#tokenLeases.get(taken.lease)
    const reservation =
      taken === undefined || lease === undefined
        ? begin(scopes, now_ms)
        : claim(lease, taken.tokens * 1000, this.meter, now_ms)
    if (this.#isOver(requestId)) settle(reservation, null, 0, this.meter, now_ms)
    else this.#keepOpen(requestId, use, reservation, prompt_tokens, now_ms)
  }

  #isOver = (requestId: string) => this.#settled.has(requestId) || this.#ended.has(requestId)

  /** One of the same id that is still open ends here: nobody else would end it. */
  #keepOpen(
    requestId: string,
    use: Use,
    reservation: Reservation,
    prompt_tokens: number,
    now_ms: number,
  ): void {
    const before = this.#open.get(requestId)
    if (before !== undefined) settle(before.reservation, null, 0, this.meter, now_ms)
    this.#ended.delete(requestId)
    this.#open.set(requestId, { use, reservation, prompt_tokens, deadline_ms: now_ms + patience_ms })
    this.#unsaved.add(requestId)
    this.touch(reservation.held)
  }

  /** Whether there was something to end: false for what was settled before, by the alarm or by its gateway. */
  settle(
    requestId: string,
    scopes: Scope[],
    usage: TokenUsage | null,
    weight: number,
    now_ms: number,
  ): boolean {
    const open = this.#open.get(requestId)
    if (open === undefined) {
      if (this.#isOver(requestId)) return false
      this.#remembered(requestId)
      // It ended before it was told of, or this object restarted and has forgotten it: what was used still counts.
      if (usage !== null) for (const { meter } of scopes) meter.charge(milliTokens(usage, weight))
      this.touch(scopes)
      return true
    }
    this.#open.delete(requestId)
    this.#remembered(requestId)
    this.#unsaved.add(requestId)
    settle(open.reservation, usage, weight, this.meter, now_ms)
    this.touch(open.reservation.held)
    return true
  }

  #remembered(requestId: string): void {
    this.#ended.add(requestId)
    for (const oldest of this.#ended) {
      if (this.#ended.size <= ended_kept_max) break
      this.#ended.delete(oldest)
    }
  }

  renew(requestIds: string[], now_ms: number): void {
    for (const id of requestIds) {
      const open = this.#open.get(id)
      if (open === undefined) continue
      open.deadline_ms = now_ms + patience_ms
      this.#unsaved.add(id)
    }
  }

  /** Some of what is under way. */
  open(most: number): [requestId: string, open: Open][] {
    return [...this.#open].slice(0, most)
  }

  openIds(): string[] {
    return [...this.#open.keys()]
  }

  orphans(now_ms: number): [requestId: string, open: Open][] {
    return [...this.#open].filter(([, { deadline_ms }]) => deadline_ms <= now_ms)
  }

  /** From now on a late settle by the gateway itself does nothing. */
  remember(requestId: string, now_ms: number): void {
    for (const [id, at] of this.#settled) if (at < now_ms - settled_kept_ms) this.#settled.delete(id)
    this.#settled.set(requestId, now_ms)
  }

  nextDeadline(): number | null {
    return this.#open.size === 0
      ? null
      : Math.min(...[...this.#open.values()].map((open) => open.deadline_ms))
  }

  lease(scopes: Scope[], wanted: number, now_ms: number): LeaseGrant | null {
    const lease = wanted > 0 ? grantLease(scopes, wanted, now_ms) : null
    if (lease === null) return null
    const id = `${now_ms}-${++this.#leaseCount}`
    this.#leases.set(id, lease)
    this.touch(scopes)
    return { id, units: lease.units }
  }

  /** In whole tokens: `wanted`, or at least `least`. */
  leaseTokens(scopes: Scope[], wanted: number, least: number, now_ms: number): LeaseGrant | null {
    const lease = wanted >= least ? grantTokens(scopes, wanted * 1000, least * 1000, now_ms) : null
    if (lease === null) return null
    const id = `t${now_ms}-${++this.#leaseCount}`
    this.#tokenLeases.set(id, lease)
    this.touch(scopes)
    return { id, units: Math.floor(lease.units / 1000) }
  }

  returnLeases(returned: { id: string; used: number }[], now_ms: number): void {
    for (const { id, used } of returned) {
      const tokens = this.#tokenLeases.get(id)
      if (tokens !== undefined) {
        returnTokens(tokens, used * 1000, this.meter)
        this.touch(tokens.held)
      }
      const lease = this.#leases.get(id)
      if (lease === undefined) continue
      this.#leases.delete(id)
      returnLease(lease, used, this.meter)
      this.touch(lease.held)
    }
    // Whoever held these is gone; they count as used.
    for (const [id, { until_ms }] of this.#leases)
      if (until_ms < now_ms - lease_kept_ms) this.#leases.delete(id)
    for (const [id, lease] of this.#tokenLeases) {
      if (lease.until_ms >= now_ms - lease_kept_ms) continue
      this.#tokenLeases.delete(id)
      abandonTokens(lease, this.meter)
      this.touch(lease.held)
    }
  }

  flush(): void {
    const { kv } = this.#storage
    for (const id of this.#changed) kv.put(`meter:${id}`, this.meter(id).state())
    for (const id of this.#unsaved) {
      const open = this.#open.get(id)
      if (open !== undefined) {
        kv.put(`open:${id}`, open)
        this.#saved.add(id)
      } else if (this.#saved.delete(id)) kv.delete(`open:${id}`)
    }
    this.#changed.clear()
    this.#unsaved.clear()
  }
}
