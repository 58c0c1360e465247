import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  afterAttempt,
  attempts_max,
  gaps_ms,
  isProbing,
  nextGap,
  retryAfter,
  timeScale,
} from '../../../gateway/jobs/delivery-schedule.ts'

const hour = 3_600_000

describe('retries', () => {
  it('come within 20% of the schedule, ten in all', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.integer({ min: 1, max: 1000 }),
        (random, timeScale) => {
          for (let made = 1; made < attempts_max; made++) {
            const gap = nextGap(made, { random, timeScale }) ?? 0
            const planned = (gaps_ms[made] ?? 0) / timeScale
            expect(Math.abs(gap - planned)).toBeLessThanOrEqual(planned * 0.2 + 1e-9)
          }
          expect(nextGap(attempts_max, { random, timeScale })).toBeNull()
        },
      ),
    )
  })

  it('wait longer where the receiver asks, never shorter, and no more than a day', () => {
    const gap = (retryAfterMs: number) => nextGap(1, { retryAfterMs, random: 0.5, timeScale: 1 })
    expect(gap(1_000)).toBe(5_000)
    expect(gap(60_000)).toBe(60_000)
    expect(gap(1_000 * hour)).toBe(24 * hour)
  })

  it.each([
    [null, 0],
    ['7', 7_000],
    ['Thu, 01 Jan 1970 00:01:00 GMT', 60_000],
    ['soon', 0],
    ['-1', 0],
  ])('read Retry-After %j', (header, ms) => expect(retryAfter(header, 0)).toBe(ms))
})

describe('the breaker', () => {
  it('opens after ten failures in a row, longer each time, and closes at the first success', () => {
    let breaker = { failures: 0, open_until: 0 }
    for (let i = 0; i < 9; i++) breaker = afterAttempt(breaker, false, 0, 1)
    expect([breaker.open_until, isProbing(breaker)]).toEqual([0, false])
    const cool_downs = Array.from(
      { length: 10 },
      () => (breaker = afterAttempt(breaker, false, 0, 1)).open_until,
    )
    expect(cool_downs.slice(0, 3)).toEqual([30_000, 60_000, 120_000])
    expect(cool_downs.at(-1)).toBe(hour)
    expect(isProbing(breaker)).toBe(true)
    expect(afterAttempt(breaker, true, 0, 1)).toEqual({ failures: 0, open_until: 0 })
  })
})

it('time is divided in development alone', () => {
  expect(timeScale({ ENVIRONMENT: 'development', QWEN_EDGE_TIME_SCALE: '1000' })).toBe(1000)
  expect(timeScale({ ENVIRONMENT: 'production', QWEN_EDGE_TIME_SCALE: '1000' })).toBe(1)
  expect(timeScale({ ENVIRONMENT: 'development', QWEN_EDGE_TIME_SCALE: 'x' })).toBe(1)
})
