/** /v1/batches in OpenAI's form; beside it `webhook`, told of batch.completed, failed, expired or cancelled. */
import { Hono, type Context } from 'hono'
import * as z from 'zod/mini'
import { bodyText } from '../body-text.ts'
import type { AppEnv } from '../app-env.ts'
import { auth, scope } from '../keys/auth.ts'
import type { batchView } from './batch.ts'
import { parse, parseJson } from '../../src/json-body.ts'
import { standing } from '../limits/count.ts'
import { limitedBody } from '../chat/limited-body.ts'
import { batchesOf } from './file-routes.ts'
import { accepted, endpointOf, stored, WebhookFields } from './job-routes.ts'
import { found } from '../found.ts'
import { cursorOf, pageSize } from '../list-query.ts'

type Batch = ReturnType<typeof batchView>

const NewBatch = z.object({
  input_file_id: z.string(),
  endpoint: z.literal('/v1/chat/completions', { error: 'must be /v1/chat/completions' }),
  completion_window: z.literal('24h', { error: 'must be 24h' }),
  metadata: WebhookFields.metadata,
  webhook: WebhookFields.webhook,
})

const own = (c: Context<AppEnv>) => batchesOf(c.env, c.var.caller.tenantId)

export const batches: Hono<AppEnv> = new Hono<AppEnv>()
  .use(auth, scope('jobs'), standing, limitedBody)
  .post('/', async (c) => {
    const { input_file_id, metadata, webhook } = parse(NewBatch, parseJson(await bodyText(c.req)))
    found(await own(c).file(input_file_id))
    const endpoint = await endpointOf(c, { webhook })
    const made = accepted(
      await stored(
        own(c).create({
          id: `batch_${crypto.randomUUID().replaceAll('-', '')}`,
          caller: JSON.stringify(c.var.caller),
          input_file_id,
          endpoints: JSON.stringify(endpoint === null ? [] : [endpoint]),
          metadata: metadata ? JSON.stringify(metadata) : null,
        }),
      ),
    )
    const signing_secret = endpoint === null ? {} : { signing_secret: endpoint.secrets[0] }
    return c.json({ ...(JSON.parse(made) as Batch), ...signing_secret })
  })
  .get('/', async (c) => {
    const limit = pageSize(c)
    const data = JSON.parse(
      await own(c).list(cursorOf(c, /^batch_[0-9a-f]{32}$/, 'after'), limit + 1),
    ) as Batch[]
    const page = data.slice(0, limit)
    const [first_id, last_id] = [page[0]?.id ?? null, page.at(-1)?.id ?? null]
    return c.json({ object: 'list', data: page, first_id, last_id, has_more: data.length > limit })
  })
  .get('/:id', async (c) => c.json(shown(await own(c).show(c.req.param('id')))))
  .post('/:id/cancel', async (c) => c.json(shown(await own(c).cancel(c.req.param('id')))))

const shown = (text: string | null) => JSON.parse(found(text)) as Batch
