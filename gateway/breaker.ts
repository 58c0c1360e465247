/**
 * A store that hangs must not cost every request its deadline. After `timeouts_max` in a row, in this isolate, it is left
 * alone for `pause_ms`; then one request asks it again, and the others go on without it until that one was answered.
 * What a store refuses at once costs nothing and counts as an answer.
 */
import { late, within } from './within.ts'

const timeouts_max = 3
const pause_ms = 5_000

export class Breaker {
  readonly #ms_max: number
  #timeouts = 0
  /** Milliseconds since the epoch. */
  #leftAloneUntil = 0

  /** @param ms_max how long one request waits */
  constructor(ms_max: number) {
    this.#ms_max = ms_max
  }

  /** What fails, takes longer or is not asked is null, and failed. */
  async attempt<T>(ask: () => Promise<T>): Promise<[T | null, failed: boolean]> {
    if (this.#timeouts >= timeouts_max) {
      if (Date.now() < this.#leftAloneUntil) return [null, true]
      this.#leftAloneUntil = Date.now() + pause_ms
    }
    try {
      const value = await within(ask(), this.#ms_max)
      if (value !== late) {
        this.#timeouts = 0
        return [value, false]
      }
    } catch {
      this.#timeouts = 0
      return [null, true]
    }
    if (++this.#timeouts >= timeouts_max) this.#leftAloneUntil = Date.now() + pause_ms
    return [null, true]
  }
}
