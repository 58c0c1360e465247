import { factory } from './app-env.ts'
import { startGeneration } from './generation.ts'
import { keep, write } from './result-cache.ts'
import { respond } from './respond.ts'

/** Last on the line: nothing kept answers this request, so the engine does. */
export const chat = factory.createHandlers(async function chat(c) {
  const gone = new AbortController()
  const defer = (work: Promise<unknown>) => c.executionCtx.waitUntil(work)
  const { requestId, caller, prompt, cache } = c.var
  const signal = AbortSignal.any([c.req.raw.signal, gone.signal])
  const { deltas, headers } = await startGeneration(prompt, { env: c.env, requestId, caller, signal, defer })
  for (const [name, value] of Object.entries(headers)) c.header(name, value)
  const { key } = cache
  const answer =
    key === null
      ? deltas
      : keep(deltas, (texts, finish) =>
          defer(write(key, texts, finish, Number(c.env.RESULT_TTL_SECONDS)).catch(() => undefined)),
        )
  return respond(c, answer, () => gone.abort())
})
