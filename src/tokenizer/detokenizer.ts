/**
 * Token ids in, text out, as they are generated. A token may end within a character: its bytes wait for the rest, so that no
 * increment splits one, and the increments joined equal `tokenizer.decode` of all the ids. Special tokens give no text.
 */
import type { Tokenizer } from './tokenizer.ts'

export class Detokenizer {
  readonly #tokenizer: Tokenizer
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true })

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer
  }

  /** The text that these ids complete; '' where a character is still open. */
  push(ids: ArrayLike<number>): string {
    let text = ''
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number
      const bytes = this.#tokenizer.tokenBytes(id)
      if (!this.#tokenizer.isSpecial(id)) text += this.#decoder.decode(bytes, { stream: true })
    }
    return text
  }

  /** At the end: U+FFFD for what never became a character. */
  flush(): string {
    return this.#decoder.decode()
  }
}
