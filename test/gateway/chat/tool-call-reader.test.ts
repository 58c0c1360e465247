/** Calls in text, however the text was cut into pieces. */
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ToolCallReader, type Piece } from '../../../gateway/chat/tool-call-reader.ts'

interface Seen {
  content: string
  calls: { name: string; arguments: string }[]
}

function read(pieces: string[]): Seen {
  const reader = new ToolCallReader()
  const seen: Seen = { content: '', calls: [] }
  const take = (all: Piece[]) => {
    for (const piece of all) {
      if (piece.type === 'content') seen.content += piece.text
      else if (piece.type === 'call') seen.calls[piece.index] = { name: piece.name, arguments: '' }
      else if (piece.type === 'arguments') seen.calls[piece.index]!.arguments += piece.text
    }
  }
  for (const piece of pieces) take(reader.push(piece))
  take(reader.flush())
  return seen
}

const call = (name: string, args: string) =>
  `<tool_call>\n{"name": "${name}", "arguments": ${args}}\n</tool_call>`

it.each<[string, string, Seen]>([
  ['text alone', 'Hello <b>you</b> <tool', { content: 'Hello <b>you</b> <tool', calls: [] }],
  ['a call', call('f', '{"a": 1}'), { content: '', calls: [{ name: 'f', arguments: '{"a": 1}' }] }],
  [
    'text and two calls',
    `Let me see.\n${call('f', '{}')}\n${call('g', '{"x": [{"y": "}"}]}')}`,
    {
      content: 'Let me see.\n',
      calls: [
        { name: 'f', arguments: '{}' },
        { name: 'g', arguments: '{"x": [{"y": "}"}]}' },
      ],
    },
  ],
  [
    'arguments that look like the frame',
    call('f', '{"a": "</tool_call>\\"}<tool_call>\\\\"}'),
    { content: '', calls: [{ name: 'f', arguments: '{"a": "</tool_call>\\"}<tool_call>\\\\"}' }] },
  ],
  [
    'text after a call',
    `${call('f', '{}')}\nDone.`,
    { content: '\nDone.', calls: [{ name: 'f', arguments: '{}' }] },
  ],
  [
    'a call cut in its arguments',
    call('f', '{"a": "xy').slice(0, -14),
    { content: '', calls: [{ name: 'f', arguments: '{"a": "xy' }] },
  ],
  ['a call cut in its head', 'Hm <tool_call>\n{"na', { content: 'Hm ', calls: [] }],
  ['white space alone', ' \n', { content: ' \n', calls: [] }],
])('%s', (_, text, seen) => {
  expect(read([text])).toEqual(seen)
  fc.assert(
    fc.property(fc.array(fc.nat(text.length), { maxLength: 12 }), (cuts) => {
      const at = [0, ...cuts.toSorted((a, b) => a - b), text.length]
      expect(read(at.slice(1).map((end, i) => text.slice(at[i], end)))).toEqual(seen)
    }),
    { numRuns: 200 },
  )
})

describe('as it comes', () => {
  it('name first, then arguments, before the call is over', () => {
    const reader = new ToolCallReader()
    expect(reader.push('<tool_call>\n{"name": "f", "argum')).toEqual([{ type: 'frame', text: '<tool_call>' }])
    expect(reader.push('ents": {"ci')).toEqual([
      { type: 'call', index: 0, name: 'f', text: '\n{"name": "f", "arguments": ' },
      { type: 'arguments', index: 0, text: '{"ci' },
    ])
    expect(reader.push('ty": 1')).toEqual([{ type: 'arguments', index: 0, text: 'ty": 1' }])
  })

  it('nothing is lost of whole calls: the pieces are the text', () => {
    const text = `Now.\n${call('f', '{"a": "</tool_call>"}')}\n \n${call('g', '[1]')}\nDone <tool`
    fc.assert(
      fc.property(fc.array(fc.nat(text.length), { maxLength: 12 }), (cuts) => {
        const reader = new ToolCallReader()
        const at = [0, ...cuts.toSorted((a, b) => a - b), text.length]
        const pieces = at.slice(1).flatMap((end, i) => reader.push(text.slice(at[i], end)))
        expect([...pieces, ...reader.flush()].map((piece) => piece.text).join('')).toBe(text)
      }),
    )
  })

  it('text at once, but for what may become a call', () => {
    const reader = new ToolCallReader()
    expect(reader.push('a < b <tool_')).toEqual([{ type: 'content', text: 'a < b ' }])
    expect(reader.push('box>')).toEqual([{ type: 'content', text: '<tool_box>' }])
  })
})
