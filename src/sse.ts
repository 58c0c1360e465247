/**
 * Server-Sent Events, both directions (https://html.spec.whatwg.org/multipage/server-sent-events.html).
 * The parser takes bytes in any chunking, CR, LF or CRLF line ends and a leading BOM; it bounds what one event may
 * hold, because a peer that never sends a blank line must not fill an isolate.
 */
export interface SseEvent {
  event: string
  data: string
  id: string | null
}

const event_chars_max = 16 * 1024 * 1024

export function encodeSse(event: { data: string; event?: string; id?: string }): string {
  const lines: string[] = []
  if (event.id !== undefined) lines.push(`id: ${event.id}`)
  if (event.event !== undefined) lines.push(`event: ${event.event}`)
  for (const line of event.data.split(/\r\n|\r|\n/)) lines.push(`data: ${line}`)
  return lines.join('\n') + '\n\n'
}

/** A comment: keeps a quiet connection open and finds out that the other side has gone. */
export const sse_ping = ': ping\n\n'

export class SseParser {
  #decoder = new TextDecoder()
  #rest = ''
  #data: string[] = []
  #size = 0
  #event = ''
  #id: string | null = null

  /** Events completed by this chunk, in order. Throws RangeError when one event outgrows 16 Mi characters. */
  push(chunk: Uint8Array): SseEvent[] {
    return this.pushText(this.#decoder.decode(chunk, { stream: true }))
  }

  pushText(text: string): SseEvent[] {
    const events: SseEvent[] = []
    const buffer = this.#rest + text
    let start = 0
    while (start < buffer.length) {
      const end = lineEnd(buffer, start)
      if (end === null) break
      this.#line(buffer.slice(start, end.at), events)
      start = end.next
    }
    this.#rest = buffer.slice(start)
    if (this.#size + this.#rest.length > event_chars_max) throw new RangeError('SSE event too large')
    return events
  }

  #line(line: string, events: SseEvent[]): void {
    if (line === '') {
      if (this.#data.length > 0) {
        events.push({
          event: this.#event === '' ? 'message' : this.#event,
          data: this.#data.join('\n'),
          id: this.#id,
        })
      }
      this.#data = []
      this.#size = 0
      this.#event = ''
      return
    }
    const colon = line.indexOf(':')
    if (colon === 0) return
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1)
    if (field === 'data') {
      this.#data.push(value)
      this.#size += value.length
    } else if (field === 'event') this.#event = value
    else if (field === 'id' && !value.includes('\0')) this.#id = value
  }
}

/** A CR at the very end of a buffer waits: the LF that belongs to it may be in the next chunk. */
function lineEnd(text: string, from: number): { at: number; next: number } | null {
  const lf = text.indexOf('\n', from)
  const cr = text.indexOf('\r', from)
  if (cr >= 0 && (lf < 0 || cr < lf)) {
    if (cr === text.length - 1) return null
    return { at: cr, next: text[cr + 1] === '\n' ? cr + 2 : cr + 1 }
  }
  return lf < 0 ? null : { at: lf, next: lf + 1 }
}

/** Reads a response body as events, an item a read (none: a comment); cancels the body when the consumer stops early. */
export async function* readSse(body: ReadableStream<Uint8Array>): AsyncGenerator<SseEvent[]> {
  const parser = new SseParser()
  const reader = body.getReader()
  let ended = false
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) {
        ended = true
        return
      }
      yield parser.push(value)
    }
  } finally {
    if (!ended) await reader.cancel().catch(() => undefined)
  }
}
