/**
 * POST /hooks/{id}: an event from outside becomes a job. Nothing is believed before the signature holds; the same event
 * again is answered with the first job, since its id is the job's dedupe key in the tenant's own store.
 */
import { ApiError } from '../../src/errors.ts'
import { bodyText } from '../body-text.ts'
import { factory } from '../app-env.ts'
import { notActive } from '../limits/limit-headers.ts'
import { limitedBody } from '../chat/limited-body.ts'
import { holding, isHookId, signingOf, storedHook, type HookRecord } from './hook.ts'
import { passes, readPayload, renderRequest, type Event } from './hook-request.ts'
import { eventId, isGenuine } from './hook-verify.ts'
import { isTerminal, jobView } from '../jobs/job.ts'
import { accepted, jobsOf, newJobId, requestText, stored } from '../jobs/job-routes.ts'
import { prepare } from '../chat/prompt.ts'

const sync_wait_ms = 25_000

const nowhere = () => new ApiError('not_found', 'There is no hook at this address.')

/** Before anything is read or woken: an id that we never gave out is a guess. */
const knownAddress = factory.createMiddleware(async function knownAddress(c, next) {
  if (!(await isHookId(c.env, c.req.param('id') ?? ''))) throw nowhere()
  await next()
})

export const inbound = factory.createHandlers(knownAddress, limitedBody, async function inbound(c) {
  const body = await bodyText(c.req)
  const hook = await storedHook(c.env, c.req.param('id') ?? '')
  if (hook === null) throw nowhere()
  const signed = { headers: c.req.raw.headers, body }
  const secrets = holding(hook.verify.secrets, Date.now())
  if (!(await isGenuine(hook.verify.type, secrets, signed, Date.now())))
    throw new ApiError(
      'invalid_signature',
      `This is not signed with this hook's secret (${hook.verify.type}).`,
    )
  if (!hook.enabled) throw new ApiError('hook_disabled', 'This hook is disabled.')
  const { tenantId, keyId } = hook.caller
  const { standing } = await stored(c.env.TENANT.getByName(tenantId).look(keyId))
  if (standing === 'suspended') throw notActive(standing)

  const payload = readPayload(body, c.req.header('content-type') ?? '')
  const greeting = handshake(hook, signed.headers, payload)
  if (greeting !== null) return c.json(greeting)
  const id = await eventId(hook.verify.type, signed, payload)
  const event = { payload, type: c.req.header('x-github-event') ?? null, id }
  if (!passes(hook.filter, event)) return c.json({ job_id: null, filtered: true }, 202)

  const request = renderRequest(hook.request, event)
  await prepare(c.env, hook.caller, request)
  const jobs = jobsOf(c.env, hook.caller.tenantId)
  const made = accepted(
    await stored(
      jobs.create({
        id: newJobId(),
        caller: hook.caller,
        request: requestText(request),
        endpoints:
          hook.callback === null
            ? []
            : [{ ...hook.callback, secrets: await signingOf(c.env, hook), signer: hook.id }],
        metadata: JSON.stringify(metadata(hook, event)),
        dedupe: id === null ? null : `hook:${hook.id}:${id}`,
      }),
    ),
  )
  if (hook.mode === 'sync') {
    const job = await jobs.get(made.id, sync_wait_ms)
    if (job !== null && isTerminal(job.status)) {
      const { status, response, error } = jobView(job)
      const output_text = response?.choices[0]?.message.content
      const told = { job_id: made.id, status, output_text, response, error }
      return made.isNew ? c.json(told) : c.json({ ...told, duplicate: true }, 202)
    }
  }
  return c.json({ job_id: made.id, ...(made.isNew ? {} : { duplicate: true }) }, 202)
})

const metadata = (hook: HookRecord, event: Event) => ({
  hook_id: hook.id,
  event_id: event.id,
  event_type: event.type,
})

/** What some senders ask before they send anything. */
function handshake({ verify }: HookRecord, headers: Headers, payload: unknown): object | null {
  if (verify.type === 'github' && headers.get('x-github-event') === 'ping') return { pong: true }
  if (verify.type !== 'slack' || typeof payload !== 'object' || payload === null) return null
  const { type, challenge } = payload as { type?: unknown; challenge?: unknown }
  return type === 'url_verification' ? { challenge } : null
}
