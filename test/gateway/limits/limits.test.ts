import { describe, expect, it } from 'vitest'
import {
  admit,
  countRequest,
  grantLease,
  Meter,
  remaining,
  returnLease,
  settle,
  unlimited,
  type Lease,
  type Limits,
  type Reservation,
  type Scope,
} from '../../../gateway/limits/limits.ts'
import {
  abandonTokens,
  claim,
  grantTokens,
  returnTokens,
  type TokenLease,
} from '../../../gateway/limits/token-lease.ts'

/** `OPERATIONS=1000000 npx vitest run --project node test/gateway/limits/limits.test.ts` is the long run. */
const operations = Number(process.env['OPERATIONS'] ?? 40_000)
declare const process: { env: Record<string, string | undefined> }
const noon = Date.UTC(2026, 0, 31, 12)

function scopesOf(limits: Partial<Limits>[]): Scope[] {
  const kinds = ['tenant', 'key', 'model'] as const
  return limits.map((given, i) => ({
    kind: kinds[i] ?? 'model',
    id: String(i),
    limits: { ...unlimited, ...given },
    meter: new Meter(),
  }))
}
const meterOf = (scopes: Scope[]) => (id: string) => scopes.find((scope) => scope.id === id)!.meter
const ask = (prompt_tokens: number, max_tokens: number | null) => ({
  prompt_tokens,
  max_tokens,
  room_tokens: 1000,
  least_tokens: 1,
})

/** `expect` in a loop of a million costs more than what it checks. */
function same(where: string, actual: unknown, wanted: unknown): void {
  if (actual !== wanted) throw new Error(`${where}: ${String(actual)}, the model says ${String(wanted)}`)
}

/** mulberry32: a failing run can be had again by its seed. */
function random(seed: number) {
  return (below: number): number => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * below)
  }
}

/** The same rules, said as lists of what happened and sums over all of it. */
class Naive {
  requests: { slot: number; units: number }[] = []
  tokens: { slot: number; day: string; month: string; milli: number; open: boolean; leased?: boolean }[] = []
  leases: { until: number; units: number }[] = []
  tokenLeases: { until: number; units: number }[] = []
  now = 0

  static slot = (ms: number) => Math.floor(ms / 100)
  counts = ({ slot }: { slot: number }) => slot >= Naive.slot(this.now) - 600
  requestsNow = () => this.requests.filter(this.counts).reduce((sum, { units }) => sum + units, 0)
  leased = (leases = this.leases) =>
    leases.filter(({ until }) => until > this.now).reduce((sum, { units }) => sum + units, 0)
  milli = (rows: { milli: number }[]) => rows.reduce((sum, { milli }) => sum + milli, 0)
  running = () => this.tokens.filter(({ open }) => open).length

  /** @param kept a tenth of each limit, where that much must stay */
  room(limits: Limits, kept = 0): number {
    const [day, month] = dates(this.now)
    const left = (limit: number | null, rows: { milli: number }[]) =>
      limit === null ? Infinity : limit * (1000 - kept) - this.milli(rows)
    return Math.min(
      left(limits.tokens_per_minute, this.tokens.filter(this.counts)),
      left(
        limits.tokens_per_day,
        this.tokens.filter((row) => row.day === day),
      ),
      left(
        limits.tokens_per_month,
        this.tokens.filter((row) => row.month === month),
      ),
    )
  }

  forget(): void {
    const [day, month] = dates(this.now)
    this.requests = this.requests.filter(this.counts)
    // One row stands for all that counts only towards the month or the day.
    const [kept, old] = [[] as typeof this.tokens, new Map<string, (typeof this.tokens)[number]>()]
    for (const row of this.tokens) {
      if (row.open || row.leased === true || this.counts(row)) kept.push(row)
      else if (row.month === month) {
        const key = row.day === day ? day : month
        const sum = old.get(key)
        if (sum) sum.milli += row.milli
        else old.set(key, row)
      }
    }
    this.tokens = [...old.values(), ...kept]
  }
}
const dates = (ms: number): [string, string] => {
  const iso = new Date(ms).toISOString()
  return [iso.slice(0, 10), iso.slice(0, 7)]
}

describe('limits', () => {
  it(`agree with a naive model over ${operations} random operations`, () => {
    for (let seed = 1; seed <= Math.ceil(operations / 10_000); seed++)
      expect(() => replay(seed, 10_000)).not.toThrow()
  }, 1_200_000)

  function replay(seed: number, steps: number): void {
    const below = random(seed)
    const maybe = (value: number) => (below(3) === 0 ? null : value)
    const hasSlots = below(2) === 0
    const scopes = scopesOf(
      [0, 1, 2].map(() => ({
        requests_per_minute: maybe(10 + below(90)),
        tokens_per_minute: maybe(500 + below(3000)),
        concurrent: hasSlots ? maybe(1 + below(6)) : null,
        tokens_per_day: maybe(5_000 + below(20_000)),
        tokens_per_month: maybe(30_000 + below(60_000)),
      })),
    )
    const naive = scopes.map(() => new Naive())
    const open: { reservation: Reservation; rows: Naive['tokens']; most: number; prompt: number }[] = []
    const leases: { lease: Lease; rows: Naive['requests']; held: Naive['leases'] }[] = []
    const tokenLeases: { lease: TokenLease; rows: Naive['tokens']; held: Naive['leases'] }[] = []
    const weight = [0.1, 0, 1, 0.333][below(4)] ?? 0.1
    let now = noon
    function tokenLease(kind: number, where: string): void {
      const at = below(Math.max(1, tokenLeases.length))
      const known = tokenLeases[at]
      if (kind < 2 || known === undefined) {
        const [wanted, least] = [1 + below(300), 1 + below(60)]
        const tenth = ({ tokens_per_minute, tokens_per_day, tokens_per_month }: Limits) =>
          100 * Math.min(...[tokens_per_minute, tokens_per_day, tokens_per_month].map((l) => l ?? Infinity))
        const most = (m: Naive, i: number) =>
          Math.min(tenth(scopes[i]!.limits) - m.leased(m.tokenLeases), m.room(scopes[i]!.limits, 100))
        const milli = Math.min(wanted * 1000, ...naive.map(most))
        const [day, month] = dates(now)
        const may = !hasSlots || scopes.every(({ limits }) => limits.concurrent === null)
        const granted = may && day === dates(now + 1200)[0] && milli >= least * 1000
        const lease = grantTokens(scopes, wanted * 1000, least * 1000, now)
        same(where, lease?.units ?? 0, granted ? milli : 0)
        if (lease === null) return
        const rows = naive.map(() => ({
          slot: Naive.slot(now + 1200),
          day,
          month,
          milli,
          open: false,
          leased: true,
        }))
        const held = naive.map(() => ({ until: now + 1200, units: milli }))
        for (const [i, m] of naive.entries()) {
          m.tokens.push(rows[i]!)
          m.tokenLeases.push(held[i]!)
        }
        tokenLeases.push({ lease, rows, held })
      } else if (kind === 2) {
        const reservation = claim(known.lease, 1000 * (1 + below(100)), meterOf(scopes), now)
        const { milli } = reservation
        const rows = naive.map((m, i) => {
          const row = { ...known.rows[i]!, milli, open: true, leased: false }
          known.rows[i]!.milli -= milli
          known.held[i]!.units -= milli
          m.tokens.push(row)
          return row
        })
        const prompt = below(Math.floor(milli / 1000) + 1)
        open.push({ reservation, rows, most: Math.floor(milli / 1000) - prompt, prompt })
      } else {
        tokenLeases.splice(at, 1)
        for (const row of known.rows) row.leased = false
        const { lease, rows, held } = known
        if (lease.until_ms < now && below(2) === 0) {
          abandonTokens(lease, meterOf(scopes))
          for (const row of rows) row.day = row.month = ''
        } else {
          const untold = below(lease.units + 1)
          for (let time = 0; time < 2; time++) returnTokens(lease, lease.claimed + untold, meterOf(scopes))
          for (const row of rows) row.milli = untold
          for (const one of held) one.until = 0
        }
      }
    }
    for (let step = 0; step < steps; step++) {
      const jump = below(1000)
      now += jump === 0 ? below(40 * 86_400_000) : jump < 5 ? below(90_000) : below(400)
      for (const model of naive) model.now = now
      if (step % 200 === 0) for (const model of naive) model.forget()
      const limits = (i: number) => scopes[i]!.limits
      const where = `seed ${seed}, step ${step}`
      const operation = below(14)
      if (operation < 4) {
        const fits = naive.every((m, i) => m.requestsNow() + 1 <= (limits(i).requests_per_minute ?? Infinity))
        const denial = countRequest(scopes, now)
        same(where, denial === null, fits)
        if (fits) for (const m of naive) m.requests.push({ slot: Naive.slot(now), units: 1 })
        else same(where, (denial?.retry_after_ms ?? 0) > 0, true)
      } else if (operation < 7) {
        const prompt = 1 + below(400)
        const max = maybe(1 + below(600))
        const least = (prompt + (max ?? 1)) * 1000
        const whole = (l: Limits) =>
          Math.min(
            l.tokens_per_minute ?? Infinity,
            l.tokens_per_day ?? Infinity,
            l.tokens_per_month ?? Infinity,
          )
        const tooLarge = scopes.some((scope) => least > whole(scope.limits) * 1000)
        const room = Math.min(...naive.map((m, i) => m.room(limits(i))))
        const slots = naive.every((m, i) => m.running() < (limits(i).concurrent ?? Infinity))
        const result = admit(scopes, ask(prompt, max), now)
        same(where, result.kind, tooLarge ? 'too_large' : slots && least <= room ? 'admitted' : 'denied')
        if (result.kind === 'denied') same(where, result.denial.retry_after_ms > 0, true)
        if (result.kind !== 'admitted') continue
        const total = Math.min(Math.floor(room / 1000), prompt + (max ?? 1000))
        same(where, result.max_tokens, total - prompt)
        const [day, month] = dates(now)
        const rows = naive.map((m) => {
          const row = { slot: Naive.slot(now), day, month, milli: total * 1000, open: true }
          m.tokens.push(row)
          return row
        })
        open.push({ reservation: result.reservation, rows, most: total - prompt, prompt })
      } else if (operation < 9 && open.length > 0) {
        const [{ reservation, rows, most, prompt }] = open.splice(below(open.length), 1) as [(typeof open)[0]]
        const usage =
          below(5) === 0 ? null : { prompt, cached: below(prompt + 1), completion: below(most + 1) }
        settle(reservation, usage, weight, meterOf(scopes), now)
        const thousandths = Math.round(weight * 1000)
        const milli =
          usage === null
            ? 0
            : (usage.prompt - usage.cached) * 1000 + usage.cached * thousandths + usage.completion * 1000
        for (const row of rows) {
          row.open = false
          row.milli = milli
        }
      } else if (operation >= 10) {
        tokenLease(below(4), where)
      } else if (leases.length > 0 && below(2) === 0) {
        const [{ lease, rows, held }] = leases.splice(below(leases.length), 1) as [(typeof leases)[0]]
        const used = below(lease.units + 1)
        returnLease(lease, used, meterOf(scopes))
        for (const row of rows) row.units = used
        for (const one of held) one.until = 0
      } else {
        const wanted = 1 + below(20)
        const share = (i: number) => Math.floor((limits(i).requests_per_minute ?? Infinity) / 10)
        const most = (m: Naive, i: number) => {
          const limit = limits(i).requests_per_minute
          if (limit === null) return Infinity
          return Math.min(share(i) - m.leased(), limit - m.requestsNow() - Math.ceil(limit / 10))
        }
        const units = Math.min(wanted, ...naive.map(most))
        const lease = grantLease(scopes, wanted, now)
        same(where, lease?.units ?? 0, Math.max(0, units))
        if (lease === null) continue
        const rows = naive.map(() => ({ slot: Naive.slot(now + 1200), units: lease.units }))
        const held = naive.map(() => ({ until: now + 1200, units: lease.units }))
        naive.forEach((m, i) => {
          m.requests.push(rows[i]!)
          m.leases.push(held[i]!)
        })
        leases.push({ lease, rows, held })
      }
      for (const [i, { limits, meter }] of scopes.entries()) {
        meter.advance(now)
        same(where, meter.requests.used, naive[i]!.requestsNow())
        same(where, meter.running, naive[i]!.running())
        same(where, meter.requests.used <= (limits.requests_per_minute ?? Infinity), true)
        same(where, meter.tokens.used <= (limits.tokens_per_minute ?? Infinity) * 1000, true)
      }
    }
  }

  it('lease tokens not where slots are limited, nor over midnight, nor less than is of use', () => {
    const lease = (limits: Partial<Limits>, now = noon) =>
      grantTokens(scopesOf([limits]), 50_000, 40_000, now)
    expect(lease({ tokens_per_minute: 500 })?.units).toBe(50_000)
    expect(lease({ tokens_per_minute: 450 })?.units).toBe(45_000)
    expect(lease({ tokens_per_minute: 390 })).toBeNull()
    expect(lease({ tokens_per_minute: 500, concurrent: 100 })).toBeNull()
    expect(lease({ tokens_per_minute: 500 }, Date.UTC(2026, 1, 1) - 1)).toBeNull()
  })

  it('refuse only a request that fits nowhere with a status that says so', () => {
    const scopes = scopesOf([{ tokens_per_minute: 100 }])
    expect(admit(scopes, ask(50, 51), noon)).toMatchObject({ kind: 'too_large' })
    expect(admit(scopes, ask(50, 50), noon)).toMatchObject({ kind: 'admitted', max_tokens: 50 })
    expect(admit(scopes, ask(50, 50), noon)).toMatchObject({
      kind: 'denied',
      denial: { limit: 'tokens_per_minute' },
    })
  })

  it('cap an open answer to what the tightest limit still holds', () => {
    const scopes = scopesOf([{ tokens_per_minute: 500 }, { tokens_per_day: 80 }])
    expect(admit(scopes, ask(50, null), noon)).toMatchObject({ kind: 'admitted', max_tokens: 30 })
    expect(admit(scopes, ask(50, null), noon)).toMatchObject({ kind: 'denied', denial: { scope: 'key' } })
  })

  it('refuse for a day until midnight UTC, for a month until its end', () => {
    const day = scopesOf([{ tokens_per_day: 100 }])
    const month = scopesOf([{ tokens_per_month: 100 }])
    for (const [scopes, wait] of [
      [day, 12 * 3_600_000],
      [month, 12 * 3_600_000],
    ] as const) {
      admit(scopes, ask(50, 50), noon)
      expect(admit(scopes, ask(1, 1), noon)).toMatchObject({
        kind: 'denied',
        denial: { retry_after_ms: wait },
      })
      expect(admit(scopes, ask(1, 1), noon + wait)).toMatchObject({ kind: 'admitted' })
    }
  })

  it('take nothing anywhere when one scope refuses', () => {
    const scopes = scopesOf([
      { requests_per_minute: 5, concurrent: 5 },
      { requests_per_minute: 1, concurrent: 1 },
    ])
    for (let i = 0; i < 5; i++) countRequest(scopes, noon)
    expect(remaining(scopes.slice(0, 1), 'requests')).toMatchObject({ remaining: 4 })
    for (let i = 0; i < 5; i++) admit(scopes, ask(1, 1), noon)
    expect(scopes[0]?.meter.running).toBe(1)
  })

  it('count a lease for a whole window after its last moment', () => {
    const scopes = scopesOf([{ requests_per_minute: 100 }])
    expect(grantLease(scopes, 50, noon)?.units).toBe(10)
    expect(grantLease(scopes, 50, noon)).toBeNull()
    const { meter } = scopes[0]!
    meter.advance(noon + 1000 + 60_000)
    expect(meter.requests.used).toBe(10)
    meter.advance(noon + 1200 + 60_200)
    expect(meter.requests.used).toBe(0)
  })
})
