/** Tenants as their operator makes them and as they see themselves, in the tests' isolate. */
import { admin, fetchEdge } from './edge-client.ts'

export const json = async <T>(response: Response | Promise<Response>) => (await (await response).json()) as T

export async function newTenant(fields: object = {}, key: object = {}) {
  const { id } = await json<{ id: string }>(admin('/tenants', { name: 'Acme', ...fields }))
  const created = await json<{ key: string; id: string }>(
    admin(`/tenants/${id}/keys`, { name: 'first', ...key }),
  )
  return { id, key: created.key, keyId: created.id }
}

export const get = (key: string, path: string) =>
  fetchEdge(path, { headers: { authorization: `Bearer ${key}` } })

/** A fresh answer, unless the body says otherwise. */
export const chat = (key: string, body: object = {}, headers: object = {}, signal?: AbortSignal) =>
  fetchEdge('/v1/chat/completions', {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'cache-control': 'no-store', ...headers },
    body: JSON.stringify({ model: 'tiny', messages: [{ role: 'user', content: 'Hello' }], ...body }),
    ...(signal ? { signal } : {}),
  })

export async function until<T>(
  what: string,
  read: () => Promise<T>,
  done: (value: T) => boolean,
): Promise<T> {
  const end = performance.now() + 5_000
  for (;;) {
    const value = await read()
    if (done(value)) return value
    if (performance.now() > end) throw new Error(`never: ${what}; last: ${JSON.stringify(value)}`)
    await scheduler.wait(20)
  }
}
