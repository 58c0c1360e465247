import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import { loadTokenizer, packTokenizer } from '../../../src/tokenizer/compact.ts'
import { Detokenizer } from '../../../src/tokenizer/detokenizer.ts'
import { oddText } from './odd-text.ts'
import { madeVocabulary, qwen2Json } from './vocabularies.ts'

const qwen2 = loadTokenizer(packTokenizer(qwen2Json()))
/** Without merges every token is one byte: every character arrives in pieces. */
const bytes = loadTokenizer(packTokenizer(madeVocabulary('a', []).json))

test.each([
  ['whole words', qwen2],
  ['single bytes', bytes],
])('%s: the increments join to the decoded text and never split a character', (_name, tokenizer) => {
  fc.assert(
    fc.property(oddText(), (text) => {
      const ids = tokenizer.encode(text)
      const detokenizer = new Detokenizer(tokenizer)
      const increments = ids.map((id) => detokenizer.push([id]))
      expect(detokenizer.flush()).toBe('')
      expect(increments.join('')).toBe(tokenizer.decode(ids))
      expect(increments.every((increment) => increment.isWellFormed())).toBe(true)
      expect(increments.join('').includes('\ufffd')).toBe(text.toWellFormed().includes('\ufffd'))
    }),
  )
})

test('any ids, in any grouping, give the decoded text', () => {
  fc.assert(
    fc.property(fc.array(fc.array(fc.nat(qwen2.vocabSize - 1))), (groups) => {
      const detokenizer = new Detokenizer(qwen2)
      const text = groups.map((ids) => detokenizer.push(ids)).join('') + detokenizer.flush()
      expect(text).toBe(qwen2.decode(groups.flat()))
    }),
  )
})

test('a character comes with its last byte', () => {
  const detokenizer = new Detokenizer(bytes)
  expect(bytes.encode('a👋b').map((id) => detokenizer.push([id]))).toEqual(['a', '', '', '', '👋', 'b'])
})

test('what never became a character ends as U+FFFD, and the next text starts anew', () => {
  const detokenizer = new Detokenizer(bytes)
  expect(detokenizer.push(bytes.encode('👋').slice(0, 3))).toBe('')
  expect(detokenizer.flush()).toBe('\ufffd')
  expect(detokenizer.push(bytes.encode('\ufeffé'))).toBe('\ufeffé')
})

test('special tokens give no text, not even within a character', () => {
  const detokenizer = new Detokenizer(bytes)
  const [a, b, c] = bytes.encode('€') as [number, number, number]
  const end = bytes.specialId('<|im_end|>')
  expect(detokenizer.push([a, end, b, end, c, end])).toBe('€')
})

test('refuses unknown ids', () => {
  expect(() => new Detokenizer(bytes).push([bytes.vocabSize])).toThrow(RangeError)
})
