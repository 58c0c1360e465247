/**
 * Tokens handed to an isolate ahead of use, so that the generations of a busy key begin without asking. Pure, as limits.ts.
 *
 * A lease is debited whole when granted, in every scope, and booked where its last moment lies. A generation that begins
 * under it claims its reservation from it. What comes back is what the isolate did not take: what it took and has not
 * yet told of stays debited. All leases together hold a tenth of a limit at most, and none is granted that would leave less
 * than a tenth, where a limit of concurrency holds, or over the end of a day (UTC), whose budget is another.
 */
import {
  dayOf,
  lease_late_ms,
  lease_ms,
  lease_share,
  monthOf,
  tokenLimits,
  type Meter,
  type OpenLease,
  type Reservation,
  type Scope,
} from './limits.ts'

/** In milli-tokens. `units`: what neither was claimed nor came back. */
export interface TokenLease extends OpenLease {
  /** By generations that the tenant's object knows. */
  claimed: number
  isReturned: boolean
  day: number
  month: number
  held: { id: string; slot: number }[]
}

type MeterOf = (id: string) => Meter

/** Up to `wanted` milli-tokens ahead of use; null: not even `least` may be. */
export function grantTokens(
  scopes: Scope[],
  wanted: number,
  least: number,
  now_ms: number,
): TokenLease | null {
  const until_ms = now_ms + lease_ms + lease_late_ms
  const day = dayOf(now_ms)
  if (scopes.some(({ limits }) => limits.concurrent !== null) || dayOf(until_ms) !== day) return null
  let units = wanted
  for (const scope of scopes) {
    scope.meter.advance(now_ms)
    for (const { value, used } of tokenLimits(scope, now_ms)) {
      const share = Math.floor((value * 1000) / lease_share)
      units = Math.min(units, share - scope.meter.tokenLeases.sum(now_ms), value * 1000 - used - share)
    }
  }
  if (units < least) return null
  const month = monthOf(now_ms)
  const lease: TokenLease = { units, claimed: 0, isReturned: false, until_ms, day, month, held: [] }
  lease.held = scopes.map(({ id, meter }) => ({ id, slot: meter.leaseTokens(lease) }))
  return lease
}

/** The reservation of a generation that an isolate began; what it uses beyond is charged when it ends. */
export function claim(lease: TokenLease, milli: number, meterOf: MeterOf, now_ms: number): Reservation {
  const claimed = Math.min(milli, lease.units)
  lease.units -= claimed
  lease.claimed += claimed
  for (const { id } of lease.held) {
    const meter = meterOf(id)
    meter.advance(now_ms)
    meter.running++
  }
  return { milli: claimed, day: lease.day, month: lease.month, held: lease.held }
}

/** What was not taken comes back. @param taken told of or not. Twice is once. */
export function returnTokens(lease: TokenLease, taken: number, meterOf: MeterOf): void {
  if (lease.isReturned) return
  lease.isReturned = true
  const untold = Math.min(lease.units, Math.max(0, taken - lease.claimed))
  for (const { id, slot } of lease.held) {
    const meter = meterOf(id)
    meter.giveBack(lease.units - untold, slot, lease)
    meter.tokenLeases.end(lease)
  }
  lease.units = untold
}

/** Whoever held it is gone. The window forgets it by itself; a day or a month would be short of it to its end. */
export function abandonTokens(lease: TokenLease, meterOf: MeterOf): void {
  if (lease.isReturned) return
  for (const { id } of lease.held) meterOf(id).giveBackBudgets(lease.units, lease)
}
