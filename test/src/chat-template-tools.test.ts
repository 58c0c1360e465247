/** Tools in the prompt, against the template of the Qwen2.5 checkpoints' own tokenizer_config.json. */
import { readFileSync } from 'node:fs'
import { Template } from '@huggingface/jinja'
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { renderChat, type ChatMessage, type ChatTool } from '../../src/chat-template.ts'
import { loadTokenizer, packTokenizer } from '../../src/tokenizer/compact.ts'
import { oddText } from './tokenizer/odd-text.ts'
import { qwen2Json } from './tokenizer/vocabularies.ts'

const template = new Template(
  readFileSync(new URL('../golden/tokenizer/qwen2.5-chat-template.jinja', import.meta.url), 'utf8'),
)
const default_system = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'

/** Qwen2's vocabulary, and with the tags that Qwen2.5 adds as tokens to it. */
const plain = qwen2Json()
const added = plain.added_tokens ?? []
const tagged = {
  ...plain,
  added_tokens: [
    ...added,
    ...['<tool_call>', '</tool_call>'].map((content, at) => ({
      ...added[0]!,
      id: 151_646 + at,
      content,
      special: false,
    })),
  ],
}

/** Nothing that the reference takes for a control token or a tag. */
const text = fc.oneof(
  oddText(20).map((odd) => odd.toWellFormed().replaceAll(/<[|/t][^>]*>/g, '')),
  fc.constantFrom('', ' ', '\n', 'x\n', '\n\nx', '{"a": 1}', "it's", '7'),
)
const value = fc
  .jsonValue({ maxDepth: 2, noUnicodeString: false })
  .filter((json) => !/[<>]|e[+-]|\d{16}|-0|\.\d{8}/.test(JSON.stringify(json)))
const call = fc.record({
  name: fc.constantFrom('get_weather', 'add'),
  arguments: fc.dictionary(fc.constantFrom('a', 'city', 'é'), value, { noNullPrototype: true }),
})
const message: fc.Arbitrary<ChatMessage> = fc.oneof(
  fc.record({ role: fc.constantFrom('system' as const, 'user' as const, 'tool' as const), content: text }),
  fc.record({
    role: fc.constant('assistant' as const),
    content: text,
    toolCalls: fc.array(call, { maxLength: 2 }),
  }),
)
const tool: fc.Arbitrary<ChatTool> = fc
  .record({
    name: fc.constantFrom('get_weather', 'add'),
    description: text,
    parameters: fc.constant({
      type: 'object',
      properties: { city: { type: 'string', enum: ['Köln', 'x'] } },
      required: ['city'],
    }),
  })
  .map((fields) => ({ type: 'function', function: fields }))

describe.each([
  ['a vocabulary without the tags', plain],
  ['a vocabulary with them', tagged],
])('equals the checkpoint’s own template, on %s', (_, json) => {
  const ours = loadTokenizer(packTokenizer(json))
  const library = new HuggingFaceTokenizer(json, {})

  test('for tools, calls and results', () => {
    fc.assert(
      fc.property(
        fc.array(message, { minLength: 1, maxLength: 6 }),
        fc.array(tool, { maxLength: 3 }),
        (chat, tools) => {
          const messages = chat.map(({ role, content, ...more }) => {
            const calls =
              'toolCalls' in more ? more.toolCalls?.map((made) => ({ type: 'function', function: made })) : []
            return { role, content, ...(calls?.length ? { tool_calls: calls } : {}) }
          })
          const rendered = template.render({
            messages,
            tools: tools.length > 0 ? tools : null,
            add_generation_prompt: true,
          })
          const { tokenIds } = renderChat(ours, chat, { defaultSystem: default_system, tools })
          expect(ours.decode(tokenIds)).toBe(ours.decode(library.encode(rendered).ids))
          expect(tokenIds).toEqual(library.encode(rendered).ids)
        },
      ),
      { numRuns: 300 },
    )
  })
})

describe('what tenants share', () => {
  const ours = loadTokenizer(packTokenizer(plain))
  const signature = (description: string): ChatTool => ({
    type: 'function',
    function: { name: 'f', description },
  })
  const user: ChatMessage = { role: 'user', content: 'x' }
  const prefix = (
    ...asked: Parameters<typeof renderChat> extends [unknown, ...infer Rest] ? Rest : never
  ) => {
    const { tokenIds, sharedPrefixTokens } = renderChat(ours, ...asked)
    return tokenIds.slice(0, sharedPrefixTokens)
  }

  test('ends where the tools begin, whoever they are', () => {
    const one = prefix([user], { tools: [signature('a')] })
    expect(ours.decode(one)).toMatch(/<tools$/)
    expect(prefix([user], { tools: [signature('\n\n b')] }).slice(0, one.length - 1)).toEqual(
      one.slice(0, -1),
    )
  })

  test('is nothing behind the tools, of the operator’s own messages either', () => {
    const chat: ChatMessage[] = [{ role: 'system', content: 'Obey.' }, user, user]
    const shared = prefix(chat, { tools: [signature('a')], shared: { messages: 2, text: 'x' } })
    expect(ours.decode(shared)).toMatch(/Obey\.\n\n# Tools[^]*<tools$/)
  })

  test('is nothing where a tenant wrote the system message', () => {
    expect(prefix([{ role: 'system', content: 'mine' }, user], { tools: [signature('a')] })).toEqual([])
  })
})
