/**
 * What an isolate tells a tenant's object of generations that began without asking, since no limit could have refused
 * them or since their tokens were leased: that they began, and what they used. Gathered for `gather_ms`, one call for all. One that began and ended meanwhile is told of once. An isolate
 * that dies with notes unsent loses those few milliseconds: a generation that began in them and whose gateway is gone
 * is stopped by its closed stream and not billed; one that was told of is settled by the object itself. A call that
 * fails is made again; the object takes a batch once.
 *
 * Globals hold plain data; the call is made by whichever request is there.
 */
import type { TokenUsage } from '../../src/protocol.ts'
import type { Tenant } from './tenant.ts'
import type { Taken, Use } from './tenant-record.ts'

export interface Begun {
  requestId: string
  use: Use
  prompt_tokens: number
  /** Left out: no limit of tokens holds it. */
  taken?: Taken
}

export interface Ended {
  requestId: string
  use: Use
  /** null: it never ran. */
  usage: TokenUsage | null
  /** Where its beginning was not told. */
  taken?: Taken
}

const gather_ms = 5
const retry_ms = 500
const attempts_max = 20

interface Notes {
  begun: Map<string, Begun>
  ended: Ended[]
}

const pending = new Map<string, Notes>()

type TenantStub = DurableObjectStub<Tenant>
type Defer = (work: Promise<unknown>) => void

export function noteBegun(tenantId: string, tenant: TenantStub, begun: Begun, defer: Defer): void {
  notesOf(tenantId, tenant, defer).begun.set(begun.requestId, begun)
}

export function noteEnded(tenantId: string, tenant: TenantStub, ended: Ended, defer: Defer): void {
  const notes = notesOf(tenantId, tenant, defer)
  const untold = notes.begun.get(ended.requestId)
  notes.begun.delete(ended.requestId)
  const { taken } = untold ?? {}
  if (taken !== undefined) notes.ended.push({ ...ended, taken })
  else if (ended.usage !== null || untold === undefined) notes.ended.push(ended)
}

function notesOf(tenantId: string, tenant: TenantStub, defer: Defer): Notes {
  let notes = pending.get(tenantId)
  if (notes === undefined) {
    notes = { begun: new Map(), ended: [] }
    pending.set(tenantId, notes)
    defer(send(tenantId, tenant))
  }
  return notes
}

async function send(tenantId: string, tenant: TenantStub): Promise<void> {
  await scheduler.wait(gather_ms)
  const notes = pending.get(tenantId)
  pending.delete(tenantId)
  if (notes === undefined || (notes.begun.size === 0 && notes.ended.length === 0)) return
  const batch = crypto.randomUUID()
  for (let attempt = 1; ; attempt++) {
    try {
      return await tenant.note(batch, [...notes.begun.values()], notes.ended)
    } catch (cause) {
      if (attempt === attempts_max) throw cause
      await scheduler.wait(retry_ms)
    }
  }
}
