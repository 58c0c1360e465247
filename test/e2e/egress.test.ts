import { once } from 'node:events'
import { createServer } from 'node:http'
import { createServer as createHttpsServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import tls from 'node:tls'
import { convertV4MiniflareOptions, Miniflare } from 'miniflare'
import { Webhook } from 'standardwebhooks'
import { expect, it } from 'vitest'
import { egressProxy } from '../../gateway/local/egress-proxy.ts'
import { egress } from '../../gateway/local/egress.ts'
import { cert, host, key } from './https-host.ts'
import { freePort } from '../../gpu-backend/free-port.ts'
import { startStack, until } from './stack.ts'

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

it('a delivery goes through the egress proxy: signed, over TLS, to the address that was resolved once', async () => {
  const trusted = tls.getCACertificates('default')
  tls.setDefaultCACertificates([...trusted, cert])
  const arrived: { body: string; headers: Record<string, string> }[] = []
  const receiver = createHttpsServer({ key, cert }, (request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => (body += chunk.toString()))
    request.on('end', () => {
      arrived.push({ body, headers: request.headers as Record<string, string> })
      // The first time busy, then taken, with a body that has no end.
      if (arrived.length === 1) return response.writeHead(503, { 'retry-after': '2' }).end()
      const endless = setInterval(() => response.write('x'.repeat(65_536)), 1)
      response.on('close', () => clearInterval(endless))
      return response.writeHead(200).flushHeaders()
    })
  })
  await once(receiver.listen(0, '127.0.0.1'), 'listening')
  const [{ port }, proxyPort] = [receiver.address() as AddressInfo, await freePort()]
  const stack = await startStack({
    EGRESS_PROXY: `http://127.0.0.1:${proxyPort}/`,
    QWEN_EDGE_TIME_SCALE: '1000',
  })
  const resolved: string[] = []
  const proxy = egressProxy(
    stack.backendSecret,
    async (name) => {
      resolved.push(name)
      return [{ address: '127.0.0.1', family: 4 }]
    },
    (address) => address === '127.0.0.1',
  )
  await once(proxy.listen(proxyPort, '127.0.0.1'), 'listening')
  try {
    const call = async <T>(path: string, body?: unknown) => {
      const response = await fetch(`${stack.gateway}/v1${path}`, {
        method: body === undefined ? 'GET' : 'POST',
        headers: { authorization: `Bearer ${stack.key}` },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      })
      return (await response.json()) as T
    }
    const request = { model: 'tiny', messages: [{ role: 'user', content: 'Hi' }], max_tokens: 2 }
    const webhook = { url: `https://${host}:${port}/in` }
    const { id, signing_secret } = await call<{ id: string; signing_secret: string }>('/jobs', {
      request,
      webhook,
    })
    const codes = async () => {
      const { data } = await call<{ data: { status_code: number }[] }>(`/jobs/${id}/deliveries`)
      return data.map(({ status_code }) => status_code).join()
    }
    await until('it is taken', async () => (await codes()) === '503,200')
    for (const { body, headers } of arrived)
      expect(new Webhook(signing_secret).verify(body, headers)).toMatchObject({ data: { job_id: id } })
    expect(arrived[0]?.headers).not.toHaveProperty('authorization')
    expect(resolved).toEqual([host, host])
  } finally {
    await stack.stop()
    proxy.close()
    receiver.closeAllConnections()
    receiver.close()
    tls.setDefaultCACertificates(trusted)
  }
})
