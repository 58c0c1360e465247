/** What a JSON body may be; behind auth, so that a stranger's is not read. */
import { bodyLimit } from 'hono/body-limit'
import { ApiError } from '../../src/errors.ts'
import { factory } from '../app-env.ts'
import { received } from '../body-text.ts'

const body_bytes_max = 4 * 1024 * 1024

const limit = bodyLimit({
  maxSize: body_bytes_max,
  onError: async (c) => {
    // An answer before the body was read would reset the connection under a client that is still sending.
    if (c.req.raw.body?.locked === false)
      await c.req.raw.body.pipeTo(new WritableStream()).catch(() => undefined)
    throw new ApiError('body_too_large', 'The body is larger than 4 MB.')
  },
})

export const limitedBody = factory.createMiddleware(async function limitedBody(c, next) {
  const said = c.req.header('transfer-encoding') === undefined ? c.req.header('content-length') : undefined
  // To ask for the body as a stream, as the library does first, costs more than the rest.
  return Number(said) <= body_bytes_max ? next() : received(limit(c, next))
})
