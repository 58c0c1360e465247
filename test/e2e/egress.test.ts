import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { convertV4MiniflareOptions, Miniflare } from 'miniflare'
import { expect, it } from 'vitest'
import { egressProxy } from '../../gateway/local/egress-proxy.ts'
import { egress } from '../../gateway/local/egress.ts'

it('a name that resolves to loopback gets no connection, whatever its text was allowed to be', async () => {
  let connections = 0
  const canary = createServer((_, response) => response.end('reached')).on('connection', () => connections++)
  await once(canary.listen(0, '127.0.0.1'), 'listening')
  const { port } = canary.address() as AddressInfo
  const miniflare = new Miniflare(
    convertV4MiniflareOptions({
      modules: true,
      script: `export default { fetch(request, env) {
        const by = request.headers.get('by')
        return env[by].fetch('http://localhost:${port}/').then((r) => r.text(), () => 'refused').then((text) => new Response(text)) } }`,
      compatibilityDate: '2026-11-01',
      serviceBindings: { EGRESS: egress, ANYWHERE: { network: { allow: ['public', 'private'] } } },
    }),
  )
  const reach = async (by: string) =>
    (await miniflare.dispatchFetch('http://edge/', { headers: { by } })).text()
  expect(await reach('EGRESS')).toBe('refused')
  expect(connections).toBe(0)
  expect(await reach('ANYWHERE')).toBe('reached')
  await miniflare.dispose()
  canary.close()
})

it('the egress proxy calls no address but public ones, and none without the secret', async () => {
  const names: string[] = []
  const resolve = async (name: string) => {
    names.push(name)
    // A public address first, as a rebinding name would have.
    return [
      { address: '93.184.215.14', family: 4 },
      { address: name.startsWith('inside') ? '169.254.169.254' : '127.0.0.1', family: 4 },
    ]
  }
  const proxy = egressProxy('secret', resolve)
  await once(proxy.listen(0, '127.0.0.1'), 'listening')
  const { port } = proxy.address() as AddressInfo
  const send = async (url: string, secret = 'secret') => {
    const headers = { authorization: `Bearer ${secret}`, 'x-egress-url': url }
    const response = await fetch(`http://127.0.0.1:${port}/`, { method: 'POST', headers, body: '{}' })
    return [response.status, await response.text()]
  }
  expect(await send('https://inside.acme.io/')).toEqual([502, 'inside.acme.io resolves to no public address'])
  expect(await send('https://rebind.acme.io/')).toEqual([502, 'rebind.acme.io resolves to no public address'])
  expect((await send('https://127.0.0.1/'))[0]).toBe(403)
  expect((await send('http://localhost:9000/'))[0]).toBe(403)
  expect((await send('https://hooks.acme.io/', 'wrong'))[0]).toBe(401)
  expect(names).toEqual(['inside.acme.io', 'rebind.acme.io'])
  proxy.close()
})
