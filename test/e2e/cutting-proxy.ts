/** Stands between client and gateway and breaks answers off at a byte of its choice, as a bad network would. */
import { once } from 'node:events'
import { createServer, request } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface CuttingProxy {
  url: string
  /** Answers broken off so far. */
  cuts: () => number
  close: () => Promise<void>
}

/** @param cutAt after how many bytes of this answer's body; Infinity: never. */
export async function cuttingProxy(target: string, cutAt: (path: string) => number): Promise<CuttingProxy> {
  let cuts = 0
  const server = createServer((client, answer) => {
    const { method = 'GET', url = '/', headers } = client
    const upstream = request(new URL(url, target), { method, headers }, (response) => {
      answer.writeHead(response.statusCode ?? 502, response.headers)
      answer.flushHeaders()
      let left = cutAt(url)
      response.on('data', (chunk: Buffer) => {
        const part = chunk.subarray(0, Math.max(0, left))
        left -= chunk.length
        answer.write(part, () => {
          if (left < 0 && !answer.destroyed) {
            cuts++
            response.destroy()
            answer.socket?.destroy()
          }
        })
      })
      response.on('end', () => answer.end())
      response.on('error', () => answer.destroy())
    })
    upstream.on('error', () => answer.destroy())
    answer.on('close', () => upstream.destroy())
    client.pipe(upstream)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}`,
    cuts: () => cuts,
    async close() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}
