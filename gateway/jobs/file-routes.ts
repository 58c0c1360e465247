/** /v1/files in OpenAI's form: what batches read and write. An upload streams through to R2, 100 MB at most. */
import { Hono, type Context } from 'hono'
import { ApiError } from '../../src/errors.ts'
import type { AppEnv } from '../app-env.ts'
import { requireUncompressed } from '../body-text.ts'
import { auth, scope } from '../keys/auth.ts'
import { standing } from '../limits/count.ts'
import { fileKey, newFileId, writeFile, type StoredFile } from './file-store.ts'
import { found } from '../found.ts'
import { cursorOf, pageSize } from '../list-query.ts'
import { partText, readMultipart } from './multipart.ts'

const file_bytes_max = 100 * 1024 * 1024

export const batchesOf = (env: Env, tenantId: string) => env.BATCHES.getByName(tenantId)
const own = (c: Context<AppEnv>) => batchesOf(c.env, c.var.caller.tenantId)
const keyOf = (c: Context<AppEnv>, id: string) => fileKey(c.var.caller.tenantId, id)

export const files: Hono<AppEnv> = new Hono<AppEnv>()
  .use(auth, scope('jobs'), standing)
  .post('/', async (c) => {
    requireUncompressed(c.req)
    const { body } = c.req.raw
    if (!(await own(c).hasRoomForFile()))
      throw new ApiError('conflict', 'You keep 1,000 files, and more are not held: delete some first.')
    if (body === null)
      throw new ApiError('invalid_value', 'Send the file as multipart/form-data.', { param: 'file' })
    const id = newFileId()
    let uploaded: { filename: string; bytes: number } | null = null
    let purpose = ''
    try {
      for await (const part of readMultipart(body, c.req.header('content-type') ?? '')) {
        if (part.name === 'purpose') purpose = await partText(part)
        if (part.name !== 'file' || uploaded !== null) continue
        const bytes = await writeFile(c.env.FILES, keyOf(c, id), bounded(part.body), {})
        uploaded = { filename: part.filename ?? 'file', bytes }
      }
      if (uploaded === null)
        throw new ApiError('invalid_value', "There is no part named 'file'.", { param: 'file' })
      if (purpose !== 'batch')
        throw new ApiError('unsupported_value', "'purpose' must be 'batch'; other files are not kept.", {
          param: 'purpose',
        })
    } catch (cause) {
      if (uploaded !== null) await c.env.FILES.delete(keyOf(c, id))
      throw cause
    }
    const created_at = Math.floor(Date.now() / 1000)
    const file: StoredFile = { id, object: 'file', created_at, purpose, ...uploaded }
    await own(c).addFile(file)
    return c.json({ ...file, status: 'processed' })
  })
  .get('/', async (c) => {
    const limit = pageSize(c)
    const data = await own(c).files(cursorOf(c, /^file-[0-9a-f]{32}$/, 'after'), limit + 1)
    const page = data.slice(0, limit)
    const [first_id, last_id] = [page[0]?.id ?? null, page.at(-1)?.id ?? null]
    return c.json({ object: 'list', data: page, first_id, last_id, has_more: data.length > limit })
  })
  .get('/:id', async (c) => c.json(found(await own(c).file(c.req.param('id')))))
  .get('/:id/content', async (c) => {
    const { id } = found(await own(c).file(c.req.param('id')))
    const object = found(await c.env.FILES.get(keyOf(c, id)))
    return c.body(object.body, 200, { 'content-type': 'application/octet-stream' })
  })
  .delete('/:id', async (c) => {
    const { id } = found(await own(c).file(c.req.param('id')))
    if (!(await own(c).removeFile(id)))
      throw new ApiError('conflict', 'A batch still reads this file: wait for its end, or cancel it.')
    await c.env.FILES.delete(keyOf(c, id))
    return c.json({ id, object: 'file', deleted: true })
  })

async function* bounded(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let bytes = 0
  for await (const piece of pieces) {
    bytes += piece.length
    if (bytes > file_bytes_max) throw new ApiError('body_too_large', 'A file may have 100 MB.')
    yield piece
  }
}
