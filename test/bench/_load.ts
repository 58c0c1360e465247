/** Load over keep-alive sockets, with no client library's cost in the figures. */
import { connect } from 'node:net'

const silence_ms = 60_000

export interface Target {
  port: number
  path: string
  headers?: Record<string, string>
  body: string
}

export interface Figures {
  per_second: number
  p50_ms: number
  p99_ms: number
  statuses: Record<number, number>
}

export function request({ path, headers = {}, body }: Target): Buffer {
  const all = { host: 'localhost', 'content-type': 'application/json', ...headers }
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`)
  return Buffer.from(
    `POST ${path} HTTP/1.1\r\n${lines.join('')}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  )
}

/** As fast as it goes: each connection sends its next request when the last is answered. */
export async function load(target: Target, connections: number, seconds: number): Promise<Figures> {
  const bytes = request(target)
  const times: number[] = []
  const statuses: Record<number, number> = {}
  const started = performance.now()
  const end = started + seconds * 1000
  const work = Array.from({ length: connections }, async () => {
    const connection = new Connection(target.port)
    while (performance.now() < end) {
      const sent = performance.now()
      const { status } = await connection.exchange(bytes)
      times.push(performance.now() - sent)
      statuses[status] = (statuses[status] ?? 0) + 1
    }
    connection.close()
  })
  await Promise.all(work)
  const elapsed_s = (performance.now() - started) / 1000
  const per_second = times.length / elapsed_s
  return { per_second, p50_ms: quantile(times, 0.5), p99_ms: quantile(times, 0.99), statuses }
}

export const quantile = (times: number[], share: number) =>
  times.toSorted((a, b) => a - b)[Math.min(times.length - 1, Math.floor(times.length * share))] ?? NaN

export class Connection {
  readonly #socket
  #answer = ''
  #done: ((answer: string) => void) | null = null
  #failed: ((error: Error) => void) | null = null

  constructor(port: number) {
    this.#socket = connect({ port, host: '127.0.0.1', noDelay: true })
    this.#socket.setEncoding('latin1')
    this.#socket.on('data', (text: string) => {
      this.#answer += text
      if (isWhole(this.#answer)) this.#done?.(this.#answer)
    })
    this.#socket.setTimeout(silence_ms, () => this.#socket.destroy(new Error('no whole answer in time')))
    this.#socket.on('error', (error) => this.#failed?.(error))
    this.#socket.on('close', () => this.#failed?.(new Error('the connection closed')))
  }

  async exchange(bytes: Buffer): Promise<{ status: number; text: string }> {
    this.#answer = ''
    if (this.#socket.destroyed) throw new Error('the connection closed')
    const text = await new Promise<string>((resolve, reject) => {
      this.#done = resolve
      this.#failed = reject
      this.#socket.write(bytes)
    })
    return { status: Number(text.slice(9, 12)), text }
  }

  /** False once the server closed it for being idle. */
  get open(): boolean {
    return !this.#socket.destroyed
  }

  close(): void {
    this.#failed = null
    this.#socket.destroy()
  }
}

function isWhole(answer: string): boolean {
  const head = answer.indexOf('\r\n\r\n')
  if (head < 0) return false
  if (answer.endsWith('0\r\n\r\n') && /\r\ntransfer-encoding: chunked\r\n/i.test(answer.slice(0, head + 2)))
    return true
  const length = /\r\ncontent-length: (\d+)\r\n/i.exec(answer.slice(0, head + 2))?.[1]
  return length !== undefined && answer.length - head - 4 >= Number(length)
}
