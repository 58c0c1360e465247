/**
 * For strict sites: the one way out for webhooks. A name is resolved once; if any of its addresses is not public nothing
 * is sent, else the connection goes to the very address that was checked, so a name that changes its mind gains nothing.
 * Takes POST / with x-egress-url from the gateway (EGRESS_PROXY in wrangler.toml) and gives back the receiver's status.
 * Usage: BACKEND_SECRET=... [EGRESS_PORT=8790] node gateway/local/egress-proxy.ts
 */
import { once } from 'node:events'
import { lookup as resolve } from 'node:dns/promises'
import { createHash, timingSafeEqual } from 'node:crypto'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type Server } from 'node:http'
import { request } from 'node:https'
import ipaddr from 'ipaddr.js'
import { isPublic, refusal } from '../../src/callback-url.ts'

const body_bytes_max = 4 * 1024 * 1024
const attempt_ms = 15_000
/** Of the message: nothing that belongs to this hop. */
const passed = ['content-type', 'user-agent', 'webhook-id', 'webhook-timestamp', 'webhook-signature']

interface Address {
  address: string
  family: number
}
type Resolve = (name: string) => Promise<Address[]>
type MayBeCalled = (address: string) => boolean

export function egressProxy(
  secret: string,
  resolveAll: Resolve = (name) => resolve(name, { all: true }),
  mayBeCalled: MayBeCalled = (address) => isPublic(ipaddr.parse(address)),
): Server {
  return createServer((incoming, outgoing) => {
    const answer = (status: number, message = '', headers = {}) => {
      outgoing.writeHead(status, headers).end(message)
    }
    if (!sameText(incoming.headers.authorization ?? '', `Bearer ${secret}`)) return answer(401)
    const url = String(incoming.headers['x-egress-url'] ?? '')
    const why = refusal(url, 'production')
    if (incoming.method !== 'POST' || why !== null) return answer(403, why ?? 'only POST')
    readAll(incoming)
      .then(async (body) =>
        forward(
          url,
          incoming.headers,
          body,
          await checkedAddress(new URL(url).hostname, resolveAll, mayBeCalled),
        ),
      )
      .then(({ status, retryAfter }) =>
        answer(status, '', retryAfter === undefined ? {} : { 'retry-after': retryAfter }),
      )
      .catch((cause: unknown) => answer(502, cause instanceof Error ? cause.message : 'failed'))
  })
}

async function forward(url: string, headers: IncomingHttpHeaders, body: Buffer, address: Address) {
  const own = Object.fromEntries(
    passed.flatMap((name) => (headers[name] === undefined ? [] : [[name, headers[name]]])),
  )
  const sending = request(url, {
    method: 'POST',
    headers: { ...own, 'content-length': body.length },
    // What was checked is what is called.
    lookup: (_, options, found) =>
      options.all === true ? found(null, [address]) : found(null, address.address, address.family),
    signal: AbortSignal.timeout(attempt_ms),
  })
  sending.end(body)
  const [response] = (await once(sending, 'response')) as [IncomingMessage]
  // Its status is all that is wanted; a body may have no end.
  response.on('error', () => undefined).destroy()
  return { status: response.statusCode ?? 502, retryAfter: response.headers['retry-after'] }
}

async function checkedAddress(host: string, resolveAll: Resolve, mayBeCalled: MayBeCalled): Promise<Address> {
  const addresses = await resolveAll(host.replace(/^\[|\]$/g, ''))
  const [first] = addresses
  if (first === undefined || !addresses.every(({ address }) => mayBeCalled(address)))
    throw new Error(`${host} resolves to no public address`)
  return first
}

async function readAll(incoming: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of incoming as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes > body_bytes_max) throw new Error('the body is too large')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

function sameText(a: string, b: string): boolean {
  const hash = (text: string) => createHash('sha256').update(text).digest()
  return timingSafeEqual(hash(a), hash(b))
}

if (import.meta.main) {
  const { BACKEND_SECRET = '', EGRESS_PORT = '8790', EGRESS_HOST = '127.0.0.1' } = process.env
  if (BACKEND_SECRET === '') throw new Error('BACKEND_SECRET must be set, to the same as the gateway has')
  egressProxy(BACKEND_SECRET).listen(Number(EGRESS_PORT), EGRESS_HOST, () =>
    process.stdout.write(`egress proxy on ${EGRESS_HOST}:${EGRESS_PORT}\n`),
  )
}
