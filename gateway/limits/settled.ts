/**
 * How generations' ends became known, counted: by the gateway that ran them, in its notes, by another that took over, by
 * this object's alarm, by their tenant's deletion. An alarm that pays often says that gateways die.
 */
export const ways = ['gateway', 'notes', 'takeover', 'alarm', 'deletion'] as const
export type Way = (typeof ways)[number]
export type SettledCounts = Record<Way, number>

const none: SettledCounts = { gateway: 0, notes: 0, takeover: 0, alarm: 0, deletion: 0 }

export class Settled {
  readonly #kv: SyncKvStorage
  readonly #counts: SettledCounts
  #changed = false

  constructor(kv: SyncKvStorage) {
    this.#kv = kv
    this.#counts = { ...none, ...kv.get<SettledCounts>('settled') }
  }

  get counts(): SettledCounts {
    return { ...this.#counts }
  }

  add(way: Way): void {
    this.#counts[way]++
    this.#changed = true
  }

  flush(): void {
    if (this.#changed) this.#kv.put('settled', this.#counts)
    this.#changed = false
  }
}
