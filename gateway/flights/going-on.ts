/** How an answer goes on when what generated it has gone: the object that ran it, or the backend under it. */
import { ApiError } from '../../src/errors.ts'
import type { Delta } from '../chat/answers.ts'
import { backendState, Broken } from '../chat/backend.ts'
import type { Prompt } from '../chat/prompt.ts'
import { model } from '../model.ts'

/** A backend that was killed is started anew and opens its weights. */
const restart_ms_max = 30_000
/** Many may wait for the same one. */
const ask_again_ms = { first: 250, last: 2_000 }

/**
 * The tokens to go on after; what follows them in the log will be generated again. The last token may have been the
 * end, whose finish was lost. Penalties over the output alone and grammars want the output told from the prompt, and
 * several answers cannot continue one prompt: then it begins anew.
 */
export function continuable({ sampling }: Prompt, before: Delta[]): number[] {
  const { presence_penalty, frequency_penalty, grammar, n } = sampling
  if (presence_penalty !== 0 || frequency_penalty !== 0 || grammar !== null || n > 1) return []
  const emitted = before.flatMap((delta) => (delta.type === 'text' ? delta.token_ids : []))
  return emitted.slice(0, -1)
}

/** The backend went away under it, or stopped it by itself, as one does that shuts down. */
export const wasLost = (cause: unknown): boolean =>
  cause instanceof Broken || (cause instanceof ApiError && cause.code === 'request_cancelled')

/** Whether a backend takes generations again, before long. */
export async function backendIsBack(env: Env, signal: AbortSignal): Promise<boolean> {
  const end = Date.now() + restart_ms_max
  for (let wait_ms = ask_again_ms.first; Date.now() < end && !signal.aborted; wait_ms *= 2) {
    if ((await backendState(env, model)) === 'ready') return !signal.aborted
    await scheduler.wait(Math.min(wait_ms, ask_again_ms.last) * (0.5 + Math.random() / 2))
  }
  return false
}
