import type { Context } from 'hono'

const page_max = 100

/** `?limit=` of a list: 1 to 100 rows, 20 where it is absent or no number. */
export const pageSize = (c: Context): number =>
  Math.min(Math.max(1, Math.trunc(Number(c.req.query('limit') ?? 20)) || 20), page_max)
