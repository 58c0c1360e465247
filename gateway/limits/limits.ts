/**
 * The arithmetic of limits, pure: no clock, no storage.
 *
 * A request stands under up to three scopes at once: its tenant, its key, and its tenant's use of its model. Each scope
 * has a Meter. `countRequest` takes one request from all of them, `admit` reserves tokens and a slot in all of them,
 * or in none. A reservation is exact prompt tokens + max_tokens; `settle` gives back what was not used, to the slot of
 * the window, the day and the month it was taken from. Where the caller set no max_tokens, the answer is capped to
 * what the tightest limit still holds. Tokens are kept as integer milli-tokens, so that a weight for cached
 * tokens never drifts. Days and months are UTC's.
 *
 * A lease hands request units to an isolate ahead of use. It is debited when granted, and booked where its last
 * moment lies, so that a late use still counts for a whole window; all leases together hold a tenth of
 * a limit at most, and none is granted that would leave less than a tenth. Leases of tokens: token-lease.ts.
 */
import type { TokenUsage } from '../../src/protocol.ts'
import { SlidingWindow, type WindowState } from './sliding-window.ts'

/** null: unlimited. */
export interface Limits {
  requests_per_minute: number | null
  tokens_per_minute: number | null
  /** Generations at the same time. */
  concurrent: number | null
  tokens_per_day: number | null
  tokens_per_month: number | null
}
export type LimitName = keyof Limits

export const unlimited: Limits = {
  requests_per_minute: null,
  tokens_per_minute: null,
  concurrent: null,
  tokens_per_day: null,
  tokens_per_month: null,
}

export interface Scope {
  kind: 'tenant' | 'key' | 'model'
  id: string
  limits: Limits
  meter: Meter
}

export interface Denial {
  limit: LimitName
  scope: Scope['kind']
  value: number
  retry_after_ms: number
}

export interface Ask {
  prompt_tokens: number
  /** null: as many as fit, `room_tokens` at most. */
  max_tokens: number | null
  room_tokens: number
  /** An open answer is not capped below this. */
  least_tokens: number
}

export interface Reservation {
  milli: number
  day: number
  month: number
  /** Where each scope's window holds it. */
  held: { id: string; slot: number }[]
}

export type Admission =
  | { kind: 'admitted'; max_tokens: number; reservation: Reservation }
  | { kind: 'denied'; denial: Denial }
  /** No waiting would help: the request is larger than the whole limit. */
  | { kind: 'too_large'; denial: Denial }

export interface Lease extends OpenLease {
  held: { id: string; slot: number }[]
}

export interface MeterState {
  requests: WindowState
  tokens: WindowState
  day: Period
  month: Period
}

interface Period {
  index: number
  milli: number
}

const minute_ms = 60_000
const day_ms = 86_400_000
/** A slot is free as soon as some generation ends; nobody knows when. */
const concurrent_retry_ms = 1_000
export const lease_ms = 1_000
/** A worker's clock stands still while it computes: a lease may be used this much late. */
export const lease_late_ms = 200
export const lease_share = 10
const lease_units_max = 2_000

export interface OpenLease {
  /** Not yet known to be used. */
  units: number
  /** After this nobody uses it. */
  until_ms: number
}

/** Leases that may still be used. */
class Leases {
  #open: OpenLease[] = []

  sum(now_ms: number): number {
    this.#open = this.#open.filter(({ until_ms }) => until_ms > now_ms)
    return this.#open.reduce((sum, { units }) => sum + units, 0)
  }

  add(lease: OpenLease): void {
    this.#open.push(lease)
  }

  end(lease: OpenLease): void {
    this.#open = this.#open.filter((other) => other !== lease)
  }
}

export class Meter {
  readonly requests: SlidingWindow
  readonly tokens: SlidingWindow
  readonly day: Period
  readonly month: Period
  running = 0
  readonly requestLeases = new Leases()
  readonly tokenLeases = new Leases()

  constructor(state?: MeterState) {
    this.requests = new SlidingWindow(minute_ms, state?.requests)
    this.tokens = new SlidingWindow(minute_ms, state?.tokens)
    this.day = state?.day ?? { index: 0, milli: 0 }
    this.month = state?.month ?? { index: 0, milli: 0 }
  }

  advance(now_ms: number): void {
    this.requests.advance(now_ms)
    this.tokens.advance(now_ms)
    turn(this.day, dayOf(now_ms))
    turn(this.month, monthOf(now_ms))
  }

  take({ milli }: Reservation): number {
    this.running++
    return this.charge(milli)
  }

  /** Spends without asking. */
  charge(milli: number, ahead_ms = 0): number {
    this.day.milli += milli
    this.month.milli += milli
    return this.tokens.add(milli, ahead_ms)
  }

  giveBack(milli: number, slot: number, of: { day: number; month: number }): void {
    this.tokens.giveBack(slot, milli)
    this.giveBackBudgets(milli, of)
  }

  giveBackBudgets(milli: number, { day, month }: { day: number; month: number }): void {
    if (this.day.index === day) this.day.milli -= Math.min(milli, this.day.milli)
    if (this.month.index === month) this.month.milli -= Math.min(milli, this.month.milli)
  }

  leaseRequests(lease: OpenLease): number {
    this.requestLeases.add(lease)
    return this.requests.add(lease.units, lease_ms + lease_late_ms)
  }

  leaseTokens(lease: OpenLease): number {
    this.tokenLeases.add(lease)
    return this.charge(lease.units, lease_ms + lease_late_ms)
  }

  state(): MeterState {
    return { requests: this.requests.state(), tokens: this.tokens.state(), day: this.day, month: this.month }
  }
}

/** Nothing but requests a minute could refuse. */
export const isUnmetered = (scopes: Scope[]): boolean =>
  scopes.every(({ limits }) =>
    Object.values({ ...limits, requests_per_minute: null }).every((limit) => limit === null),
  )

/** Takes one request from every scope; null: done. */
export function countRequest(scopes: Scope[], now_ms: number): Denial | null {
  const denials: Denial[] = []
  for (const { kind, limits, meter } of scopes) {
    meter.advance(now_ms)
    const value = limits.requests_per_minute
    if (value === null) continue
    const retry_after_ms = meter.requests.wait(value, 1)
    if (retry_after_ms > 0) denials.push({ limit: 'requests_per_minute', scope: kind, value, retry_after_ms })
  }
  const denial = longest(denials)
  if (denial === null) for (const { meter } of scopes) meter.requests.add(1)
  return denial
}

/** Reserves in every scope or in none. */
export function admit(scopes: Scope[], ask: Ask, now_ms: number): Admission {
  const least_tokens = ask.prompt_tokens + (ask.max_tokens ?? ask.least_tokens)
  const denials: Denial[] = []
  const tooLarge: Denial[] = []
  let room_tokens = ask.prompt_tokens + (ask.max_tokens ?? ask.room_tokens)
  for (const scope of scopes) {
    scope.meter.advance(now_ms)
    const { kind, limits, meter } = scope
    if (limits.concurrent !== null && meter.running >= limits.concurrent) {
      const retry_after_ms = concurrent_retry_ms
      denials.push({ limit: 'concurrent', scope: kind, value: limits.concurrent, retry_after_ms })
    }
    for (const { limit, value, used, wait } of tokenLimits(scope, now_ms)) {
      const denial = { limit, scope: kind, value, retry_after_ms: 0 }
      if (least_tokens > value) tooLarge.push(denial)
      else if (used + least_tokens * 1000 > value * 1000)
        denials.push({ ...denial, retry_after_ms: wait(least_tokens * 1000) })
      else room_tokens = Math.min(room_tokens, Math.floor((value * 1000 - used) / 1000))
    }
  }
  if (tooLarge[0] !== undefined) return { kind: 'too_large', denial: tooLarge[0] }
  const denial = longest(denials)
  if (denial !== null) return { kind: 'denied', denial }

  const reservation: Reservation = {
    milli: room_tokens * 1000,
    day: dayOf(now_ms),
    month: monthOf(now_ms),
    held: [],
  }
  reservation.held = scopes.map(({ id, meter }) => ({ id, slot: meter.take(reservation) }))
  return { kind: 'admitted', max_tokens: room_tokens - ask.prompt_tokens, reservation }
}

/** Opens a reservation of nothing, for a generation that began without asking: what it used is charged when it ends. */
export function begin(scopes: Scope[], now_ms: number): Reservation {
  const reservation: Reservation = { milli: 0, day: dayOf(now_ms), month: monthOf(now_ms), held: [] }
  for (const { id, meter } of scopes) {
    meter.advance(now_ms)
    reservation.held.push({ id, slot: meter.take(reservation) })
  }
  return reservation
}

/** Ends a reservation: frees its slot and gives back all but what was used. null: nothing was. */
export function settle(
  reservation: Reservation,
  usage: TokenUsage | null,
  cached_token_weight: number,
  meterOf: (id: string) => Meter,
  now_ms: number,
): void {
  const used = usage === null ? 0 : milliTokens(usage, cached_token_weight)
  for (const { id, slot } of reservation.held) {
    const meter = meterOf(id)
    meter.advance(now_ms)
    meter.running = Math.max(0, meter.running - 1)
    if (used > reservation.milli) meter.charge(used - reservation.milli)
    else meter.giveBack(reservation.milli - used, slot, reservation)
  }
}

/** What a generation costs under the limits. */
export const milliTokens = (
  { prompt, cached, completion }: TokenUsage,
  cached_token_weight: number,
): number => (prompt - cached + completion) * 1000 + cached * Math.round(cached_token_weight * 1000)

/** Up to `wanted` request units ahead of use; null: every request has to ask. */
export function grantLease(scopes: Scope[], wanted: number, now_ms: number): Lease | null {
  let units = Math.min(wanted, lease_units_max)
  for (const { limits, meter } of scopes) {
    meter.advance(now_ms)
    const value = limits.requests_per_minute
    if (value === null) continue
    const share = Math.floor(value / lease_share)
    const spare = value - meter.requests.used - Math.ceil(value / lease_share)
    units = Math.min(units, share - meter.requestLeases.sum(now_ms), spare)
  }
  if (units < 1) return null
  const lease: Lease = { units, until_ms: now_ms + lease_ms + lease_late_ms, held: [] }
  lease.held = scopes.map(({ id, meter }) => ({ id, slot: meter.leaseRequests(lease) }))
  return lease
}

/** A lease comes back: what was not used can be used by others. */
export function returnLease(lease: Lease, used: number, meterOf: (id: string) => Meter): void {
  for (const { id, slot } of lease.held) {
    const meter = meterOf(id)
    meter.requests.giveBack(slot, lease.units - Math.min(used, lease.units))
    meter.requestLeases.end(lease)
  }
}

/** What the headers say: the scope that has least left. */
export interface Remaining {
  limit: number
  remaining: number
  reset_ms: number
}

export function remaining(scopes: Scope[], of: 'requests' | 'tokens'): Remaining | null {
  let tightest: Remaining | null = null
  for (const { limits, meter } of scopes) {
    const limit = of === 'requests' ? limits.requests_per_minute : limits.tokens_per_minute
    if (limit === null) continue
    const used = of === 'requests' ? meter.requests.used : Math.ceil(meter.tokens.used / 1000)
    const left = Math.max(0, limit - used)
    if (tightest === null || left < tightest.remaining)
      tightest = { limit, remaining: left, reset_ms: meter[of].reset_ms }
  }
  return tightest
}

export function* tokenLimits({ limits, meter }: Scope, now_ms: number) {
  const { tokens_per_minute, tokens_per_day, tokens_per_month } = limits
  if (tokens_per_minute !== null) {
    const wait = (milli: number) => meter.tokens.wait(tokens_per_minute * 1000, milli)
    yield { limit: 'tokens_per_minute' as const, value: tokens_per_minute, used: meter.tokens.used, wait }
  }
  if (tokens_per_day !== null) {
    const wait = () => (dayOf(now_ms) + 1) * day_ms - now_ms
    yield { limit: 'tokens_per_day' as const, value: tokens_per_day, used: meter.day.milli, wait }
  }
  if (tokens_per_month !== null) {
    const wait = () => startOfMonth(monthOf(now_ms) + 1) - now_ms
    yield { limit: 'tokens_per_month' as const, value: tokens_per_month, used: meter.month.milli, wait }
  }
}

/** Of all that refuse, the one that refuses longest: coming back earlier would be in vain. */
const longest = (denials: Denial[]): Denial | null =>
  denials.reduce<Denial | null>((a, b) => (a === null || b.retry_after_ms > a.retry_after_ms ? b : a), null)

function turn(period: Period, index: number): void {
  if (index <= period.index) return
  period.index = index
  period.milli = 0
}

export const dayOf = (now_ms: number): number => Math.floor(now_ms / day_ms)

/** Months since year 0. */
export function monthOf(now_ms: number): number {
  const date = new Date(now_ms)
  return date.getUTCFullYear() * 12 + date.getUTCMonth()
}

const startOfMonth = (index: number): number => Date.UTC(Math.floor(index / 12), index % 12)
