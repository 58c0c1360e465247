/** What a JSON body may be; behind auth, so that a stranger's is not read. */
import { bodyLimit } from 'hono/body-limit'
import { ApiError } from '../../src/errors.ts'

const body_bytes_max = 4 * 1024 * 1024

export const limitedBody = bodyLimit({
  maxSize: body_bytes_max,
  onError: async (c) => {
    // An answer before the body was read would reset the connection under a client that is still sending.
    if (c.req.raw.body?.locked === false)
      await c.req.raw.body.pipeTo(new WritableStream()).catch(() => undefined)
    throw new ApiError('body_too_large', 'The body is larger than 4 MB.')
  },
})
