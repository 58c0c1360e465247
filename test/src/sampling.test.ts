import { describe, expect, it } from 'vitest'
import { isDeterministic, resolveSampling, Sampling } from '../../src/sampling.ts'

const defaults = { temperature: 0.7, top_p: 0.8, top_k: 20, repetition_penalty: 1.05 }

describe('resolveSampling', () => {
  it('follows the checkpoint where nothing is asked', () => {
    expect(resolveSampling({}, defaults, 100)).toMatchObject({ ...defaults, max_tokens: 100, seed: null })
  })

  it('is purely greedy at temperature 0, whatever else the checkpoint or the caller says of sampling', () => {
    const greedy = resolveSampling({ temperature: 0 }, defaults, 100)
    expect(greedy).toMatchObject({ temperature: 0, top_p: 1, top_k: 0, repetition_penalty: 1 })
    expect(resolveSampling({ temperature: 0, top_p: 0.5, top_k: 3, seed: 9 }, defaults, 100)).toEqual(greedy)
    expect(
      resolveSampling({ temperature: 0, repetition_penalty: 1.2 }, defaults, 100).repetition_penalty,
    ).toBe(1.2)
  })

  it('is greedy, too, where the temperature is too small to divide by', () => {
    expect(resolveSampling({ temperature: 1e-309, seed: 1 }, defaults, 9)).toEqual(
      resolveSampling({ temperature: 0 }, defaults, 9),
    )
  })

  it("takes top_p 0, OpenAI's way to ask for the likeliest token, as top_k 1", () => {
    const sampling = resolveSampling({ top_p: 0, top_k: 9 }, defaults, 9)
    expect(sampling).toMatchObject({ temperature: 0.7, top_p: 1, top_k: 1 })
    expect(Sampling.parse({ top_p: 0 })).toEqual({ top_p: 0 })
  })

  it('calls only greedy or seeded sampling deterministic', () => {
    expect(isDeterministic(resolveSampling({}, defaults, 1))).toBe(false)
    expect(isDeterministic(resolveSampling({ temperature: 0 }, defaults, 1))).toBe(true)
    expect(isDeterministic(resolveSampling({ seed: 0 }, defaults, 1))).toBe(true)
  })
})
