import { describe, expect, it } from 'vitest'
import { PacedWriter } from '../../../gateway/chat/paced-writer.ts'

const decoder = new TextDecoder()

function open() {
  let leavings = 0
  const out = new PacedWriter(() => leavings++)
  const reader = out.readable.getReader()
  const read = async () => {
    const { done, value } = await reader.read()
    return done ? null : decoder.decode(value)
  }
  return { out, reader, read, leavings: () => leavings }
}

describe('a paced writer', () => {
  it('writes the first text at once, and what comes soon after as one', async () => {
    const { out, read } = open()
    for (const text of ['a', 'b', 'ü', 'c']) out.add(text)
    expect([await read(), await read()]).toEqual(['a', 'büc'])
    out.add('d')
    const ended = out.end()
    expect([await read(), await read()]).toEqual(['d', null])
    await ended
  })

  it('takes no more than its bound for a reader that is slow', async () => {
    const { out, read } = open()
    out.add('first')
    out.add('x'.repeat(64 * 1024 + 1))
    expect(out.full).toBe(true)
    let roomy = false
    const room = out.room().then(() => (roomy = true))
    await scheduler.wait(50)
    expect(roomy).toBe(false)
    for (let rest = 5 + 64 * 1024 + 1; rest > 0;) rest -= (await read())?.length ?? NaN
    await room
    expect(out.full).toBe(false)
  })

  it('says once that its reader has left, and ends without it', async () => {
    const { out, reader, read, leavings } = open()
    out.add('a')
    expect(await read()).toBe('a')
    await reader.cancel()
    out.add('b')
    await expect.poll(() => [out.gone, leavings()]).toEqual([true, 1])
    out.add('c')
    await out.end()
    expect(leavings()).toBe(1)
  })

  it('beats only through silence', async () => {
    const { out, read } = open()
    out.beat('.', 300)
    const texts: (string | null)[] = []
    const reading = (async () => {
      for (let text = await read(); text !== null; text = await read()) texts.push(text)
    })()
    for (let i = 0; i < 30; i++) {
      out.add('t')
      await scheduler.wait(15)
    }
    expect(texts.join('')).toBe('t'.repeat(30))
    await expect.poll(() => texts.join('')).toMatch(/^t{30}\.\.+$/)
    await out.end()
    await reading
  })
})
