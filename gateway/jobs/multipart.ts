/**
 * multipart/form-data as a stream (RFC 7578): a part's body is given in pieces as they come, so that a file of 100 MB
 * passes through an isolate of 128. Only what could be the beginning of the next boundary is held back.
 */
import { ApiError } from '../../src/errors.ts'
import { received } from '../body-text.ts'

export interface Part {
  name: string
  filename: string | null
  /** To be read to its end before the next part. */
  body: AsyncGenerator<Uint8Array<ArrayBuffer>>
}

const header_bytes_max = 16 * 1024
const headers_max = 32
const utf8 = new TextEncoder()

const broken = (why: string) =>
  new ApiError('invalid_value', `The multipart body is not well-formed: ${why}.`)

export async function* readMultipart(
  body: ReadableStream<Uint8Array>,
  contentType: string,
): AsyncGenerator<Part> {
  const boundary = /^multipart\/form-data\s*;.*?boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))/i.exec(
    contentType,
  )
  if (boundary === null) throw broken('the content type must be multipart/form-data with a boundary')
  const source = new Source(body)
  const delimiter = utf8.encode(`\r\n--${boundary[1] ?? boundary[2]}`)
  // The first delimiter has no line end in front of it.
  source.unread(utf8.encode('\r\n'))
  for await (const _ of source.until(delimiter));
  for (;;) {
    if (await source.closes()) return
    if ((await source.line()) !== '') throw broken('something follows a boundary')
    const headers: string[] = []
    for (let line = await source.line(); line !== ''; line = await source.line()) {
      if (headers.push(line) > headers_max) throw broken('a part has too many headers')
    }
    const disposition = headers.find((line) => /^content-disposition:/i.test(line)) ?? ''
    const part: Part = {
      name: /[; ]name="([^"]*)"/i.exec(disposition)?.[1] ?? '',
      filename: /[; ]filename="([^"]*)"/i.exec(disposition)?.[1] ?? null,
      body: source.until(delimiter),
    }
    yield part
    for await (const _ of part.body);
  }
}

export async function partText(part: Part, bytes_max = 1024): Promise<string> {
  const decoder = new TextDecoder()
  let text = ''
  for await (const piece of part.body) {
    text += decoder.decode(piece, { stream: true })
    if (text.length > bytes_max) throw broken(`'${part.name}' is longer than ${bytes_max} bytes`)
  }
  return text + decoder.decode()
}

class Source {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>
  #held: Uint8Array<ArrayBuffer> = new Uint8Array()

  constructor(body: ReadableStream<Uint8Array>) {
    this.#reader = body.getReader()
  }

  unread(bytes: Uint8Array): void {
    this.#held = joined(bytes, this.#held)
  }

  /** Behind a delimiter: whether it was the last, which '--' follows. */
  async closes(): Promise<boolean> {
    while (this.#held.length < 2) await this.#more()
    return this.#held[0] === 45 && this.#held[1] === 45
  }

  async line(): Promise<string> {
    for (;;) {
      const end = indexOf(this.#held, utf8.encode('\r\n'))
      if (end >= 0) return new TextDecoder().decode(this.#take(end, 2))
      if (this.#held.length > header_bytes_max) throw broken('a header is too long')
      await this.#more()
    }
  }

  async *until(delimiter: Uint8Array): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    for (;;) {
      const at = indexOf(this.#held, delimiter)
      if (at >= 0) {
        const last = this.#take(at, delimiter.length)
        if (last.length > 0) yield last
        return
      }
      const safe = this.#held.length - delimiter.length + 1
      if (safe > 0) yield this.#take(safe, 0)
      await this.#more()
    }
  }

  #take(length: number, skip: number): Uint8Array<ArrayBuffer> {
    const taken = this.#held.slice(0, length)
    this.#held = this.#held.slice(length + skip)
    return taken
  }

  async #more(): Promise<void> {
    const { value, done } = await received(this.#reader.read())
    if (done) throw broken('it ends early')
    this.#held = joined(this.#held, value)
  }
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(a.length + b.length)
  both.set(a)
  both.set(b, a.length)
  return both
}

function indexOf(bytes: Uint8Array, wanted: Uint8Array): number {
  const first = wanted[0] ?? 0
  for (let at = bytes.indexOf(first); at >= 0; at = bytes.indexOf(first, at + 1)) {
    if (at + wanted.length > bytes.length) return -1
    let same = 1
    while (same < wanted.length && bytes[at + same] === wanted[same]) same++
    if (same === wanted.length) return at
  }
  return -1
}
