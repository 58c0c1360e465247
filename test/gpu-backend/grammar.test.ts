/** Constrained generation in the real engine with the small model: what comes out is what was asked for, whatever else runs. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { validate, type Schema } from '@cfworker/json-schema'
import * as fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openEngine, type Engine } from '../../gpu-backend/engine.ts'
import { modelCard } from '../../gpu-backend/model-card.ts'
import { GrammarError } from '../../src/grammar/ebnf.ts'
import { writeGrammar, type GrammarSpec } from '../../src/grammar/grammar.ts'
import { referenceTokenizer, type TokenizerJson } from '../../src/tokenizer/reference.ts'
import { generate, greedy, submit, type Ask } from './engine-fixtures.ts'
import { anySchema } from './schemas.ts'
import { read, served, until, type Served } from './service-client.ts'

const dir = join(import.meta.dirname, '../../gpu-backend/models/tiny')
const json = JSON.parse(readFileSync(join(dir, 'tokenizer.json'), 'utf8')) as TokenizerJson
const tokenizer = referenceTokenizer(json, '')
const prompt = tokenizer.encode('user\nWhat is 17 + 25?\nassistant\n')
const sampled = { temperature: 1, ignore_eos: false, max_tokens: 200, seed: 1 }

let engine: Engine
beforeAll(async () => {
  engine = await openEngine({ modelDir: dir, device: 'cpu', threads: 1, kvMemoryMb: 64, checkWhenIdle: true })
})
afterAll(() => engine.close())

const strict = (schema: unknown): GrammarSpec => ({ type: 'json_schema', schema, strict: true })

async function answer(grammar: GrammarSpec, sampling: Ask['sampling'] = {}, on = engine) {
  const all = { ...greedy, ...sampled, ...sampling, grammar }
  const constraint = await on.constrain(grammar, all, '')
  const { tokens, logprobs, finish } = await generate(on, prompt, { sampling: all, constraint })
  return { text: tokenizer.decode(tokens), tokens, logprobs, reason: finish.reason }
}

const person = {
  type: 'object',
  properties: {
    name: { type: 'string', minLength: 1, maxLength: 12 },
    age: { type: 'integer', minimum: 0, maximum: 120 },
    tags: { type: 'array', items: { enum: ['a', 'b'] }, minItems: 1, maxItems: 3 },
  },
  required: ['name', 'age', 'tags'],
  additionalProperties: false,
}

describe('an answer', () => {
  it('is valid by its schema, greedy or sampled, and ends by itself', async () => {
    for (const sampling of [
      { temperature: 0 },
      { seed: 1 },
      { seed: 2, top_k: 5 },
      { seed: 3, top_p: 0.5 },
    ]) {
      const { text, reason } = await answer(strict(person), sampling)
      expect(reason).toBe('stop')
      expect(validate(JSON.parse(text), person as Schema)).toMatchObject({ valid: true })
    }
  })

  it.each<[string, GrammarSpec, RegExp]>([
    ['a pattern', { type: 'regex', pattern: '[A-Z]{3}-\\d{2,4}' }, /^[A-Z]{3}-\d{2,4}$/],
    ['one of a few', { type: 'choice', choices: ['yes', 'no', 'I do not know'] }, /^(yes|no|I do not know)$/],
    ['a grammar', { type: 'ebnf', grammar: 'root ::= "<" [a-c]{2,3} ">"' }, /^<[a-c]{2,3}>$/],
  ])('is %s', async (_, grammar, form) => {
    for (const seed of [1, 2, 3]) expect((await answer(grammar, { seed })).text).toMatch(form)
  })

  it('of a schema that holds itself', async () => {
    const schema = {
      $ref: '#/$defs/node',
      $defs: {
        node: {
          type: 'object',
          properties: { next: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] } },
          required: ['next'],
          additionalProperties: false,
        },
      },
    }
    // The model is in no hurry to end it; a bias for "null" is.
    const bias = Object.fromEntries(tokenizer.encode('null').map((token) => [token, 20]))
    const { text, reason } = await answer(strict(schema), { seed: 4, logit_bias: bias })
    expect(reason).toBe('stop')
    expect(validate(JSON.parse(text), schema as Schema).valid).toBe(true)
  })

  it('ends when nothing may follow, whatever else says that it must not', async () => {
    const grammar: GrammarSpec = { type: 'choice', choices: ['yes'] }
    for (const more of [{ ignore_eos: true }, { min_tokens: 50 }])
      expect(await answer(grammar, more)).toMatchObject({ text: 'yes', reason: 'stop' })
  })

  it('is cut by max_tokens, no longer than that', async () => {
    const { tokens, reason } = await answer({ type: 'json_object' }, { max_tokens: 2 })
    expect([tokens.length, reason]).toEqual([2, 'length'])
  })

  it('has log-probabilities among what is allowed: one choice is certain', async () => {
    const { logprobs } = await answer({ type: 'choice', choices: ['yes'] }, { logprobs: 5 })
    expect(logprobs.length).toBeGreaterThan(0)
    for (const { top } of logprobs)
      expect(top.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0)).toBeCloseTo(1, 4)
  })
})

describe('whatever the schema', () => {
  it('the answer is valid, or cut by its length', async () => {
    let served = 0
    await fc.assert(
      fc.asyncProperty(anySchema, fc.nat(1000), async (schema, seed) => {
        const grammar = strict(schema)
        try {
          writeGrammar(grammar)
        } catch (error) {
          expect(error).toBeInstanceOf(GrammarError)
          return
        }
        served++
        const { text, reason } = await answer(grammar, { seed, max_tokens: 120 })
        if (reason === 'length') return
        const parsed: unknown = JSON.parse(text)
        expect(validate(parsed, schema as Schema), `${JSON.stringify(schema)}\n${text}`).toMatchObject({
          valid: true,
        })
      }),
      { numRuns: 150, seed: 7 },
    )
    expect(served).toBeGreaterThan(80)
  })
})

describe('beside others', () => {
  it('a constrained answer is the same alone, in a crowd, and after preemption; nobody waits for it', async () => {
    const small = await openEngine({
      modelDir: dir,
      device: 'cpu',
      threads: 1,
      kvMemoryMb: 1,
      checkWhenIdle: true,
    })
    try {
      const lone = await answer(strict(person), { seed: 5 }, small)
      const free = { sampling: { max_tokens: 150, temperature: 1, seed: 9 } }
      const alone = await generate(small, prompt, free)
      const crowd = await Promise.all([
        ...Array.from({ length: 6 }, async () => answer(strict(person), { seed: 5 }, small)),
        ...Array.from({ length: 6 }, async () => generate(small, prompt, free)),
      ])
      for (const one of crowd.slice(0, 6)) expect(one.tokens).toEqual(lone.tokens)
      for (const one of crowd.slice(6)) expect(one.tokens).toEqual(alone.tokens)
      expect(small.stats().preemptions).toBeGreaterThan(0)
      small.checkIntegrity()
    } finally {
      await small.close()
    }
  })

  it('a mask that never comes costs the others nothing, and cancelling ends the wait', async () => {
    const constraint = {
      first: new Uint32Array(80).fill(0xffffffff),
      accept: () => undefined,
      close: () => undefined,
    }
    const again = { sampling: { max_tokens: 50 } }
    const repeating = [...prompt, ...prompt]
    const before = engine.stats().draftedTokens
    const alone = await generate(engine, repeating, again)
    const guessed = engine.stats().draftedTokens - before
    expect(guessed).toBeGreaterThan(0)
    const stuck = submit(engine, prompt, { sampling: { max_tokens: 50 }, constraint })
    await until(() => engine.stats().generatedTokens > 0)
    const beside = engine.stats().draftedTokens
    expect((await generate(engine, repeating, again)).tokens).toEqual(alone.tokens)
    // A step may have gone by before the other one waited.
    expect(engine.stats().draftedTokens - beside).toBeGreaterThanOrEqual(guessed - 6)
    engine.cancel(stuck.handle)
    const { finish } = await stuck.answer
    expect(finish).toMatchObject({ reason: 'cancelled', usage: { completion: 1 } })
  })

  it('a deadline ends the wait for a mask', async () => {
    const constraint = {
      first: new Uint32Array(80).fill(0xffffffff),
      accept: () => undefined,
      close: () => undefined,
    }
    const { finish } = await submit(engine, prompt, { constraint, deadlineMs: 50 }).answer
    expect(finish.reason).toBe('deadline')
  })
})

describe('over the wire', () => {
  let service: Served
  beforeAll(async () => {
    service = await served(engine, await modelCard({ id: 'tiny', dir }))
  })
  afterAll(() => service.close())
  let id = 0
  /** @param grammar as JSON where it nests too deep to be written here. */
  const ask = async (grammar: unknown, sampling: object = {}) => {
    const request = {
      request_id: `grammar-${id++}`,
      model: 'tiny',
      token_ids: prompt,
      sampling: { temperature: 1, max_tokens: 100, seed: 1, ...sampling, grammar: '?' },
    }
    const text = typeof grammar === 'string' ? grammar : JSON.stringify(grammar)
    return service.post(
      '/v1/generate',
      JSON.stringify(request).replace('"?"', () => text),
    )
  }
  const refused = async (grammar: unknown) => {
    const response = await ask(grammar)
    expect(response.status).toBe(400)
    return ((await response.json()) as { error: { message: string; param: string } }).error
  }

  it('several answers have a constraint each', async () => {
    const response = await ask({ type: 'regex', pattern: '[a-z]{4}' }, { n: 3 })
    expect((await read(response)).finish?.finish_reason).toBe('stop')
  })

  const deep = `{"type":"json_schema","strict":true,"schema":${'{"items":'.repeat(10_000)}{}${'}'.repeat(10_001)}`
  it.each<[string, unknown, string]>([
    ['10,000 levels', deep, 'nests deeper than 64 levels'],
    ['an impossible length', strict({ type: 'string', minLength: 5, maxLength: 2 }), 'no finite text'],
    ['an empty enum', strict({ type: 'object', properties: { a: { enum: [] } } }), "'enum' allows no value"],
    [
      'a reference to itself',
      strict({ $ref: '#/$defs/a', $defs: { a: { $ref: '#/$defs/a' } } }),
      'no finite text',
    ],
    ['a keyword that a grammar cannot say', strict({ not: { type: 'string' } }), "'not' is not supported"],
    ['a broken pattern', { type: 'regex', pattern: '((' }, 'Unterminated group'],
    ['look-around', { type: 'regex', pattern: '(?=a)b' }, '(?=a)'],
    ['repetition upon repetition', { type: 'regex', pattern: '(((a{1,900}){1,900}){1,900})' }, 'unfold'],
    ['a broken grammar', { type: 'ebnf', grammar: 'root ::= (' }, 'EBNF'],
    ['a type that is none', { type: 'prolog' }, 'sampling.grammar'],
    ['a large schema', strict({ enum: ['x'.repeat(300_000)] }), '262144 are served'],
  ])('%s is refused by name, and the next request is served', async (_, grammar, message) => {
    const { message: said, param } = await refused(grammar)
    expect(said).toContain(message)
    expect(param).toContain('sampling.grammar')
    expect((await read(await ask({ type: 'choice', choices: ['ok'] }))).finish?.finish_reason).toBe('stop')
  })

  it('a pattern that takes others exponential time is served', async () => {
    const { finish } = await read(await ask({ type: 'regex', pattern: '(a+)+b' }, { logit_bias: {} }))
    expect(finish).not.toBeNull()
  })

  it('answers under way survive the thread that another grammar cost', async () => {
    const lone = await read(await ask(strict(person), { seed: 11 }))
    const running = ask(strict(person), { seed: 11 })
    await refused({ type: 'ebnf', grammar: `root ::= undefined_rule_${id}` })
    expect((await read(await running)).tokens).toEqual(lone.tokens)
    await until(() => engine.stats().running === 0)
  })
})
