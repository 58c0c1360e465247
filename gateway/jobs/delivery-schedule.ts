/**
 * When a webhook is tried again: the gaps of Standard Webhooks' recommendation, each +-20%, ten attempts over about
 * three days; a receiver's Retry-After can only lengthen a gap. A breaker per endpoint stops calling one that has
 * failed ten times in a row, then lets one delivery through at a time, after a cool-down that doubles.
 * Pure: time and chance come in.
 */
const [s, m, h] = [1_000, 60_000, 3_600_000]
/** Milliseconds before each attempt. */
export const gaps_ms = [0, 5 * s, 5 * m, 30 * m, 2 * h, 5 * h, 10 * h, 14 * h, 20 * h, 24 * h] as const
export const attempts_max = gaps_ms.length
const jitter = 0.2
const retry_after_max_ms = 24 * h

/** @returns milliseconds until the next attempt after `made` of them failed; null: that was the last. */
export function nextGap(
  made: number,
  { retryAfterMs = 0, random, timeScale }: { retryAfterMs?: number; random: number; timeScale: number },
): number | null {
  const gap = gaps_ms[made]
  if (gap === undefined) return null
  const jittered = gap * (1 - jitter + 2 * jitter * random)
  return Math.max(jittered, Math.min(retryAfterMs, retry_after_max_ms)) / timeScale
}

/** Milliseconds; 0 where the header says nothing (RFC 9110, 10.2.3: seconds or a date). */
export function retryAfter(header: string | null, now_ms: number): number {
  if (header === null) return 0
  if (/^\d{1,9}$/.test(header.trim())) return Number(header) * s
  // Date.parse alone would find a year in '-1'.
  const date = /^[A-Z][a-z]+, /.test(header) ? Date.parse(header) : NaN
  return Number.isNaN(date) ? 0 : Math.max(0, date - now_ms)
}

export interface Breaker {
  /** In a row. */
  failures: number
  /** Milliseconds since the epoch; nothing is sent before. */
  open_until: number
}

export const failures_max = 10
const cool_down_ms = 30 * s
const cool_down_max_ms = h

export const isProbing = (breaker: Breaker): boolean => breaker.failures >= failures_max

export function afterAttempt(breaker: Breaker, ok: boolean, now_ms: number, timeScale: number): Breaker {
  if (ok) return { failures: 0, open_until: 0 }
  const failures = breaker.failures + 1
  if (failures < failures_max) return { failures, open_until: 0 }
  const cool_down = Math.min(cool_down_max_ms, cool_down_ms * 2 ** (failures - failures_max))
  return { failures, open_until: now_ms + cool_down / timeScale }
}

/** How much shorter gaps, Retry-After and cool-downs are; other than 1 in development alone. */
export function timeScale(env: { ENVIRONMENT: string; QWEN_EDGE_TIME_SCALE: string }): number {
  const scale = Number(env.QWEN_EDGE_TIME_SCALE)
  return env.ENVIRONMENT === 'development' && scale > 0 ? scale : 1
}
