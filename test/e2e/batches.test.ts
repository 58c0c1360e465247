/** Files and batches with the official client: in as JSONL, out as JSONL, told by a signed webhook. */
import OpenAI, { toFile } from 'openai'
import { Webhook } from 'standardwebhooks'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { startReceiver, type Receiver } from './receiver.ts'
import { newTenant, until } from './stack.ts'
import { stackOfFile } from './stack-of-file.ts'

const stack = stackOfFile()
let receiver: Receiver

beforeAll(async () => {
  receiver = await startReceiver()
})
afterAll(() => receiver?.close())

const line = (n: number, body: object = {}) =>
  JSON.stringify({
    custom_id: `q${n}`,
    method: 'POST',
    url: '/v1/chat/completions',
    body: {
      model: 'tiny',
      messages: [{ role: 'user', content: `Say ${n}` }],
      temperature: 0,
      max_tokens: 2,
      ...body,
    },
  })
const upload = async (text: string) =>
  stack.openai.files.create({ file: await toFile(Buffer.from(text), 'in.jsonl'), purpose: 'batch' })
const start = (input_file_id: string, more: object = {}) =>
  stack.openai.batches.create({
    input_file_id,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    ...more,
  })
async function ended(id: string) {
  const over = ['completed', 'failed', 'cancelled', 'expired']
  await until(
    'the batch ends',
    async () => over.includes((await stack.openai.batches.retrieve(id)).status),
    50_000,
  )
  return stack.openai.batches.retrieve(id)
}

it('answers each line under its custom_id, and tells of it', async () => {
  const lines = Array.from({ length: 130 }, (_, n) => line(n, n === 7 ? { temperature: 9 } : {}))
  const file = await upload(`${lines.join('\n')}\n`)
  expect(file).toMatchObject({ object: 'file', purpose: 'batch', bytes: lines.join('\n').length + 1 })
  const batch = await start(file.id, { webhook: { url: receiver.url }, metadata: { run: 'a' } })
  expect(batch).toMatchObject({ object: 'batch', status: 'validating', metadata: { run: 'a' } })
  const done = await ended(batch.id)
  expect(done).toMatchObject({
    status: 'completed',
    request_counts: { total: 130, completed: 129, failed: 1 },
  })
  const read = async (id: string | null | undefined) =>
    (await (await stack.openai.files.content(id ?? '')).text()).trim().split('\n')
  const answers = (await read(done.output_file_id)).map(
    (text) => JSON.parse(text) as { custom_id: string; response: { body: OpenAI.ChatCompletion } },
  )
  expect(new Set(answers.map(({ custom_id }) => custom_id)).size).toBe(129)
  expect(answers[0]?.response.body.choices[0]?.message.role).toBe('assistant')
  expect(JSON.parse((await read(done.error_file_id))[0] ?? '')).toMatchObject({
    custom_id: 'q7',
    error: { code: 'invalid_value' },
  })

  const { signing_secret } = batch as unknown as { signing_secret: string }
  await until('it is told', async () => receiver.received.length === 1)
  const { body, headers } = receiver.received[0]!
  expect(new Webhook(signing_secret).verify(body, headers as Record<string, string>)).toMatchObject({
    type: 'batch.completed',
    data: { id: batch.id },
  })
})

it('is refused with each wrong line named, before anything runs', async () => {
  const file = await upload([line(1), 'not json', line(1), line(2).replace('POST', 'GET')].join('\n'))
  const { status, errors } = await ended((await start(file.id)).id)
  expect(status).toBe('failed')
  expect(errors?.data?.map(({ message }) => message)).toEqual([
    'not JSON',
    "custom_id 'q1' was there before",
    expect.stringContaining('method'),
  ])
})

it('is cancelled with what it has', async () => {
  const file = await upload(
    Array.from({ length: 500 }, (_, n) => line(1000 + n, { max_tokens: 60, ignore_eos: true })).join('\n'),
  )
  const { id } = await start(file.id)
  await until(
    'it runs',
    async () => ((await stack.openai.batches.retrieve(id)).request_counts?.completed ?? 0) > 2,
    30_000,
  )
  await stack.openai.batches.cancel(id)
  const done = await ended(id)
  expect(done.status).toBe('cancelled')
  expect(done.request_counts?.completed).toBeLessThan(500)
  expect(done.output_file_id).toMatch(/^file-/)
})

it('takes only files for batches', async () => {
  const file = await toFile(Buffer.from('x'), 'x.txt')
  await expect(stack.openai.files.create({ file, purpose: 'assistants' })).rejects.toMatchObject({
    status: 400,
  })
  await expect(start('file-none')).rejects.toMatchObject({ status: 404 })
})

it('waits for a limit without holding up its own end, and holds on to its file', async () => {
  const key = await (await newTenant(stack))({ limits: { requests_per_minute: 1 } })
  const client = new OpenAI({ baseURL: `${stack.gateway}/v1`, apiKey: key, maxRetries: 0 })
  const file = await client.files.create({
    file: await toFile(Buffer.from([1, 2, 3, 4].map((n) => line(n)).join('\n')), 'in.jsonl'),
    purpose: 'batch',
  })
  const { id } = await client.batches.create({
    input_file_id: file.id,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
  })
  const now = () => client.batches.retrieve(id)
  await until('its first line is done', async () => (await now()).request_counts?.completed === 1)
  await expect(client.files.delete(file.id)).rejects.toMatchObject({ status: 409 })
  await client.batches.cancel(id)
  await until('it is cancelled', async () => (await now()).status === 'cancelled', 10_000)
  await client.files.delete(file.id)
})

it('names each line that is wrong, and lists the newest first', async () => {
  const file = await upload(['{}', '', line(1), 'x', line(1)].join('\n'))
  const { id } = await start(file.id)
  const { errors } = await ended(id)
  expect(errors?.data?.map(({ line: at }) => at)).toEqual([1, 4, 5])
  expect((await stack.openai.batches.list({ limit: 1 })).data).toMatchObject([{ id }])
  expect((await stack.openai.files.list({ limit: 1 })).data).toMatchObject([{ id: file.id }])
})
