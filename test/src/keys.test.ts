import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { isWellFormedKey, keyPrefix, makeKey } from '../../src/keys.ts'

describe('API keys', () => {
  it('are well formed, different each time, and shown only by a prefix', () => {
    const keys = Array.from({ length: 1000 }, () => makeKey('live'))
    expect(new Set(keys).size).toBe(1000)
    for (const key of keys) {
      expect(isWellFormedKey(key)).toBe(true)
      expect(keyPrefix(key)).toMatch(/^qe_live_[0-9A-Za-z]{6}$/)
    }
  })

  it('lose their form by any change of one character', () => {
    const key = makeKey('test')
    fc.assert(
      fc.property(
        fc.integer({ min: 8, max: key.length - 1 }),
        fc.stringMatching(/^[0-9A-Za-z]$/),
        (at, other) => {
          fc.pre(key[at] !== other && key[at] !== '_')
          expect(isWellFormedKey(key.slice(0, at) + other + key.slice(at + 1))).toBe(false)
        },
      ),
    )
  })

  it('are not made of anything else', () => {
    for (const text of ['', 'sk-abc', 'qe_test_', `${makeKey('test')} `, makeKey('test').slice(0, -1)]) {
      expect(isWellFormedKey(text)).toBe(false)
    }
  })
})
