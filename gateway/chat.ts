import { factory } from './app-env.ts'
import { startGeneration } from './generation.ts'
import { respond } from './respond.ts'
import { keep, storeFar, storeNear } from './result-store.ts'

/** Last on the line: nothing kept answers this request, so the engine does. */
export const chat = factory.createHandlers(async function chat(c) {
  const gone = new AbortController()
  const defer = (work: Promise<unknown>) => c.executionCtx.waitUntil(work)
  const { requestId, caller, prompt, cache } = c.var
  const signal = AbortSignal.any([c.req.raw.signal, gone.signal])
  const { deltas, headers } = await startGeneration(prompt, { env: c.env, requestId, caller, signal, defer })
  for (const [name, value] of Object.entries(headers)) c.header(name, value)
  const { key, ttl_s } = cache
  const answer =
    key === null
      ? deltas
      : keep(deltas, ttl_s, async (entry) => {
          // The caller's limits ended it, not the request: the same request may get more later.
          const { reason, usage } = entry.finish
          if (reason === 'length' && usage.completion < prompt.sampling.max_tokens) return
          defer(storeFar(c.env, key, entry))
          await storeNear(key, entry)
        })
  return respond(c, answer, () => gone.abort())
})
