/**
 * Finds tool calls in text as it comes (their form: src/grammar/tool-calls.ts). The grammar has seen to it that what
 * follows `<tool_call>` is a call; of one that was cut short, what there is of its arguments is given out, as OpenAI does.
 * All pieces' texts together are the text that came, but for the rest of a frame that was cut short.
 */
import { call_begin, call_end } from '../../src/grammar/tool-calls.ts'

export type Piece =
  | { type: 'content'; text: string }
  /** The beginning of the index-th call. */
  | { type: 'call'; index: number; name: string; text: string }
  | { type: 'arguments'; index: number; text: string }
  /** What stands around calls, and white space between them. */
  | { type: 'frame'; text: string }

const call_head = /^\s*\{"name": "([^"]*)", "arguments": /

export class ToolCallReader {
  #calls = 0
  #held = ''
  #state: 'content' | 'head' | 'arguments' | 'tail' = 'content'
  readonly #value = new JsonEnd()

  /** Whether there was any call. */
  get called(): boolean {
    return this.#calls > 0
  }

  push(text: string): Piece[] {
    this.#held += text
    const pieces: Piece[] = []
    for (let state; state !== this.#state;) {
      state = this.#state
      pieces.push(...this.#step())
    }
    return pieces
  }

  /** The text has ended. */
  flush(): Piece[] {
    if (this.#state !== 'content' || this.#betweenCalls(this.#held)) return []
    return this.#content(this.#held)
  }

  #step(): Piece[] {
    switch (this.#state) {
      case 'content': {
        const begin = this.#held.indexOf(call_begin)
        if (begin < 0) return this.#freeContent()
        const before = this.#held.slice(0, begin)
        this.#held = this.#held.slice(begin + call_begin.length)
        this.#state = 'head'
        if (this.#betweenCalls(before)) return [{ type: 'frame', text: before + call_begin }]
        return [...this.#content(before), { type: 'frame', text: call_begin }]
      }
      case 'head': {
        const [head, name] = call_head.exec(this.#held) ?? []
        if (head === undefined || name === undefined) return []
        this.#held = this.#held.slice(head.length)
        this.#state = 'arguments'
        this.#value.reset()
        return [{ type: 'call', index: this.#calls++, name, text: head }]
      }
      case 'arguments': {
        const end = this.#value.find(this.#held)
        const text = this.#held.slice(0, end ?? undefined)
        this.#held = this.#held.slice(text.length)
        if (end !== null) this.#state = 'tail'
        return text === '' ? [] : [{ type: 'arguments', index: this.#calls - 1, text }]
      }
      case 'tail': {
        const end = this.#held.indexOf(call_end)
        if (end < 0) return []
        const text = this.#held.slice(0, end + call_end.length)
        this.#held = this.#held.slice(text.length)
        this.#state = 'content'
        return [{ type: 'frame', text }]
      }
    }
  }

  /** All but what may be the beginning of a call, or of white space before one. */
  #freeContent(): Piece[] {
    let keep = Math.min(this.#held.length, call_begin.length - 1)
    while (!call_begin.startsWith(this.#held.slice(this.#held.length - keep))) keep--
    const free = this.#held.slice(0, this.#held.length - keep)
    if (this.#betweenCalls(free)) return []
    this.#held = this.#held.slice(free.length)
    return this.#content(free)
  }

  #betweenCalls = (text: string) => this.#calls > 0 && text.trim() === ''
  #content = (text: string): Piece[] => (text === '' ? [] : [{ type: 'content', text }])
}

/** Where a JSON value ends, in pieces of text. */
class JsonEnd {
  #depth = 0
  #inString = false
  #escaped = false

  reset(): void {
    this.#depth = 0
    this.#inString = false
    this.#escaped = false
  }

  /** @returns the place after its last character; null: it goes on. */
  find(text: string): number | null {
    for (let at = 0; at < text.length; at++) {
      const character = text[at]
      if (this.#escaped) this.#escaped = false
      else if (this.#inString) {
        if (character === '\\') this.#escaped = true
        else if (character === '"') this.#inString = false
      } else if (character === '"') this.#inString = true
      else if (character === '{' || character === '[') this.#depth++
      else if (character === '}' || character === ']') this.#depth--
      // What follows a value that is no object or list is the call's own brace.
      if (this.#depth < 0) return at
      if (
        this.#depth === 0 &&
        !this.#inString &&
        (character === '}' || character === ']' || character === '"')
      )
        return at + 1
    }
    return null
  }
}
