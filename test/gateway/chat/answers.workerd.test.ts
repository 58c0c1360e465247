/** Several answers as one stream: its order is its own, whatever the engine's was. */
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Answers, type Delta } from '../../../gateway/chat/answers.ts'
import type { Prompt } from '../../../gateway/chat/prompt.ts'
import type { GenerateEvent } from '../../../src/protocol.ts'
import { resolveSampling } from '../../../src/sampling.ts'
import { idsOf } from '../scripted-backend.ts'

const nothing = { temperature: 0, top_p: 1, top_k: 0, repetition_penalty: 1 }
const prompt = (n: number, stop: string[] = []): Prompt => ({
  tokenIds: [1, 2, 3],
  sharedPrefixTokens: 0,
  sampling: resolveSampling({ n, max_tokens: 50 }, nothing, 100),
  openEnded: false,
  stop,
  template: null,
})
const finish = (
  index: number,
  completion: number,
  finish_reason: 'stop' | 'length' | 'cancelled' = 'stop',
) => ({
  index,
  finish_reason,
  usage: { prompt: 3, cached: index, completion },
  timing: { queue_ms: 0, prefill_ms: 1, decode_ms: 2 },
})
const texts = ['one two three', 'a longer answer than the others', '']
/** By answer, one token an event. */
const lanes = texts.map((text, index): GenerateEvent[] => {
  const ids = idsOf(text)
  return [...ids.map((id) => ({ index, token_ids: [id] })), finish(index, ids.length)]
})

/** @param order which lane's next event comes */
function run(order: number[], batch: number): Delta[] {
  const answers = new Answers(prompt(3), [])
  const left = lanes.map((lane) => [...lane])
  const events = [...order, ...lanes.flatMap((lane, at) => lane.map(() => at))].flatMap(
    (at) => left[at]?.shift() ?? [],
  )
  const deltas: Delta[] = []
  for (let at = 0; at < events.length; at += batch) deltas.push(...answers.push(events.slice(at, at + batch)))
  return deltas
}

describe('three answers', () => {
  it('come out alike, however the engine’s steps and the reads fell', () => {
    const { timing: _, ...end } = { timing: null, ...run([], 100).at(-1) }
    const expected = run([], 100).slice(0, -1)
    expect(expected.slice(0, 3).map((delta) => delta.type !== 'finish' && delta.index)).toEqual([0, 1, 2])
    expect(end).toMatchObject({ usage: { prompt: 3, cached: 0, completion: lanes.flat().length - 3 } })
    fc.assert(
      fc.property(fc.array(fc.nat(2), { maxLength: 60 }), fc.integer({ min: 1, max: 7 }), (order, batch) => {
        const deltas = run(order, batch)
        expect(deltas.slice(0, -1)).toEqual(expected)
        expect(deltas.at(-1)).toMatchObject(end)
      }),
    )
    for (const [index, text] of texts.entries()) {
      const own = expected.filter((delta) => delta.type !== 'finish' && delta.index === index)
      expect(own.map((delta) => (delta.type === 'finish' ? '' : delta.text)).join('')).toBe(text)
    }
  })
})

describe('a stop string', () => {
  const ids = idsOf('one two three four')
  const before = (all: Delta[]) => all.map((delta) => (delta.type === 'finish' ? '' : delta.text)).join('')

  it('costs what was read up to it, whether the engine’s end was in the same read or not', () => {
    const apart = new Answers(prompt(1, ['two']), [])
    const deltas = apart.push(ids.map((id) => ({ index: 0, token_ids: [id] })))
    expect([before(deltas), apart.over, apart.newlyStopped()]).toEqual(['one ', true, [0]])
    const { usage } = apart.endedByStop(2)
    for (const reason of ['stop', 'length', 'cancelled'] as const) {
      const together = new Answers(prompt(1, ['two']), [])
      const all = together.push([{ index: 0, token_ids: ids }, finish(0, ids.length, reason)])
      expect(before(all)).toBe('one ')
      expect(all.at(-1)).toMatchObject({ type: 'finish', usage: { completion: usage.completion } })
      expect(all.at(-2)).toMatchObject({ type: 'end', reason: 'stop' })
    }
  })

  it('ends one of two, and the other goes on', () => {
    const answers = new Answers(prompt(2, ['two']), [])
    answers.push([{ index: 1, token_ids: ids }])
    expect([answers.over, answers.newlyStopped(), answers.newlyStopped()]).toEqual([false, [1], []])
    const rest = answers.push([{ index: 0, token_ids: idsOf('x') }, finish(1, 4, 'cancelled'), finish(0, 1)])
    expect(rest.filter(({ type }) => type === 'end')).toHaveLength(2)
    expect(rest.at(-1)).toMatchObject({ type: 'finish', cut_short: false })
  })
})

describe('a stop string and tool calls', () => {
  const call = (name: string) =>
    `<tool_call>\n{"name": "${name}", "arguments": {"to": "END of <b>"}}\n</tool_call>`
  const given = (text: string, stop: string[], withTools = true) => {
    const asked = prompt(1, stop)
    const grammar = {
      type: 'tool_calls' as const,
      tools: [],
      optional: true,
      parallel: true,
      otherwise: null,
    }
    const answers = new Answers(
      withTools ? { ...asked, sampling: { ...asked.sampling, max_tokens: 500, grammar } } : asked,
      [],
    )
    const ids = idsOf(text)
    const deltas = ids.flatMap((id) => answers.push([{ index: 0, token_ids: [id] }]))
    const whole = answers.over ? deltas : [...deltas, ...answers.push([finish(0, ids.length)])]
    return whole.map((delta) => (delta.type === 'finish' ? '' : delta.text)).join('')
  }
  const calls = `${call('f')}\n${call('g')}`

  it.each([['\n'], ['END'], ['<'], ['tool_call'], ['"}'], ['f']])(
    '%j ends no call, nor what stands between two',
    (stop) => {
      expect(given(calls, [stop])).toBe(calls)
      expect(given(calls, [stop], false)).not.toBe(calls)
    },
  )

  it('ends the content before and after', () => {
    expect(given(`Now, END ${calls}`, ['END'])).toBe('Now, ')
    expect(given(`Now, EN${calls}D`, ['END'])).toBe(`Now, EN${calls}D`)
    expect(given(`${calls}\nAll END done`, ['END'])).toBe(`${calls}\nAll `)
    expect(given(`a < b <tool`, ['<'])).toBe('a ')
    expect(given('a <tool', ['<tool'])).toBe('a ')
  })
})

it('is cut short where limits ended an answer before what was asked', () => {
  const answers = new Answers(prompt(1), [])
  const deltas = answers.push([{ index: 0, token_ids: idsOf('x') }, finish(0, 1, 'length')])
  expect(deltas.at(-1)).toMatchObject({ cut_short: true })
})
