/**
 * The tokenizer of any other byte-level BPE checkpoint, on @huggingface/tokenizers: slower to load (0.3 s and some 50 MB for a Qwen
 * vocabulary), the same contract. Its pre-tokenizer, merges and decoding are the library's; ours are the normalizer where that is
 * NFC (the library's is quadratic on runs of marks) and the added tokens, which the library would find in text.
 */
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers'
import { bytesOfTokenString } from './byte-alphabet.ts'
import { normalize } from './normalize.ts'
import { decoding, unknownId, type AddedToken, type Tokenizer } from './tokenizer.ts'

export interface TokenizerJson {
  model: { type: string; vocab: Record<string, number>; merges: readonly unknown[] }
  normalizer: { type: string } | null
  pre_tokenizer: object | null
  post_processor: object | null
  decoder: { type: string } | null
  added_tokens?: readonly { id: number; content: string; special: boolean }[]
}

export function referenceTokenizer(json: TokenizerJson, hash: string): Tokenizer {
  if (json.model.type !== 'BPE' || json.decoder?.type !== 'ByteLevel') {
    throw new Error(
      `tokenizer: ${json.model.type} with decoder ${String(json.decoder?.type)}; only byte-level BPE is supported`,
    )
  }
  const added = (json.added_tokens ?? []).map(({ id, content, special }): AddedToken => ({
    id,
    text: content,
    special,
  }))
  const addedById = new Map(added.map((token) => [token.id, new TextEncoder().encode(token.text)]))
  // Without its added tokens the library has no way to make one from text.
  const vocab = Object.fromEntries(Object.entries(json.model.vocab).filter(([, id]) => !addedById.has(id)))
  const nfc = json.normalizer?.type === 'NFC'
  const library = new HuggingFaceTokenizer(
    { ...json, model: { ...json.model, vocab }, normalizer: nfc ? null : json.normalizer, added_tokens: [] },
    {},
  )
  const vocabSize = Math.max(-1, ...addedById.keys(), maxOf(Object.values(vocab))) + 1

  const tokenBytes = (id: number): Uint8Array => {
    const name = addedById.get(id)
    if (name !== undefined) return name
    const token = library.id_to_token(id)
    if (token === undefined) throw unknownId(id, vocabSize)
    return bytesOfTokenString(token) ?? new TextEncoder().encode(token)
  }

  return {
    vocabSize,
    hash,
    tokenBytes,
    ...decoding(added, tokenBytes),
    encode(text) {
      const normal = nfc ? normalize(text) : text.toWellFormed()
      return normal === '' ? [] : library.encode(normal, { add_special_tokens: false }).ids
    },
  }
}

const maxOf = (ids: readonly number[]): number => ids.reduce((most, id) => Math.max(most, id), -1)
