/** What is wrong with a body is its sender's, and is no failure of ours: nothing is logged. */
import { env } from 'cloudflare:workers'
import { createExecutionContext } from 'cloudflare:test'
import { afterEach, describe, expect, it, vi } from 'vitest'
import edge from '../../gateway/index.ts'
import { fetchEdge } from './edge-client.ts'
import { json, newTenant } from './tenant-client.ts'

afterEach(() => vi.restoreAllMocks())

const chat = JSON.stringify({ model: 'tiny', messages: [{ role: 'user', content: 'Hello' }] })
const utf8 = (text: string) => new TextEncoder().encode(text)

const broken = () =>
  new ReadableStream<Uint8Array>({
    pull(controller) {
      controller.enqueue(utf8(chat.slice(0, 20)))
      controller.error(new Error('connection reset'))
    },
  })
const notUtf8 = utf8(chat)
notUtf8.set([0xc3, 0x28], chat.indexOf('Hello'))
const gzipped = () => new Response(chat).body!.pipeThrough(new CompressionStream('gzip'))

const hookOf = async (key: string): Promise<string> => {
  const hook = {
    name: 'h',
    verify: { type: 'token' },
    mode: 'async',
    messages: [{ role: 'user', content: 'x' }],
  }
  const headers = { authorization: `Bearer ${key}` }
  const { url } = await json<{ url: string }>(
    fetchEdge('/v1/hooks', { method: 'POST', headers, body: JSON.stringify({ model: 'tiny', ...hook }) }),
  )
  return new URL(url).pathname
}

describe.each([
  '/v1/chat/completions',
  '/v1/prefixes',
  '/v1/jobs',
  '/v1/hooks',
  '/v1/templates',
  '/v1/batches',
  '/v1/files',
  '/admin/tenants',
  'a hook',
])('to %s', (path) => {
  it.each([
    ['that breaks off', broken, {}, 400, 'incomplete_body'],
    ['shorter than its Content-Length', broken, { 'content-length': '500' }, 400, 'incomplete_body'],
    ['that is no UTF-8', () => notUtf8, {}, 400, 'invalid_encoding'],
    ['that is compressed', gzipped, { 'content-encoding': 'gzip' }, 415, 'unsupported_encoding'],
  ])('one %s is refused by name', async (_, body, more, status, code) => {
    const logged = vi.spyOn(console, 'error')
    const { key } = await newTenant()
    const isFile = path === '/v1/files'
    const url = `http://edge${path === 'a hook' ? await hookOf(key) : path}`
    const request = new Request(url, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${path.startsWith('/admin') ? env.ADMIN_TOKEN : key}`,
        'content-type': isFile ? 'multipart/form-data; boundary=x' : 'application/json',
        ...more,
      },
      body: body(),
    })
    // Not by a call to the worker, whose way there would end a body that breaks as if it were whole.
    const response = await edge.fetch(request, env, createExecutionContext())
    const { error } = await response.json<{ error: { code: string } }>()
    // A file may hold anything; of this one the form is wrong.
    const expected = isFile && code === 'invalid_encoding' ? 'invalid_value' : code
    expect([response.status, error.code]).toEqual([status, expected])
    expect(logged).not.toHaveBeenCalled()
  })
})
