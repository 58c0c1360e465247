/** POST /v1/prefixes: computes a prompt into the prefix cache and answers when its blocks are there. */
import { ApiError } from '../src/errors.ts'
import type { PrefixRequest, PrefixResponse } from '../src/protocol.ts'
import { resolveSampling } from '../src/sampling.ts'
import type { Engine, EngineEvent } from './engine.ts'
import { errorCode, submitted } from './engine-errors.ts'

const nothing = { temperature: 0, top_p: 1, top_k: 0, repetition_penalty: 1 }

/** Before requests, so that what a caller warms is there when it is wanted. */
const priority = 1

export async function warmPrefix(
  engine: Engine,
  request: PrefixRequest,
  signal: AbortSignal,
): Promise<PrefixResponse> {
  const { token_ids, salt = '', shared_prefix_tokens = 0, pin_seconds = 0 } = request
  const until = pin_seconds === 0 ? null : Math.floor(Date.now() / 1000 + pin_seconds)
  const ended = Promise.withResolvers<Exclude<EngineEvent, { type: 'tokens' }>>()
  const handle = submitted(() =>
    engine.submit(
      {
        tokenIds: Uint32Array.from(token_ids),
        sampling: { ...resolveSampling({ temperature: 0 }, nothing, 0), max_tokens: 0 },
        salt,
        sharedPrefixTokens: shared_prefix_tokens,
        priority,
        pinMs: pin_seconds * 1000,
      },
      (event) => {
        if (event.type !== 'tokens') ended.resolve(event)
      },
    ),
  )
  signal.addEventListener('abort', () => engine.cancel(handle), { once: true })
  const end = await ended.promise
  if (end.type === 'error') throw new ApiError(errorCode(end.code), end.message)
  if (end.reason !== 'length')
    throw new ApiError('backend_unavailable', 'The prefix was not computed: cancelled')
  const { blockSize } = engine.model
  const cached_tokens = Math.floor(token_ids.length / blockSize) * blockSize
  return { cached_tokens, until, usage: end.usage }
}
