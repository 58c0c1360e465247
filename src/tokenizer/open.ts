/** The tokenizer of a checkpoint, whichever form the file has: packed, or tokenizer.json where it could not be packed. */
import { loadTokenizer } from './compact.ts'
import { referenceTokenizer, type TokenizerJson } from './reference.ts'
import type { Tokenizer } from './tokenizer.ts'

const BRACE = 0x7b

export function openTokenizer(file: ArrayBuffer | Uint8Array, hash: string): Tokenizer {
  const bytes = file instanceof Uint8Array ? file : new Uint8Array(file)
  if (bytes[0] !== BRACE) return loadTokenizer(bytes)
  return referenceTokenizer(JSON.parse(new TextDecoder().decode(bytes)) as TokenizerJson, hash)
}
