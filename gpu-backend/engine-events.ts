/** What the engine's thread says, read from its mailbox. */
import type { FinishReason, Timing, TokenLogprobs, TokenUsage } from '../src/protocol.ts'
import type { NativeEngine } from './native-addon.ts'

/** Completion tokens are those handed out; the token that stopped the answer is neither emitted nor counted. */
export type EngineEvent =
  | { type: 'tokens'; tokenIds: number[]; logprobs?: TokenLogprobs[] }
  | { type: 'finish'; reason: FinishReason; usage: TokenUsage; timing: Timing }
  | { type: 'error'; code: string; message: string; retryable: boolean }

/** In place of a request's handle: the engine itself, which has failed. */
export const engine_handle = 0

const finish_reasons = ['stop', 'length', 'cancelled', 'deadline'] as const satisfies FinishReason[]

type Tokens = Extract<EngineEvent, { type: 'tokens' }>

/** The records since the last wake-up (layout: native/addon/mailbox.h); a request's tokens become one event. */
export function* readEvents(native: NativeEngine): Generator<[handle: number, event: EngineEvent]> {
  const { records, messages } = native.drain()
  let at = 0
  const next = (): number => records[at++] ?? 0
  const open = new Map<number, Tokens>()
  while (at < records.length) {
    const kind = next()
    const handle = next()
    if (kind === 0) {
      let event = open.get(handle)
      if (event === undefined) open.set(handle, (event = { type: 'tokens', tokenIds: [] }))
      const token = next()
      event.tokenIds.push(token)
      if (next() === 1) (event.logprobs ??= []).push(readLogprobs(token, next))
      continue
    }
    const tokens = open.get(handle)
    if (tokens !== undefined) yield [handle, tokens]
    open.delete(handle)
    if (kind === 1) yield [handle, readFinish(next)]
    else
      yield [
        handle,
        { type: 'error', code: 'engine_error', message: messages[next()] ?? '', retryable: true },
      ]
  }
  yield* open
}

function readLogprobs(token_id: number, next: () => number): TokenLogprobs {
  const logprob = next()
  const top = Array.from({ length: next() }, () => ({ token_id: next(), logprob: next() }))
  return { token_id, logprob, top }
}

function readFinish(next: () => number): EngineEvent {
  const reason = finish_reasons[next()] ?? 'cancelled'
  const usage = { prompt: next(), cached: next(), completion: next() }
  const timing = { queue_ms: next(), prefill_ms: next(), decode_ms: next() }
  return { type: 'finish', reason, usage, timing }
}
