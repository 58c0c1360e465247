/**
 * A sliding window that never admits more than its limit in any span of `window_ms`.
 *
 * Time is cut into slots of window/600. What a slot holds counts until the whole slot has left the window, so the sum
 * over the last 601 slots is an upper bound of what was admitted within the window: the error (at most one slot,
 * 0.17%) refuses early, it never admits late. Memory: one number a used slot, 601 at most, whatever the limit.
 * A clock that jumps back is held at the latest time seen, so that nothing is forgotten or admitted twice.
 */
export interface WindowState {
  /** [slot number, units], oldest first. */
  slots: [number, number][]
}

export interface Verdict {
  allowed: boolean
  remaining: number
  /** Until the window is empty again. */
  reset_ms: number
  /** Until the same units fit; 0 when allowed. */
  retry_after_ms: number
}

const slots_in_window = 600

export class SlidingWindow {
  readonly window_ms: number
  readonly #slot_ms: number
  #slots: [number, number][]
  #sum: number
  #latest = 0

  constructor(window_ms: number, state: WindowState = { slots: [] }) {
    this.window_ms = window_ms
    this.#slot_ms = window_ms / slots_in_window
    this.#slots = state.slots
    this.#sum = state.slots.reduce((sum, [, units]) => sum + units, 0)
  }

  /** Takes `units` if they fit under `limit`. */
  take(limit: number, units: number, now_ms: number): Verdict {
    const slot = this.#advance(now_ms)
    const allowed = this.#sum + units <= limit
    if (allowed) this.#add(slot, units)
    return {
      allowed,
      remaining: Math.max(0, limit - this.#sum),
      reset_ms: this.#emptyAt() - this.#latest,
      retry_after_ms: allowed ? 0 : this.#freedAt(this.#sum + units - limit) - this.#latest,
    }
  }

  state(): WindowState {
    return { slots: this.#slots }
  }

  #advance(now_ms: number): number {
    this.#latest = Math.max(this.#latest, now_ms, (this.#slots.at(-1)?.[0] ?? 0) * this.#slot_ms)
    const slot = Math.floor(this.#latest / this.#slot_ms)
    let gone = 0
    while (gone < this.#slots.length && (this.#slots[gone]?.[0] ?? slot) < slot - slots_in_window) gone++
    for (const [, units] of this.#slots.splice(0, gone)) this.#sum -= units
    return slot
  }

  #add(slot: number, units: number): void {
    const last = this.#slots.at(-1)
    if (last?.[0] === slot) last[1] += units
    else this.#slots.push([slot, units])
    this.#sum += units
  }

  #emptyAt(): number {
    const last = this.#slots.at(-1)
    return last === undefined ? this.#latest : leavesAt(last[0], this.#slot_ms)
  }

  /** When `units` of what is held will have left the window; the end of the window when more than all is asked. */
  #freedAt(units: number): number {
    let freed = 0
    for (const [slot, held] of this.#slots) {
      freed += held
      if (freed >= units) return leavesAt(slot, this.#slot_ms)
    }
    return this.#latest + (units > freed ? this.window_ms : 0)
  }
}

/** When the last instant of a slot is a whole window ago. */
const leavesAt = (slot: number, slot_ms: number): number => (slot + slots_in_window + 1) * slot_ms
