/**
 * Text on its way to a client, in few writes: in workerd one costs more than all that leads to it. The first goes out
 * at once; what comes within `gap_ms` of a write, or before the client has taken it, goes into the next. At most
 * `pending_chars_max` and one addition wait here for a slow client: whoever adds more waits for `room`.
 *
 * The stream is workerd's own (IdentityTransformStream): one that JavaScript must be asked for costs half as much again.
 */
const gap_ms = 5
const pending_chars_max = 64 * 1024

export class PacedWriter {
  readonly readable: ReadableStream<Uint8Array>
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>
  readonly #encoder = new TextEncoder()
  #pending = ''
  /** The write under way. */
  #writing: Promise<void> | null = null
  #written_ms = 0
  #gap: number | null = null
  #beat: number | null = null
  #gone = false

  /** @param onGone called when writing shows that nobody reads any more; what is added then is dropped. */
  constructor(onGone: () => void) {
    const { readable, writable } = new IdentityTransformStream()
    this.readable = readable
    this.#writer = writable.getWriter()
    this.#writer.closed.catch(() => {
      this.#gone = true
      onGone()
    })
  }

  get gone(): boolean {
    return this.#gone
  }

  add(text: string): void {
    this.#pending += text
    if (this.#writing !== null || this.#gap !== null || this.#pending === '') return
    const wait_ms = this.#written_ms + gap_ms - Date.now()
    if (wait_ms <= 0) void this.#write()
    else this.#gap = setTimeout(() => void this.#write(), wait_ms)
  }

  get full(): boolean {
    return this.#pending.length > pending_chars_max
  }

  async room(): Promise<void> {
    while (this.full && !this.#gone) await this.#write()
  }

  /** Adds `text` whenever nothing was written for so long; replaces the one before. */
  beat(text: string, every_ms: number): void {
    const again = (wait_ms: number) => {
      this.#beat = setTimeout(() => {
        const rest_ms = this.#written_ms + every_ms - Date.now()
        if (rest_ms <= 0 && this.#writing === null) this.add(text)
        again(rest_ms > 0 ? rest_ms : every_ms)
      }, wait_ms)
    }
    this.#stopBeat()
    again(every_ms)
  }

  async end(): Promise<void> {
    this.#stopBeat()
    while (this.#pending !== '' && !this.#gone) await this.#write()
    await this.#writer.close().catch(() => undefined)
  }

  /** All that is pending, once what was written before has been taken. */
  async #write(): Promise<void> {
    if (this.#gap !== null) clearTimeout(this.#gap)
    this.#gap = null
    if (this.#writing !== null) return this.#writing
    const bytes = this.#encoder.encode(this.#pending)
    this.#pending = ''
    this.#written_ms = Date.now()
    // Whether it failed is for `closed` to say.
    this.#writing = this.#writer.write(bytes).catch(() => undefined)
    await this.#writing
    this.#writing = null
    if (!this.#gone) this.add('')
  }

  #stopBeat(): void {
    if (this.#beat !== null) clearTimeout(this.#beat)
    this.#beat = null
  }
}
