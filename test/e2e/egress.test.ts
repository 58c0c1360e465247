import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { convertV4MiniflareOptions, Miniflare } from 'miniflare'
import { expect, it } from 'vitest'
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
    } as Parameters<typeof convertV4MiniflareOptions>[0]),
  )
  const reach = async (by: string) =>
    (await miniflare.dispatchFetch('http://edge/', { headers: { by } })).text()
  expect(await reach('EGRESS')).toBe('refused')
  expect(connections).toBe(0)
  expect(await reach('ANYWHERE')).toBe('reached')
  await miniflare.dispose()
  canary.close()
})
