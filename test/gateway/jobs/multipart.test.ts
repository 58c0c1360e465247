import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { partText, readMultipart } from '../../../gateway/jobs/multipart.ts'

const utf8 = new TextEncoder()
const type = 'multipart/form-data; boundary=b0'

function chunked(bytes: Uint8Array, sizes: readonly number[]): ReadableStream<Uint8Array> {
  let at = 0
  let next = 0
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) return controller.close()
      const size = sizes[next++ % sizes.length] ?? 1
      controller.enqueue(bytes.slice(at, at + size))
      at += size
    },
  })
}

async function parts(body: ReadableStream<Uint8Array>, contentType = type) {
  const read: [string, string | null, string][] = []
  for await (const part of readMultipart(body, contentType))
    read.push([part.name, part.filename, await partText(part, 1_000_000)])
  return read
}

const form = (file: string) =>
  utf8.encode(
    `--b0\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\ncontent-type: text/plain\r\n\r\n${file}\r\n` +
      `--b0\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b0--\r\n`,
  )

describe('multipart', () => {
  it.each([
    ['a header that begins like the end', '--b0\r\n--x'],
    ['no end of a header', '--b0\r\nx'],
    ['headers without end', `--b0\r\n${'--x: y\r\n'.repeat(100)}`],
    ['half a last delimiter', '--b0-'],
  ])('refuses %s', async (_, text) => {
    await expect(parts(chunked(utf8.encode(text), [5]))).rejects.toMatchObject({ status: 400 })
  })

  it('reads the same parts however it is cut into pieces', async () => {
    const text = fc.array(fc.constantFrom('\r\n', '--', '-', 'b0', '--b', '\r', '\n', 'é', 'x', '\r\n--b'), {
      maxLength: 40,
    })
    await fc.assert(
      fc.asyncProperty(
        text,
        fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 5 }),
        async (pieces, sizes) => {
          const file = pieces.join('')
          fc.pre(!file.includes('\r\n--b0') && !`\r\n${file}`.endsWith('\r\n--b'))
          expect(await parts(chunked(form(file), sizes))).toEqual([
            ['file', 'in.jsonl', file],
            ['purpose', null, 'batch'],
          ])
        },
      ),
      { numRuns: 300 },
    )
  })

  it('reads what fetch itself writes', async () => {
    const data = new FormData()
    data.append('purpose', 'batch')
    data.append('file', new Blob(['{"a": 1}\n']), 'x.jsonl')
    const { body, headers } = new Response(data)
    expect(await parts(body!, headers.get('content-type')!)).toEqual([
      ['purpose', null, 'batch'],
      ['file', 'x.jsonl', '{"a": 1}\n'],
    ])
  })

  it.each([
    ['cut off', form('x').slice(0, 90), type],
    ['without a boundary', form('x'), 'multipart/form-data'],
    ['of another type', form('x'), 'application/json'],
    ['with an endless header', utf8.encode(`--b0\r\n${'x'.repeat(40_000)}`), type],
  ])('is refused when %s', async (_, bytes, contentType) => {
    await expect(parts(chunked(bytes, [1000]), contentType)).rejects.toMatchObject({ status: 400 })
  })
})
