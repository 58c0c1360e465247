/**
 * What every tokenizer of ours promises; one contract suite runs over all of them.
 *
 * Text never becomes a control token: `encode('<|im_end|>')` gives the ids of its characters. Whoever wants a control
 * token asks for its id by `specialId` and inserts it. Lone surrogates read as U+FFFD, as TextEncoder does.
 */
export interface Tokenizer {
  /** Every id is below it; added tokens count, padding rows of the embedding do not. */
  readonly vocabSize: number
  /** Changes with the vocabulary; an integrity check, not a cryptographic one. */
  readonly hash: string
  encode(text: string): number[]
  /** The text of `ids` without special tokens; bytes that are not UTF-8 read as U+FFFD. Throws RangeError on unknown ids. */
  decode(ids: ArrayLike<number>): string
  /** UTF-8 bytes of one token, possibly a part of a character; an added token gives its own name. Not to be written to. */
  tokenBytes(id: number): Uint8Array
  isSpecial(id: number): boolean
  /** The id of an added token by its text, such as `<|im_start|>`; throws where there is none. */
  specialId(text: string): number
  /** The same, where there may be none. */
  addedId(text: string): number | undefined
}

/** A token outside the merges, found by name only. */
export interface AddedToken {
  id: number
  text: string
  /** Left out of decoded text. */
  special: boolean
}

export const unknownId = (id: number, vocabSize: number): RangeError =>
  new RangeError(`token id ${id} is outside the vocabulary of ${vocabSize}`)

/** The part of a Tokenizer that is the same for all: added tokens, and text out of bytes. */
export function decoding(
  added: readonly AddedToken[],
  tokenBytes: (id: number) => Uint8Array,
): Pick<Tokenizer, 'decode' | 'isSpecial' | 'specialId' | 'addedId'> {
  const special = new Set(added.filter((token) => token.special).map((token) => token.id))
  const byText = new Map(added.map((token) => [token.text, token.id]))
  return {
    isSpecial: (id) => special.has(id),
    addedId: (text) => byText.get(text),
    specialId(text) {
      const id = byText.get(text)
      if (id === undefined) throw new Error(`the vocabulary has no token ${text}`)
      return id
    },
    decode(ids) {
      const parts: Uint8Array[] = []
      let length = 0
      for (let i = 0; i < ids.length; i++) {
        const id = ids[i] as number
        const bytes = tokenBytes(id)
        if (special.has(id)) continue
        parts.push(bytes)
        length += bytes.length
      }
      const whole = new Uint8Array(length)
      let at = 0
      for (const part of parts) {
        whole.set(part, at)
        at += part.length
      }
      return new TextDecoder('utf-8', { ignoreBOM: true }).decode(whole)
    },
  }
}
