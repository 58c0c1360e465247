import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { loadTokenizer, packTokenizer } from '../../../src/tokenizer/compact.ts'
import { openTokenizer } from '../../../src/tokenizer/open.ts'
import { referenceTokenizer, type TokenizerJson } from '../../../src/tokenizer/reference.ts'
import type { Tokenizer } from '../../../src/tokenizer/tokenizer.ts'
import { oddText, oddWellFormedText } from './odd-text.ts'
import { madeVocabulary, qwen2Json, tinyJson } from './vocabularies.ts'

const made = madeVocabulary(
  'abcĠĊ1',
  Array.from({ length: 200 }, (_, i) => [i * 7, i * 13 + (i >> 2)] as const),
).json

const vocabularies: [name: string, json: () => TokenizerJson][] = [
  ['qwen2', qwen2Json],
  ['tiny', tinyJson],
  ['made', () => made],
]

describe.each(vocabularies)('%s', (_name, json) => {
  const compact = loadTokenizer(packTokenizer(json()))
  const reference = referenceTokenizer(json(), 'test')
  describe.each([
    ['compact', compact],
    ['reference', reference],
  ])('%s', (_kind, tokenizer) => {
    const controls = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']

    test('counts its added tokens', () => {
      expect(tokenizer.vocabSize).toBe(Object.keys(json().model.vocab).length + 3)
    })

    test('finds control tokens by name only', () => {
      const ids = controls.map((name) => tokenizer.specialId(name))
      expect(ids).toEqual([3, 2, 1].map((back) => tokenizer.vocabSize - back))
      expect(ids.every((id) => tokenizer.isSpecial(id))).toBe(true)
      expect(() => tokenizer.specialId('<|nothing|>')).toThrow('<|nothing|>')
    })

    test('never makes a control token out of text', () => {
      fc.assert(
        fc.property(oddText(20), fc.constantFrom(...controls), oddText(20), (before, control, after) => {
          const ids = tokenizer.encode(before + control + after)
          expect(ids.filter((id) => tokenizer.isSpecial(id))).toEqual([])
        }),
      )
    })

    test('decodes what it encoded, in NFC', () => {
      fc.assert(
        fc.property(oddWellFormedText(), (text) => {
          expect(tokenizer.decode(tokenizer.encode(text))).toBe(text.normalize('NFC'))
        }),
      )
    })

    test('reads lone surrogates as U+FFFD', () => {
      fc.assert(
        fc.property(oddText(), (text) => {
          expect(tokenizer.encode(text)).toEqual(tokenizer.encode(text.toWellFormed()))
        }),
      )
      expect(tokenizer.decode(tokenizer.encode('a\ud83d b\udc00'))).toBe('a\ufffd b\ufffd')
    })

    test('spells every token', () => {
      const seen = new Set<string>()
      for (let id = 0; id < tokenizer.vocabSize; id++) seen.add(tokenizer.tokenBytes(id).toString())
      expect(seen.size).toBe(tokenizer.vocabSize)
    })

    test('spells out the text it encodes', () => {
      const text = 'Grüße, 世界! 👋\n'
      const bytes = tokenizer.encode(text).flatMap((id) => [...tokenizer.tokenBytes(id)])
      expect(bytes).toEqual([...new TextEncoder().encode(text)])
    })

    test('spells a control token by its name and leaves it out of text', () => {
      const id = tokenizer.specialId('<|im_end|>')
      expect(new TextDecoder().decode(tokenizer.tokenBytes(id))).toBe('<|im_end|>')
      expect(tokenizer.decode([...tokenizer.encode('a'), id, ...tokenizer.encode('b')])).toBe('ab')
    })

    test('takes nothing for nothing', () => {
      expect(tokenizer.encode('')).toEqual([])
      expect(tokenizer.decode([])).toBe('')
    })

    test('keeps a byte order mark', () => {
      expect(tokenizer.decode(tokenizer.encode('\ufeffa'))).toBe('\ufeffa')
    })

    test('reads cut characters as U+FFFD', () => {
      const pieces = [...new TextEncoder().encode('€')].map((byte) => idOfByte(tokenizer, byte))
      expect(tokenizer.decode(pieces)).toBe('€')
      expect(tokenizer.decode(pieces.slice(0, 2))).toBe('\ufffd')
      expect(tokenizer.decode(pieces.slice(1))).toBe('\ufffd\ufffd')
    })

    test.each([-1, 1 << 20, 0.5, Number.NaN])('refuses id %d', (id) => {
      expect(() => tokenizer.tokenBytes(id)).toThrow(RangeError)
      expect(() => tokenizer.decode([id])).toThrow(RangeError)
    })

    test('refuses padding rows', () => {
      expect(() => tokenizer.decode([tokenizer.vocabSize])).toThrow(RangeError)
    })
  })

  test('both give the same ids and texts', () => {
    fc.assert(
      fc.property(oddText(120), (text) => {
        expect(compact.encode(text)).toEqual(reference.encode(text))
      }),
      { numRuns: 1500 },
    )
    fc.assert(
      fc.property(fc.array(fc.nat(compact.vocabSize - 1)), (ids) => {
        expect(compact.decode(ids)).toBe(reference.decode(ids))
      }),
    )
  })
})

function idOfByte(tokenizer: Tokenizer, byte: number): number {
  for (let id = 0; id < 256; id++) if (tokenizer.tokenBytes(id)[0] === byte) return id
  throw new Error(`no id for byte ${byte}`)
}

test('a file opens in either form', () => {
  const packed = openTokenizer(packTokenizer(tinyJson()), 'hash')
  const whole = openTokenizer(new TextEncoder().encode(JSON.stringify(tinyJson())).buffer, 'hash')
  expect(packed.encode('Hello there')).toEqual(whole.encode('Hello there'))
  expect(whole.hash).toBe('hash')
  expect(packed.hash).toMatch(/^[0-9a-f]{16}$/)
})

test('the reference refuses what is not byte-level BPE', () => {
  const json = structuredClone(made)
  expect(() => referenceTokenizer({ ...json, decoder: { type: 'Metaspace' } }, '')).toThrow('Metaspace')
})
