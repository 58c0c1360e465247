import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { SlidingWindow } from '../../../gateway/limits/sliding-window.ts'

const window_ms = 60_000

describe('SlidingWindow', () => {
  it('never admits more than the limit in any window, and never refuses by more than one slot too long', () => {
    const step = fc.record({
      wait_ms: fc.integer({ min: 0, max: 9_000 }),
      units: fc.integer({ min: 1, max: 5 }),
    })
    fc.assert(
      fc.property(
        fc.integer({ min: 5, max: 40 }),
        fc.array(step, { minLength: 50, maxLength: 300 }),
        (limit, steps) => {
          const window = new SlidingWindow(window_ms)
          const admitted: [number, number][] = []
          const within = (now: number, span: number) =>
            admitted.filter(([at]) => at > now - span).reduce((sum, [, units]) => sum + units, 0)
          let now = 1_700_000_000_000
          for (const { wait_ms, units } of steps) {
            now += wait_ms
            const { allowed } = window.take(limit, units, now)
            if (allowed) admitted.push([now, units])
            expect(within(now, window_ms)).toBeLessThanOrEqual(limit)
            if (!allowed) expect(within(now, window_ms + window_ms / 600) + units).toBeGreaterThan(limit)
          }
        },
      ),
    )
  })

  it('says truly when to come back', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 20_000 }), { minLength: 3, maxLength: 30 }), (waits) => {
        const window = new SlidingWindow(window_ms)
        let now = 1_700_000_000_000
        for (const wait of waits) {
          now += wait
          const verdict = window.take(2, 1, now)
          if (verdict.allowed) continue
          expect(
            new SlidingWindow(window_ms, structuredClone(window.state())).take(
              2,
              1,
              now + verdict.retry_after_ms,
            ).allowed,
          ).toBe(true)
          expect(verdict.retry_after_ms).toBeLessThanOrEqual(window_ms + window_ms / 600)
        }
      }),
    )
  })

  it('carries on from a saved state', () => {
    const before = new SlidingWindow(window_ms)
    for (let i = 0; i < 3; i++) before.take(3, 1, 1000)
    const after = new SlidingWindow(window_ms, structuredClone(before.state()))
    expect(after.take(3, 1, 2000).allowed).toBe(false)
    expect(after.take(3, 1, 1000 + window_ms + 200).allowed).toBe(true)
  })

  it('does not forget when the clock jumps back', () => {
    const window = new SlidingWindow(window_ms)
    for (let i = 0; i < 3; i++) window.take(3, 1, 1_000_000)
    expect(window.take(3, 1, 500_000).allowed).toBe(false)
  })

  it('holds at most 601 slots, whatever the limit', () => {
    const window = new SlidingWindow(window_ms)
    for (let now = 0; now < 10 * window_ms; now += 10) window.take(1e9, 1, now)
    expect(window.state().slots.length).toBeLessThanOrEqual(601)
  })
})
