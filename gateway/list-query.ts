/** What a list is asked for. A value that is not understood is a 400 by name; an empty one is as none. */
import type { Context } from 'hono'
import { ApiError } from '../src/errors.ts'

const page_max = 100
const page_default = 20

/** `?limit=`: rows of a page, 20 unless told, 100 at the most. */
export function pageSize(c: Context): number {
  const limit = wholeNumber(c, 'limit') ?? page_default
  if (limit < 1) throw wrong('limit', 'a whole number from 1')
  return Math.min(limit, page_max)
}

/** Where the page before ended: an id of this form, or '' for the first page. OpenAI's own lists call it `after`. */
export function cursorOf(c: Context, form: RegExp, param: 'cursor' | 'after' = 'cursor'): string {
  const cursor = c.req.query(param) ?? ''
  if (cursor === '' || form.test(cursor)) return cursor
  throw wrong(param, 'what the page before gave')
}

/** `?cursor=` of a list whose rows are numbered; null: the first page. */
export const numberedCursor = (c: Context): number | null => wholeNumber(c, 'cursor')

export function statusOf<T extends string>(c: Context, statuses: readonly T[]): T | null {
  const asked = c.req.query('status') ?? ''
  if (asked === '') return null
  const status = statuses.find((known) => known === asked)
  if (status === undefined) throw wrong('status', `one of ${statuses.join(', ')}`)
  return status
}

export function wholeNumber(c: Context, param: string): number | null {
  const text = c.req.query(param) ?? ''
  if (text === '') return null
  if (!/^\d{1,15}$/.test(text)) throw wrong(param, 'a whole number')
  return Number(text)
}

export const wrong = (param: string, wanted: string) =>
  new ApiError('invalid_value', `Invalid value for '${param}': expected ${wanted}.`, { param })
