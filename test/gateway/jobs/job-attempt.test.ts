import { describe, expect, it } from 'vitest'
import { attemptEnd } from '../../../gateway/jobs/job-attempt.ts'
import type { Answer } from '../../../gateway/chat/answer.ts'
import { ApiError, type ErrorCode } from '../../../src/errors.ts'

const failure = (code: ErrorCode, retryAfterS: number | null = null): Answer => ({
  ok: false,
  error: new ApiError(code, 'x'),
  retryAfterS,
})
const day_ms = 24 * 3_600_000
const answered = (content: string) =>
  ({ ok: true, response: { id: 'chatcmpl-1', choices: [{ message: { content } }] } }) as unknown as Answer

describe('what an attempt means for its job', () => {
  it('asks a limit again within a minute, however long it says: it may be raised', () => {
    const month = attemptEnd(failure('rate_limit_exceeded', 31 * 86_400), 1, 0)
    expect(month).toEqual({ type: 'again', after_ms: 60_000, holds: true })
    expect(attemptEnd(failure('rate_limit_exceeded', 7), 900, 0)).toMatchObject({ after_ms: 7_000 })
    expect(attemptEnd(failure('rate_limit_exceeded', 7), 900, 40 * day_ms)).toMatchObject({ type: 'again' })
    expect(attemptEnd(failure('backend_unavailable'), 900, day_ms)).toMatchObject({ type: 'failed' })
  })

  it('waits for a backend that is away, and gives up soon on what breaks by itself', () => {
    expect(attemptEnd(failure('backend_unavailable', 3), 5_000, day_ms - 1)).toMatchObject({
      type: 'again',
      holds: false,
    })
    const tries = (answer: Answer) => {
      let attempt = 1
      while (attemptEnd(answer, attempt, 0).type === 'again') attempt++
      return attempt
    }
    expect(tries(failure('invalid_value'))).toBe(1)
    expect(tries(failure('engine_error'))).toBe(5)
    expect(tries({ ok: false, error: null })).toBe(50)
  })

  it('fails by name where the answer, or the event that repeats its text, would not fit a row', () => {
    expect(attemptEnd(answered('x'.repeat(900_000)), 1, 0).type).toBe('completed')
    const large = attemptEnd(answered('\u00e9'.repeat(500_000)), 1, 0)
    expect(large).toMatchObject({ type: 'failed', error: expect.stringContaining('response_too_large') })
  })
})
