/**
 * A request's body as text. What is wrong with it is its sender's, and said by name: one that breaks off, that is no
 * UTF-8, or that is compressed (which no client does unasked, and which would unpack to more than the limit of a body).
 */
import type { HonoRequest } from 'hono'
import { ApiError } from '../src/errors.ts'

export async function bodyText(req: HonoRequest): Promise<string> {
  requireUncompressed(req)
  const bytes = await received(req.arrayBuffer())
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: false }).decode(bytes)
  } catch (cause) {
    throw new ApiError('invalid_encoding', 'The body is not valid UTF-8.', { cause })
  }
}

export function requireUncompressed(req: HonoRequest): void {
  const encoding = req.header('content-encoding') ?? 'identity'
  if (encoding.toLowerCase() === 'identity') return
  throw new ApiError('unsupported_encoding', `Send the body as it is, not as ${encoding.slice(0, 40)}.`, {
    headers: { 'accept-encoding': 'identity' },
    param: 'content-encoding',
  })
}

/** What reading a body gives: it fails where its sender has gone. */
export async function received<T>(read: Promise<T>): Promise<T> {
  try {
    return await read
  } catch (cause) {
    if (cause instanceof ApiError) throw cause
    throw new ApiError('incomplete_body', 'The body broke off before its end.', { cause })
  }
}
