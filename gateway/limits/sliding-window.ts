/**
 * A sliding window that never admits more than its limit in any span of `window_ms`.
 *
 * Time is cut into slots of window/600. What a slot holds counts until the whole slot has left the window, so the sum
 * over the last 601 slots is an upper bound of what was admitted within the window: the error (at most one slot,
 * 0.17%) refuses early, it never admits late. Memory: one number a used slot, some 620 at most, whatever the limit.
 * Units may be booked a little ahead (a lease, used up to a second later) and given back while their slot still counts.
 * A clock that jumps back is held at the latest time seen, so that nothing is forgotten or admitted twice.
 */
export interface WindowState {
  /** [slot number, units], oldest first. */
  slots: [number, number][]
  latest_ms?: number
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
  #latest: number

  constructor(window_ms: number, state: WindowState = { slots: [] }) {
    this.window_ms = window_ms
    this.#slot_ms = window_ms / slots_in_window
    this.#slots = state.slots
    this.#sum = state.slots.reduce((sum, [, units]) => sum + units, 0)
    this.#latest = state.latest_ms ?? 0
  }

  /** Moves on to `now_ms`, forgetting what has left the window; what follows is as of that time. */
  advance(now_ms: number): this {
    this.#latest = Math.max(this.#latest, now_ms)
    const oldest = Math.floor(this.#latest / this.#slot_ms) - slots_in_window
    let gone = 0
    while (gone < this.#slots.length && (this.#slots[gone]?.[0] ?? oldest) < oldest) gone++
    for (const [, units] of this.#slots.splice(0, gone)) this.#sum -= units
    return this
  }

  /** Units that count now. */
  get used(): number {
    return this.#sum
  }

  /** Books units, `ahead_ms` from now; gives the slot that holds them. */
  add(units: number, ahead_ms = 0): number {
    const slot = Math.floor((this.#latest + ahead_ms) / this.#slot_ms)
    let at = this.#slots.length
    while (at > 0 && (this.#slots[at - 1]?.[0] ?? slot) > slot) at--
    const before = this.#slots[at - 1]
    if (before?.[0] === slot) before[1] += units
    else this.#slots.splice(at, 0, [slot, units])
    this.#sum += units
    return slot
  }

  /** Undoes part of a booking; nothing happens where its slot has left the window. */
  giveBack(slot: number, units: number): void {
    const held = this.#slots.findLast(([at]) => at <= slot)
    if (held?.[0] !== slot) return
    const back = Math.min(units, held[1])
    held[1] -= back
    this.#sum -= back
  }

  /** Until `units` more fit under `limit`; 0: now. A whole window where they never do. */
  wait(limit: number, units: number): number {
    const over = this.#sum + units - limit
    return over <= 0 ? 0 : this.#freedAt(over) - this.#latest
  }

  /** Until nothing counts any more. */
  get reset_ms(): number {
    const last = this.#slots.findLast(([, units]) => units > 0)
    return last === undefined ? 0 : leavesAt(last[0], this.#slot_ms) - this.#latest
  }

  /** Takes `units` if they fit under `limit`. */
  take(limit: number, units: number, now_ms: number): Verdict {
    const allowed = this.advance(now_ms).used + units <= limit
    const retry_after_ms = this.wait(limit, units)
    if (allowed) this.add(units)
    return { allowed, remaining: Math.max(0, limit - this.used), reset_ms: this.reset_ms, retry_after_ms }
  }

  state(): WindowState {
    return { slots: this.#slots, latest_ms: this.#latest }
  }

  /** When `units` of what is held will have left the window; the end of the window when more than all is asked. */
  #freedAt(units: number): number {
    let freed = 0
    for (const [slot, held] of this.#slots) {
      freed += held
      if (freed >= units) return leavesAt(slot, this.#slot_ms)
    }
    return this.#latest + this.window_ms
  }
}

/** When the last instant of a slot is a whole window ago. */
const leavesAt = (slot: number, slot_ms: number): number => (slot + slots_in_window + 1) * slot_ms
