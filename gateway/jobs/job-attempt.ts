/**
 * What one attempt means for its job. Waiting is no failure: over a limit (429) or without a backend (503, 504) a job
 * goes back into the queue, for as long as its limit says, or a day without a backend. What will not get better by itself fails at once; what might, a few times.
 */
import { ApiError } from '../../src/errors.ts'
import type { Answer } from '../chat/answer.ts'

export type AttemptEnd =
  /** @property holds a limit holds the jobs of this key, and this attempt counts for nothing. */
  | { type: 'again'; after_ms: number; holds: boolean }
  | { type: 'completed'; response: string; error: null }
  | { type: 'failed'; response: null; error: string }

const patience_ms = 24 * 3_600_000
/** An answer and the event that repeats its text must fit a row of 2 MB. */
const response_bytes_max = 950_000
/** For failures inside: a request that breaks the engine must not do so for ever. */
const broken_max = 5
/** For connections that broke, which a restart of the backend explains too. */
const cut_max = 50
const longest_wait_ms = 30_000
/** A limit may be raised, or another job fit what it still holds: it is asked again after a minute at the latest. */
const longest_hold_ms = 60_000

export function attemptEnd(result: Answer, attempt: number, age_ms: number): AttemptEnd {
  if (result.ok) {
    const response = JSON.stringify(result.response)
    if (new TextEncoder().encode(response).byteLength <= response_bytes_max)
      return { type: 'completed', response, error: null }
    return failed(new ApiError('response_too_large', "A job's answer may have 950 kB; ask for less."))
  }
  const error =
    result.error ?? new ApiError('backend_unavailable', 'The connection to the backend kept breaking.')
  const waits = result.error !== null && [429, 503, 504].includes(error.status)
  const most = waits
    ? Infinity
    : result.error === null
      ? cut_max
      : error.status >= 500 || error.status === 499
        ? broken_max
        : 0
  const holds = error.status === 429
  if (!holds && (attempt >= most || age_ms >= patience_ms)) return failed(error)
  const asked_ms = result.error === null || result.retryAfterS === null ? 0 : result.retryAfterS * 1_000
  const backoff_ms = Math.min(longest_wait_ms, 500 * 2 ** Math.min(attempt, 10)) * (0.5 + Math.random() / 2)
  const hold_ms = Math.min(Math.max(asked_ms, 250), longest_hold_ms)
  return { type: 'again', after_ms: holds ? hold_ms : Math.max(backoff_ms, asked_ms), holds }
}

export const failed = (error: ApiError): AttemptEnd & { type: 'failed' } => ({
  type: 'failed',
  response: null,
  error: JSON.stringify(error.body().error),
})
