/**
 * Tokens and a slot for one generation, from before the engine is asked until what it used is known. Its tenant's
 * object holds the reservation; it is renewed while the generation runs, so that one whose isolate died is found and
 * settled by that object within a minute.
 */
import type { TokenUsage } from '../../src/protocol.ts'
import type { Caller } from '../keys/identify.ts'
import { keepTokens, knownUnmetered, takeTokens, type TakenHere } from './lease.ts'
import { limitHeaders, noLimits, notActive, refusal, tooLarge } from './limit-headers.ts'
import { model } from '../model.ts'
import { noteBegun, noteEnded } from './notes.ts'
import type { Prompt } from '../chat/prompt.ts'
import type { Tenant } from './tenant.ts'
import type { AdmitResult, Use } from './tenant-record.ts'

const renew_ms = 10_000

export interface Admission {
  /** With max_tokens, of each answer, capped to what the limits hold, where the caller set none. */
  prompt: Prompt
  headers: Record<string, string>
  /** Once, when the end is known; null: nothing ran. */
  settle: (usage: TokenUsage | null) => Promise<void>
}

export interface AdmissionContext {
  env: Env
  requestId: string
  caller: Caller
  /** Work that outlives the answer. */
  defer: (work: Promise<unknown>) => void
}

/** Throws ApiError where the limits leave no room. */
export async function admit(
  prompt: Prompt,
  { env, requestId, caller, defer }: AdmissionContext,
): Promise<Admission> {
  const tenant = env.TENANT.getByName(caller.tenantId)
  const use = useOf(prompt, caller)
  if (knownUnmetered(caller.tenantId, use)) return unasked(prompt, tenant, use, { requestId, caller, defer })
  const { max_tokens, min_tokens, n } = prompt.sampling
  const own = takeTokens(caller.tenantId, use, prompt.tokenIds.length + n * max_tokens)
  if (own.taken !== null) return unasked(prompt, tenant, use, { requestId, caller, defer }, own)
  const asked_ms = Date.now()
  const ask = {
    prompt_tokens: prompt.tokenIds.length,
    max_tokens: prompt.openEnded ? null : n * max_tokens,
    room_tokens: n * max_tokens,
    least_tokens: n * Math.max(1, min_tokens),
  }
  let admitted: AdmitResult
  try {
    admitted = await tenant.admit(requestId, use, ask, own.wanted)
  } catch (cause) {
    throw noLimits(cause)
  }
  if (admitted.standing !== 'active') throw notActive(admitted.standing)
  if (admitted.denial !== null && admitted.too_large)
    throw tooLarge(admitted.denial, ask.prompt_tokens + (ask.max_tokens ?? ask.least_tokens))
  const { lease, snapshot } = admitted
  const headers = limitHeaders(
    lease === null
      ? snapshot
      : keepTokens(caller.tenantId, tenant, use, lease, { asked_ms, snapshot }, defer),
  )
  if (admitted.denial !== null) {
    const error = refusal(admitted.denial)
    Object.assign(error.headers, headers)
    throw error
  }
  const stopRenewal = renew(tenant, requestId)
  return {
    prompt: { ...prompt, sampling: { ...prompt.sampling, max_tokens: Math.floor(admitted.max_tokens / n) } },
    headers,
    settle: async (usage) => {
      stopRenewal()
      // A call that fails leaves the reservation to its deadline.
      await tenant.settle(requestId, use, usage).catch(() => undefined)
    },
  }
}

const useOf = (prompt: Prompt, caller: Caller): Use => ({
  key_id: caller.keyId,
  model: model.id,
  template: prompt.template?.id ?? '',
})

/** Bills what was begun under this id by an isolate that died, now that another goes on with it; what fails is left to its tenant's alarm. */
export async function takeOver(
  env: Env,
  { prompt, caller }: { prompt: Prompt; caller: Caller },
  requestId: string,
): Promise<void> {
  await env.TENANT.getByName(caller.tenantId)
    .takeOver(requestId, useOf(prompt, caller))
    .catch(() => undefined)
}

/** What no limit can refuse, or was leased, begins at once; its tenant's object hears of it beside the answer. */
function unasked(
  prompt: Prompt,
  tenant: DurableObjectStub<Tenant>,
  use: Use,
  { requestId, caller, defer }: Omit<AdmissionContext, 'env'>,
  leased?: TakenHere,
): Admission {
  const begun = { requestId, use, prompt_tokens: prompt.tokenIds.length }
  noteBegun(caller.tenantId, tenant, leased ? { ...begun, taken: leased.taken } : begun, defer)
  const stopRenewal = renew(tenant, requestId)
  return {
    prompt,
    headers: leased ? limitHeaders(leased.snapshot) : {},
    settle: async (usage) => {
      stopRenewal()
      noteEnded(caller.tenantId, tenant, { requestId, use, usage }, defer)
    },
  }
}

function renew(tenant: DurableObjectStub<Tenant>, requestId: string): () => void {
  const timer = setInterval(() => void tenant.renew([requestId]).catch(() => undefined), renew_ms)
  return () => clearInterval(timer)
}
