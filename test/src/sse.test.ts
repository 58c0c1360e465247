import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { encodeSse, readSse, SseParser } from '../../src/sse.ts'

const bytes = (text: string) => new TextEncoder().encode(text)

describe('SseParser', () => {
  it('gives the same events however the bytes are cut', () => {
    const event = fc.record({
      data: fc.string({ unit: 'grapheme' }).map((text) => text.replaceAll(/[\r\n]/g, ' ')),
      event: fc.constantFrom('message', 'error', 'done'),
      id: fc.stringMatching(/^[0-9a-z]{1,8}$/),
    })
    const lineEnd = fc.constantFrom('\n', '\r\n', '\r')
    fc.assert(
      fc.property(fc.array(event), lineEnd, fc.array(fc.integer({ min: 1, max: 9 })), (events, end, cuts) => {
        const stream = bytes(events.map((e) => encodeSse(e).replaceAll('\n', end)).join('') + ': end' + end)
        const parser = new SseParser()
        const got = []
        for (let at = 0, i = 0; at < stream.length; i++) {
          const size = cuts.length === 0 ? stream.length : (cuts[i % cuts.length] ?? 1)
          got.push(...parser.push(stream.subarray(at, at + size)))
          at += size
        }
        expect(got).toEqual(events)
      }),
    )
  })

  it('joins several data lines, ignores comments, and drops an event without data', () => {
    expect(new SseParser().push(bytes(': ping\n\nevent: x\n\ndata: a\ndata:b\n\n'))).toEqual([
      { event: 'message', data: 'a\nb', id: null },
    ])
  })

  it('refuses an event that never ends', () => {
    const parser = new SseParser()
    const line = bytes(`data: ${'x'.repeat(1024 * 1024)}\n`)
    expect(() => {
      for (let i = 0; i < 20; i++) parser.push(line)
    }).toThrow(RangeError)
  })
})

describe('readSse', () => {
  it('cancels the body when the reader stops early', async () => {
    let cancelled = false
    const body = new ReadableStream<Uint8Array>({
      pull: (controller) => controller.enqueue(bytes('data: 1\n\n')),
      cancel: () => {
        cancelled = true
      },
    })
    for await (const events of readSse(body)) {
      expect(events.length).toBeGreaterThan(0)
      break
    }
    expect(cancelled).toBe(true)
  })
})
