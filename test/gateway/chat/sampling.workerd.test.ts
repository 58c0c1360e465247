/** Each option of sampling by its name in the API, as it reaches the backend. */
import { afterEach, expect, it } from 'vitest'
import { newTenant, post, question } from '../edge-client.ts'
import { saying, scriptedBackend, type ScriptedBackend } from '../scripted-backend.ts'

let backend: ScriptedBackend
afterEach(() => backend.restore())

async function sent(body: object) {
  backend = scriptedBackend(saying('x'))
  const { key } = await newTenant()
  expect((await post(key, { ...question('Hello'), ...body })).status).toBe(200)
  return backend.runs[0]?.request.sampling
}

it('every option arrives', async () => {
  const plain = {
    temperature: 0.5,
    top_p: 0.9,
    top_k: 7,
    min_p: 0.05,
    repetition_penalty: 1.1,
    presence_penalty: 0.2,
    frequency_penalty: -0.3,
    seed: 42,
    min_tokens: 3,
    stop_token_ids: [5, 9],
    ignore_eos: true,
    logit_bias: { '17': 4, '18': -100 },
  }
  const more = { max_completion_tokens: 33, logprobs: true, top_logprobs: 4 }
  expect(await sent({ ...plain, ...more })).toEqual({ ...plain, max_tokens: 33, logprobs: 4, n: 1 })
})

it('a grammar too, whatever it is called', async () => {
  const choice = { structured_outputs: { choice: ['x', 'y'] } }
  expect(await sent({ ...choice, stream: true })).toMatchObject({
    grammar: { type: 'choice', choices: ['x', 'y'] },
  })
})

it('greedy asks for no more than it is', async () => {
  expect(await sent({ temperature: 0, top_p: 0.5 })).toMatchObject({ temperature: 0, top_p: 1, top_k: 0 })
})
