/** Tenants as their operator runs them, by the command line, and as they use the real engine. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import OpenAI from 'openai'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { metric, startStack, until, type Stack } from './stack.ts'

const run = promisify(execFile)
let stack: Stack
let tenantId: string
let key: { id: string; key: string }
let openai: OpenAI

async function admin(...args: string[]): Promise<string> {
  const env = { ...process.env, QWEN_EDGE_URL: stack.gateway, QWEN_EDGE_ADMIN_TOKEN: stack.adminToken }
  const { stdout } = await run('node', ['gateway/local/admin.ts', ...args], { env })
  return stdout
}
const adminJson = async <T>(...args: string[]) => JSON.parse(await admin('--json', ...args)) as T

beforeAll(async () => {
  stack = await startStack()
  const made = await adminJson<{ id: string }>('tenant', 'create', 'acme', '--tokens-per-minute', '5000')
  tenantId = made.id
  key = await adminJson('key', 'create', tenantId, 'server', '--scopes', 'generate,read')
  openai = new OpenAI({ baseURL: `${stack.gateway}/v1`, apiKey: key.key, maxRetries: 0 })
})
afterAll(() => stack?.stop())

const fresh = { headers: { 'cache-control': 'no-store' } }
const question = (content: string, max_tokens: number) => ({
  model: 'tiny',
  messages: [{ role: 'user' as const, content }],
  temperature: 0,
  max_tokens,
})

interface Cached {
  cached_tokens: number
}
interface Used {
  requests: number
  prompt_tokens: number
  cached_tokens: number
  completion_tokens: number
}
async function used(): Promise<Used> {
  const answer = await fetch(`${stack.gateway}/v1/usage?group_by=model`, {
    headers: { authorization: `Bearer ${key.key}` },
  })
  const { data } = (await answer.json()) as { data: Used[] }
  return data[0] ?? { requests: 0, prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0 }
}

it('usage is what the answers said, also of one that was broken off, and of the engine itself', async () => {
  const sum = { requests: 0, prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0 }
  const ends = ['Plus', 'Plus', 'Say 5']
  for (const text of ends) {
    const { usage } = await openai.chat.completions.create(question(`${text}: 2 + 3?`, 20), fresh)
    sum.requests++
    sum.prompt_tokens += usage?.prompt_tokens ?? 0
    sum.cached_tokens += usage?.prompt_tokens_details?.cached_tokens ?? 0
    sum.completion_tokens += usage?.completion_tokens ?? 0
  }
  await until('usage adds up', async () => JSON.stringify({ ...(await used()) }).includes('"requests":3'))
  expect(await used()).toMatchObject(sum)

  const generated = await metric(stack, 'vllm:generation_tokens_total')
  const more = { ignore_eos: true, stream: true as const }
  const stream = await openai.chat.completions.create({ ...question('Count', 3000), ...more }, fresh)
  let chunks = 0
  for await (const _ of stream) if (++chunks === 10) break
  await until('the engine stopped', async () => (await metric(stack, 'vllm:num_requests_running')) === 0)
  const cut = (await metric(stack, 'vllm:generation_tokens_total')) - generated
  await until('settled', async () => (await used()).completion_tokens === sum.completion_tokens + cut)
})

it('a prefix is billed as chat bills its prompt: what is there already counts as cached', async () => {
  const messages = [{ role: 'user', content: `${'Remember the answer. '.repeat(40)}${Math.random()}` }]
  const warm = async () => {
    const response = await fetch(`${stack.gateway}/v1/prefixes`, {
      method: 'POST',
      headers: { authorization: `Bearer ${key.key}` },
      body: JSON.stringify({ model: 'tiny', messages }),
    })
    return (await response.json()) as { usage: { prompt_tokens: number; prompt_tokens_details: Cached } }
  }
  const before = await used()
  const [cold, warmed] = [await warm(), await warm()]
  const { prompt_tokens, prompt_tokens_details } = warmed.usage
  expect(cold.usage).toMatchObject({
    prompt_tokens,
    prompt_tokens_details: { cached_tokens: expect.any(Number) },
  })
  expect(prompt_tokens - prompt_tokens_details.cached_tokens).toBeLessThanOrEqual(16)
  const cached = cold.usage.prompt_tokens_details.cached_tokens + prompt_tokens_details.cached_tokens
  expect(cold.usage.prompt_tokens_details.cached_tokens).toBeLessThan(prompt_tokens / 2)
  await until('billed', async () => (await used()).cached_tokens === before.cached_tokens + cached)
  expect((await used()).prompt_tokens).toBe(before.prompt_tokens + 2 * prompt_tokens)
})

it('the command line reads well and says what is wrong', async () => {
  expect(await admin('tenant', 'list')).toContain('tokens_per_minute=5000')
  expect(await admin('usage', '--tenant', tenantId, '--group-by', 'key', '--csv')).toContain(key.id)
  expect(await admin('audit')).toContain('key.create')
  await expect(admin('tenant', 'create', 'x', '--concurrent', '-1')).rejects.toThrow('a whole number from 1')
  const never = admin('key', 'create', tenantId, 'x', '--expires-at', 'soon')
  await expect(never).rejects.toThrow('a time, such as')
})

it.each([
  ['a tenant that is not there', ['tenant', 'show', 'ten_nobody'], /^error: not_found: .+\n$/],
  ['an id that is a path', ['tenant', 'show', '../audit'], /^error: not_found: .+\n$/],
  ['a wrong token', ['--token', 'wrong', 'tenant', 'list'], /^error: invalid_api_key: .+\n$/],
  ['no server', ['--url', 'http://127.0.0.1:9', 'tenant', 'list'], /^error: No gateway answers .+\n$/],
])('of %s the command line says one line and ends with 1', async (_, args, line) => {
  await expect(admin(...args)).rejects.toMatchObject({
    code: 1,
    stdout: '',
    stderr: expect.stringMatching(line),
  })
})

it('a reader of the command line may have read enough', async () => {
  const env = { ...process.env, QWEN_EDGE_URL: stack.gateway, QWEN_EDGE_ADMIN_TOKEN: stack.adminToken }
  // Closed before anything is written.
  const { stderr } = await run('sh', ['-c', 'node gateway/local/admin.ts audit | true'], { env })
  expect(stderr).toBe('')
})

it('a key that is revoked stops everywhere, and a suspended tenant with it', async () => {
  const other = await adminJson<{ id: string; key: string }>('key', 'create', tenantId, 'other')
  const models = async (of: string) =>
    (await fetch(`${stack.gateway}/v1/models`, { headers: { authorization: `Bearer ${of}` } })).status
  expect(await models(other.key)).toBe(200)
  await admin('key', 'revoke', tenantId, other.id)
  expect(await models(other.key)).toBe(401)
  await admin('tenant', 'suspend', tenantId)
  expect(await models(key.key)).toBe(403)
  await expect(openai.chat.completions.create(question('x', 5))).rejects.toThrow('suspended')
})
