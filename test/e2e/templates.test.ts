/** A published template reaches the engine before its first caller does. */
import { expect, it } from 'vitest'
import { newTenant } from './stack.ts'
import { stackOfFile } from './stack-of-file.ts'

const stack = stackOfFile()

async function post<T>(path: string, body: unknown, token: string): Promise<T> {
  const headers = { authorization: `Bearer ${token}` }
  const response = await fetch(stack.gateway + path, { method: 'POST', headers, body: JSON.stringify(body) })
  return (await response.json()) as T
}

const instructions = 'You answer in one word and never explain. '.repeat(20)
type Answer = { usage: { prompt_tokens: number; prompt_tokens_details: { cached_tokens: number } } }

it("the operator's prefix is warm for every tenant, a tenant's own for itself", async () => {
  const messages = [
    { role: 'system', content: instructions },
    { role: 'user', content: 'The question is: {{question}}' },
  ]
  const [one, other] = [await (await newTenant(stack))(), await (await newTenant(stack))()]
  const cached = async (token: string, id: string) => {
    const template = { id, variables: { question: crypto.randomUUID() } }
    const answer = await post<Answer>(
      '/v1/chat/completions',
      { model: 'tiny', template, max_tokens: 1 },
      token,
    )
    return answer.usage.prompt_tokens_details.cached_tokens
  }
  const own = await post<{ id: string }>('/v1/templates', { name: 'own', messages }, one)
  const published = await post<{ id: string }>(
    '/admin/templates',
    {
      name: 'all',
      messages: messages.map((message) => ({ ...message, content: `Now: ${message.content}` })),
    },
    stack.adminToken,
  )
  // Nobody has asked before: what they find is what publishing left.
  await new Promise((resolve) => setTimeout(resolve, 2_000))
  expect(await cached(one, own.id)).toBeGreaterThan(100)
  expect(await cached(other, published.id)).toBeGreaterThan(100)
  expect(await cached(one, published.id)).toBeGreaterThan(100)
})
