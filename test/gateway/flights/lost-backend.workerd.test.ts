/** A backend that goes away under an answer: what may be resumed goes on when there is one again, once, and is billed once. */
import { afterEach, expect, it } from 'vitest'
import { ask, fetchEdge, newTenant, post, question, read } from '../edge-client.ts'
import { idsOf, scriptedBackend, type Run, type ScriptedBackend } from '../scripted-backend.ts'
import { get, json, until } from '../tenant-client.ts'

let backend: ScriptedBackend
afterEach(() => backend.restore())

const words = 'one two three four five six seven eight nine ten'
const resumable = { 'x-resumable': 'true' }

/** Each run gives a few tokens and is lost, but the last. What was emitted stands at the end of the prompt. */
const dying =
  (deaths: number, lose: (run: Run) => void = (run) => run.crash()) =>
  async (run: Run): Promise<void> => {
    const nth = backend.runs.length
    const prompt = backend.runs[0]?.request.token_ids.length ?? 0
    const rest = idsOf(words).slice(run.request.token_ids.length - prompt)
    for (const id of nth > deaths ? rest : rest.slice(0, 4)) {
      run.tokens(id)
      await scheduler.wait(5)
    }
    // What waits in the stream would be lost with it.
    await scheduler.wait(50)
    if (nth <= deaths) lose(run)
    else run.finish('stop')
  }

it.each<[string, object, Record<string, string>]>([
  ['sampled', { temperature: 1 }, resumable],
  ['cacheable', {}, resumable],
  ['under an Idempotency-Key', { temperature: 1 }, { 'idempotency-key': 'k' }],
  ['with penalties, from its beginning', { presence_penalty: 1 }, resumable],
])('%s', async (_, more, headers) => {
  backend = scriptedBackend(dying(1))
  const { key } = await newTenant()
  for (const stream of [true, false]) {
    const asked = { stream, ...(stream ? {} : { max_tokens: 90 }), ...more }
    const own = 'idempotency-key' in headers ? { 'idempotency-key': `k${String(stream)}` } : headers
    const answer = await ask(key, 'count', asked, own)
    expect(answer).toMatchObject({ status: 200, text: words, finish: 'stop', error: null })
    const ids = answer.events.map(({ id }) => id)
    expect(new Set(ids).size).toBe(ids.length)
    backend.runs.length = 0
  }
})

it('stopped by a backend that shuts down', async () => {
  backend = scriptedBackend(dying(1, (run) => run.finish('cancelled')))
  const { key } = await newTenant()
  expect(await ask(key, 'count', { stream: true }, resumable)).toMatchObject({ text: words, error: null })
  expect(backend.runs).toHaveLength(2)
})

it('is billed for its prompt once, and for each token that was generated', async () => {
  backend = scriptedBackend(dying(1))
  const { key } = await newTenant()
  const answer = await post(key, { ...question('count'), temperature: 1 }, resumable)
  const { usage } = await answer.json<{ usage: { prompt_tokens: number; completion_tokens: number } }>()
  const all = idsOf(words).length
  const prompt = backend.runs[0]?.request.token_ids.length
  expect(usage).toMatchObject({ prompt_tokens: prompt, completion_tokens: all })
  type Used = Record<'requests' | 'prompt_tokens' | 'completion_tokens', number>
  const used = async () => (await json<{ data: Used[] }>(get(key, '/v1/usage?group_by=key'))).data[0]
  // The last one that came is generated again: it could have been the end.
  const counted = (row?: Used) => row?.requests === 1 && row.completion_tokens === all + 1
  expect(await until('billed', used, counted)).toMatchObject({ prompt_tokens: prompt })
})

it('fails when it is lost again, or nobody may come back for it', async () => {
  backend = scriptedBackend(dying(9))
  const { key } = await newTenant()
  const lost = await ask(key, 'count', { stream: true, temperature: 1 }, resumable)
  expect([lost.error, backend.runs.length]).toEqual(['backend_unavailable', 2])
  const plain = await ask(key, 'count', { stream: true })
  expect([plain.error, backend.runs.length]).toEqual(['backend_unavailable', 3])
})

it('is not gone on with once it is cancelled', async () => {
  backend = scriptedBackend(dying(1))
  const { key } = await newTenant()
  const response = await post(key, { ...question('count'), stream: true }, resumable)
  const id = response.headers.get('x-generation-id') ?? ''
  backend.isReady = false
  await until(
    'it is lost',
    async () => backend.live(),
    (live) => live === 0,
  )
  const headers = { authorization: `Bearer ${key}` }
  const cancelled = await fetchEdge(`/v1/generations/${id}`, { method: 'DELETE', headers })
  expect(await cancelled.json()).toMatchObject({ status: 'cancelled' })
  expect((await read(response)).error).toBe('request_cancelled')
  backend.isReady = true
  await scheduler.wait(600)
  expect(backend.runs).toHaveLength(1)
})
