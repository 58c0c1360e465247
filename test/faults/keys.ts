/**
 * Ten thousand keys that are not valid, over HTTP: each must be a 401. How long that takes is told by kind: of a key whose
 * form or checksum is wrong it may say nothing; one that was never made and one that was revoked both look in storage.
 */
import { makeKey } from '../../src/keys.ts'
import { Connection, request } from '../bench/_load.ts'
import { newTenant, startStack, type Stack } from '../e2e/stack.ts'
import { quantile } from './_client.ts'
import type { Finding } from './main.ts'

const count = 10_000
const revoked_count = 900

type Make = (i: number) => string

export async function run({ scale }: { scale: number }, tell: (finding: Finding) => void): Promise<void> {
  const stack = await startStack()
  try {
    const revoked = await revokedKeys(stack, Math.max(2, revoked_count * scale))
    const kinds: Record<string, Make> = {
      'cut short': () => makeKey('test').slice(0, -1),
      'wrong checksum': () => changed(makeKey('test'), -1),
      'one letter wrong': (i) => changed(makeKey('test'), 10 + (i % 40)),
      foreign: () => `sk-${makeKey('test').slice(3)}`,
      'never made': () => makeKey('test'),
      revoked: (i) => revoked[i % revoked.length] ?? '',
    }
    const names = Object.keys(kinds)
    const times = new Map(names.map((name) => [name, [] as number[]]))
    const connection = new Connection(Number(new URL(stack.gateway).port))
    let wrong = 0
    // In turn, so that whatever else the machine does meets them alike.
    for (let i = 0; i < count * scale; i++) {
      const name = names[i % names.length] ?? ''
      const key = kinds[name]?.(i) ?? ''
      const headers = { authorization: `Bearer ${key}` }
      const bytes = request({ port: 0, path: '/v1/chat/completions', headers, body: '{}' })
      const sent = performance.now()
      const { status } = await connection.exchange(bytes)
      times.get(name)?.push(performance.now() - sent)
      if (status !== 401) wrong++
    }
    connection.close()
    tell({ name: `${Math.ceil(count * scale)} keys: not a 401`, value: wrong, must: 0 })
    for (const [name, of] of times)
      tell({
        name: `${name}: median, and 95% within, in microseconds`,
        value: `${us(of, 0.5)}, ${us(of, 0.95)}`,
      })
  } finally {
    await stack.stop()
  }
}

const us = (times: number[], q: number) =>
  Math.round(
    quantile(
      times.map((ms) => ms * 1000),
      q,
    ),
  )

/** The letter at that place is another one. */
function changed(key: string, at: number): string {
  const index = at < 0 ? key.length + at : at
  return key.slice(0, index) + (key[index] === '0' ? '1' : '0') + key.slice(index + 1)
}

async function revokedKeys(stack: Stack, n: number): Promise<string[]> {
  const keyOf = await newTenant(stack)
  const keys: string[] = []
  for (let i = 0; i < n; i++) keys.push(await keyOf())
  const admin = (path: string, method = 'GET') =>
    fetch(`${stack.gateway}/admin${path}`, {
      method,
      headers: { authorization: `Bearer ${stack.adminToken}` },
    })
  const list = async <T>(path: string) => ((await (await admin(path)).json()) as { data: T[] }).data
  const tenants = await list<{ id: string }>('/tenants')
  for (const { id } of tenants)
    for (const key of await list<{ id: string }>(`/tenants/${id}/keys`))
      await admin(`/tenants/${id}/keys/${key.id}`, 'DELETE')
  return keys
}
