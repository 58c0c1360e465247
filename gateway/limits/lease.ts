/**
 * What one isolate counts by itself: requests and tokens leased from a tenant's object, so that most requests of a busy
 * key ask nobody, and the requests and hits that it reports twice a second.
 *
 * An isolate asks for as many units as the key used here in the last second, and for tokens beside a generation's own; a quiet key gets none and every request
 * asks. A lease is used for one second from when it was asked for (so no clock but this one matters) and goes back
 * with the next report, so unused units are withheld from others for about a second. An isolate that dies with a lease
 * withholds it for a minute and loses up to half a second of request counts (never tokens: those are settled by the
 * tenant's object). Globals hold plain data; the calls are made by whichever request is there.
 */
import { lease_ms, type Remaining } from './limits.ts'
import type { Tenant } from './tenant.ts'
import type { CountResult, LeaseGrant, Snapshot, Taken, Use } from './tenant-record.ts'
import type { RequestCounts } from './usage-book.ts'

const report_ms = 500
/** A report that was promised and did not come in this time was lost with its request. */
const report_lost_ms = 3_000
/** Below this many requests a second a lease would save nothing. */
const busy = 4
const tenants_max = 10_000

interface Held {
  id: string
  units: number
  used: number
  until_ms: number
  snapshot: Snapshot
  unmetered: boolean
}

interface Demand {
  second: number
  now: { calls: number; units: number }
  before: { calls: number; units: number }
}

interface Local {
  leases: Map<string, Held>
  demand: Map<string, Demand>
  tokenLeases: Map<string, Held>
  tokenDemand: Map<string, Demand>
  returned: { id: string; used: number }[]
  counts: Map<string, RequestCounts>
  /** Reports that got no answer: they are made again as they were, lest what was heard count twice. */
  unheard: Report[]
  /** Uses that no limit of tokens or concurrency holds: until when that is known. */
  unmetered: Map<string, number>
  report_due_ms: number
}

interface Report {
  id: string
  counts: RequestCounts[]
  returned: { id: string; used: number }[]
}

const tenants = new Map<string, Local>()

type TenantStub = DurableObjectStub<Tenant>

/** What limits tell apart, of one tenant. */
const scopeOf = ({ key_id, model }: Use): string => `${key_id} ${model}`

/** Counts one request, from a lease where there is one. */
export async function countRequest(tenantId: string, tenant: TenantStub, use: Use): Promise<CountResult> {
  const local = localOf(tenantId)
  const now_ms = Date.now()
  const scope = scopeOf(use)
  const held = local.leases.get(scope)
  if (held !== undefined && held.used < held.units && now_ms < held.until_ms) {
    held.used++
    noteDemand(local.demand, scope, now_ms)
    return { standing: 'active', denial: null, snapshot: left(held), lease: null, unmetered: held.unmetered }
  }
  if (held !== undefined) retire(local, local.leases, scope)
  const wanted = noteDemand(local.demand, scope, now_ms)
  const returned = local.returned.splice(0)
  let counted: CountResult
  try {
    counted = await tenant.count(use, wanted, returned)
  } catch (error) {
    localOf(tenantId).returned.push(...returned)
    throw error
  }
  if (counted.standing !== 'active') return counted
  const { snapshot, unmetered } = counted
  if (unmetered) localOf(tenantId).unmetered.set(scope, now_ms + lease_ms)
  if (counted.lease === null) return counted
  // The report may have put the old one away in the meantime.
  const here = localOf(tenantId)
  const { id, units } = counted.lease
  retire(here, here.leases, scope)
  const lease = { id, units, used: 0, until_ms: now_ms + lease_ms, snapshot, unmetered }
  here.leases.set(scope, lease)
  return { ...counted, snapshot: left(lease) }
}

/** Whether the tenant's object said within the last second that no limit could refuse such a generation. */
export function knownUnmetered(tenantId: string, use: Use): boolean {
  const until_ms = tenants.get(tenantId)?.unmetered.get(scopeOf(use))
  return until_ms !== undefined && Date.now() < until_ms
}

export interface TakenHere {
  taken: Taken
  snapshot: Snapshot
}

/** One generation's tokens out of a lease; null: its tenant's object must be asked, also for `wanted` tokens ahead. */
export function takeTokens(
  tenantId: string,
  use: Use,
  tokens: number,
): TakenHere | { taken: null; wanted: number } {
  const local = localOf(tenantId)
  const now_ms = Date.now()
  const scope = scopeOf(use)
  const wanted = noteDemand(local.tokenDemand, scope, now_ms, tokens)
  const held = local.tokenLeases.get(scope)
  if (held === undefined || now_ms >= held.until_ms || held.used + tokens > held.units)
    return { taken: null, wanted }
  held.used += tokens
  return { taken: { lease: held.id, tokens }, snapshot: leftTokens(held) }
}

/** @param asked_ms when it was asked for */
export function keepTokens(
  tenantId: string,
  tenant: TenantStub,
  use: Use,
  { id, units }: LeaseGrant,
  { asked_ms, snapshot }: { asked_ms: number; snapshot: Snapshot },
  defer: (work: Promise<unknown>) => void,
): Snapshot {
  const local = localOf(tenantId)
  const scope = scopeOf(use)
  retire(local, local.tokenLeases, scope)
  const held = { id, units, used: 0, until_ms: asked_ms + lease_ms, snapshot, unmetered: false }
  local.tokenLeases.set(scope, held)
  promiseReport(tenantId, tenant, local, defer)
  return leftTokens(held)
}

/** Notes an answered request for the usage report, and sees that one will be sent. */
export function noteRequest(
  tenantId: string,
  tenant: TenantStub,
  use: Use,
  hit: boolean,
  defer: (work: Promise<unknown>) => void,
): void {
  const local = localOf(tenantId)
  const counts = countsOf(local, use)
  counts.requests++
  if (hit) counts.hits++
  promiseReport(tenantId, tenant, local, defer)
}

function promiseReport(
  tenantId: string,
  tenant: TenantStub,
  local: Local,
  defer: (work: Promise<unknown>) => void,
): void {
  const now_ms = Date.now()
  if (local.report_due_ms > now_ms - report_lost_ms) return
  local.report_due_ms = now_ms + report_ms
  defer(report(tenantId, tenant, local))
}

async function report(tenantId: string, tenant: TenantStub, local: Local): Promise<void> {
  for (;;) {
    await scheduler.wait(report_ms)
    const now_ms = Date.now()
    for (const leases of [local.leases, local.tokenLeases])
      for (const [scope, held] of leases) if (now_ms >= held.until_ms) retire(local, leases, scope)
    local.report_due_ms = now_ms + report_ms
    if (!(await sendReports(tenant, local))) break
    if (holdsNothing(local)) break
  }
  local.report_due_ms = 0
  if (holdsNothing(local) && local.returned.length === 0 && local.unheard.length === 0)
    tenants.delete(tenantId)
}

const holdsNothing = ({ leases, tokenLeases, counts }: Local): boolean =>
  leases.size === 0 && tokenLeases.size === 0 && counts.size === 0

/** The earlier ones first. @returns false where one was not heard: it goes with the next. */
async function sendReports(tenant: TenantStub, local: Local): Promise<boolean> {
  const counts = [...local.counts.values()]
  const returned = local.returned.splice(0)
  local.counts = new Map()
  const reports = local.unheard.splice(0)
  if (counts.length > 0 || returned.length > 0) reports.push({ id: crypto.randomUUID(), counts, returned })
  for (const [at, report] of reports.entries()) {
    try {
      await tenant.report(report.id, report.counts, report.returned)
    } catch {
      local.unheard.push(...reports.slice(at))
      return false
    }
  }
  return true
}

function localOf(tenantId: string): Local {
  let local = tenants.get(tenantId)
  if (local === undefined) {
    if (tenants.size >= tenants_max) tenants.clear()
    local = {
      leases: new Map(),
      demand: new Map(),
      tokenLeases: new Map(),
      tokenDemand: new Map(),
      returned: [],
      counts: new Map(),
      unheard: [],
      unmetered: new Map(),
      report_due_ms: 0,
    }
    tenants.set(tenantId, local)
  }
  return local
}

function countsOf(local: Local, { key_id, model, template }: Use): RequestCounts {
  const id = JSON.stringify([key_id, model, template])
  let counts = local.counts.get(id)
  if (counts === undefined) {
    counts = { key_id, model, template, requests: 0, hits: 0 }
    local.counts.set(id, counts)
  }
  return counts
}

/** It goes back with the next report. */
function retire(local: Local, leases: Map<string, Held>, scope: string): void {
  const held = leases.get(scope)
  if (held === undefined) return
  leases.delete(scope)
  local.returned.push({ id: held.id, used: held.used })
}

/** Counts this request; gives how many units to ask for ahead, from the busier of this second and the last. */
function noteDemand(demands: Map<string, Demand>, scope: string, now_ms: number, units = 1): number {
  const second = Math.floor(now_ms / 1000)
  const none = () => ({ calls: 0, units: 0 })
  const known = demands.get(scope) ?? { second, now: none(), before: none() }
  if (known.second !== second) {
    known.before = known.second === second - 1 ? known.now : none()
    known.now = none()
    known.second = second
  }
  known.now.calls++
  known.now.units += units
  demands.set(scope, known)
  const isBusy = Math.max(known.now.calls, known.before.calls) >= busy
  return isBusy ? Math.max(known.now.units, known.before.units) : 0
}

/** The units still held here are debited already, but they are this caller's. */
const left = ({ snapshot: { requests, tokens }, units, used }: Held): Snapshot => ({
  requests: more(requests, units - used),
  tokens,
})
const leftTokens = ({ snapshot: { requests, tokens }, units, used }: Held): Snapshot => ({
  requests,
  tokens: more(tokens, units - used),
})
const more = (state: Remaining | null, units: number): Remaining | null =>
  state === null ? null : { ...state, remaining: state.remaining + units }
