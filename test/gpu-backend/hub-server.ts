/** As much of the Hugging Face hub's HTTP API as a download needs, with faults on demand. */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export const commit = 'c'.repeat(40)

export interface HubServer {
  url: string
  /** `GET path range` of every file request, in order. */
  seen: string[]
  authorizations: Set<string | undefined>
  /** Answers everything with this status. */
  status: number
  /** Cuts the connection after so many bytes of a file, once for each entry. */
  cuts: number[]
  /** Sends so many bytes of a file, then nothing more. */
  stallAfter: number | null
  close(): Promise<void>
}

export async function hubServer(
  name: string,
  files: Record<string, Buffer>,
  claims: Record<string, { size?: number; oid?: string }> = {},
): Promise<HubServer> {
  const tree = Object.entries(files).map(([path, content]) => ({
    type: 'file',
    path,
    size: claims[path]?.size ?? content.length,
    ...(path.endsWith('.safetensors')
      ? {
          oid: 'pointer',
          lfs: {
            oid: claims[path]?.oid ?? createHash('sha256').update(content).digest('hex'),
            size: content.length,
            pointerSize: 130,
          },
        }
      : { oid: createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex') }),
  }))
  const hub: HubServer = {
    url: '',
    seen: [],
    authorizations: new Set(),
    status: 200,
    cuts: [],
    stallAfter: null,
    async close() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
  const server = createServer((request, response) => {
    hub.authorizations.add(request.headers.authorization)
    const { pathname } = new URL(request.url ?? '/', 'http://hub')
    const json = (value: unknown) => {
      response.setHeader('content-type', 'application/json')
      response.end(JSON.stringify(value))
    }
    if (hub.status !== 200) {
      response.statusCode = hub.status
      return json({ error: 'as asked' })
    }
    if (pathname === `/api/models/${name}/revision/main`) return json({ _id: '1', id: name, sha: commit })
    if (pathname === `/api/models/${name}/tree/${commit}`) return json(tree)
    const file = files[pathname.replace(`/${name}/resolve/${commit}/`, '')]
    if (file !== undefined) return send(hub, file, request, response)
    response.statusCode = 404
    return json({ error: 'Repository not found' })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  hub.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return hub
}

function send(hub: HubServer, file: Buffer, request: IncomingMessage, response: ServerResponse): void {
  const range = request.headers.range
  const [, from = '0', to] = /^bytes=(\d+)-(\d+)?$/.exec(range ?? '') ?? []
  const end = to === undefined ? file.length : Math.min(file.length, Number(to) + 1)
  const body = file.subarray(Number(from), end)
  response.setHeader('etag', '"e"')
  if (range !== undefined) {
    response.statusCode = 206
    response.setHeader('content-range', `bytes ${from}-${end - 1}/${file.length}`)
  }
  response.setHeader('content-length', body.length)
  if (range !== 'bytes=0-0') {
    hub.seen.push(`${request.url?.split('/').at(-1)} ${range ?? 'whole'}`)
    const cut = body.length > 1000 ? hub.cuts.shift() : undefined
    const stall = body.length > 1000 ? hub.stallAfter : null
    if (cut !== undefined) {
      response.write(body.subarray(0, cut), () => setTimeout(() => response.destroy(), 20))
      return
    }
    if (stall !== null) {
      response.write(body.subarray(0, stall))
      return
    }
  }
  response.end(body)
}
