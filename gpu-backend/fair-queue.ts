/**
 * A queue of many owners: they take turns, each in its own order, so who brings much waits behind itself. Bounded in all
 * and for each owner.
 */
export class FairQueue<Item> {
  readonly #max: number
  readonly #owner_max: number
  /** Whose turn it is first. */
  readonly #waiting = new Map<string, Item[]>()
  #last: string | undefined
  #size = 0

  constructor(max: number, owner_max: number) {
    this.#max = max
    this.#owner_max = owner_max
  }

  get size(): number {
    return this.#size
  }

  /** @returns what is full, if anything; the item waits otherwise. */
  push(owner: string, item: Item): 'owner' | 'queue' | null {
    const own = this.#waiting.get(owner) ?? []
    if (own.length >= this.#owner_max) return 'owner'
    if (this.#size >= this.#max) return 'queue'
    own.push(item)
    this.#waiting.set(owner, own)
    this.#size++
    return null
  }

  /** The next item; its owner's next one comes after everybody else's. */
  shift(): Item | undefined {
    let [next] = this.#waiting
    if (next === undefined) return undefined
    if (next[0] === this.#last && this.#waiting.size > 1) {
      // Who came while this owner had its turn goes before its next one.
      this.#waiting.delete(next[0])
      this.#waiting.set(...next)
      next = [...this.#waiting][0] ?? next
    }
    const [owner, own] = next
    const item = own.shift()
    this.#waiting.delete(owner)
    if (own.length > 0) this.#waiting.set(owner, own)
    this.#last = owner
    this.#size--
    return item
  }

  /** Takes out those the test holds for. */
  remove(test: (item: Item) => boolean): Item[] {
    const removed: Item[] = []
    for (const [owner, own] of this.#waiting) {
      removed.push(...own.filter((item) => test(item)))
      const kept = own.filter((item) => !test(item))
      if (kept.length > 0) this.#waiting.set(owner, kept)
      else this.#waiting.delete(owner)
    }
    this.#size -= removed.length
    return removed
  }
}
