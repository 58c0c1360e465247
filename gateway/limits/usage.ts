/** What was used, as the tenant and the operator may ask for it: JSON or CSV, grouped, by default of the last 24 hours. */
import type { Context } from 'hono'
import { factory, type AppEnv } from '../app-env.ts'
import { numberedCursor, pageSize, wrong } from '../list-query.ts'
import { isTenantId } from './tenant-record.ts'
import { groupings, type GroupBy, type UsageRow } from './usage-book.ts'

const day_s = 86_400

interface Range {
  from: number
  to: number
}

export const tenantUsage = factory.createHandlers(async function tenantUsage(c) {
  const range = readRange(c)
  const group = readGroup(c, groupings) ?? 'hour'
  const rows = await c.env.TENANT.getByName(c.var.caller.tenantId).usage(range.from, range.to, group)
  const data = rows.map((row) => shown(row, group))
  return answer(c, [group], { object: 'list', ...range, group_by: group, data })
})

/** Of one tenant (`?tenant=`) as the tenant sees it, or the sums of all of them, `?limit=` tenants a page. */
export const operatorUsage = factory.createHandlers(async function operatorUsage(c) {
  const range = readRange(c)
  const tenant = c.req.query('tenant')
  const group = readGroup(c, ['tenant', ...groupings] as const) ?? (tenant === undefined ? 'tenant' : 'hour')
  if (tenant !== undefined && !isTenantId(tenant)) throw wrong('tenant', "a tenant's id")
  const by = group === 'tenant' ? 'model' : group
  const { data: ids, next_cursor } =
    tenant === undefined
      ? await c.env.REGISTRY.getByName('registry').tenants(numberedCursor(c) ?? 0, pageSize(c))
      : { data: [tenant], next_cursor: null }
  const usages = await Promise.all(
    ids.map(async (id) => ({ id, rows: await c.env.TENANT.getByName(id).usage(range.from, range.to, by) })),
  )
  const data = usages.flatMap(({ id, rows }) =>
    group === 'tenant'
      ? [{ tenant: id, ...counts(sum(rows)) }]
      : rows.map((row) => ({ tenant: id, ...shown(row, group) })),
  )
  const heads = group === 'tenant' ? ['tenant'] : ['tenant', group]
  return answer(c, heads, { object: 'list', ...range, group_by: group, data, next_cursor })
})

const shown = (row: UsageRow, group: GroupBy) => ({
  [group]: group === 'hour' ? Number(row.group) : row.group,
  ...counts(row),
})

const no_row: UsageRow = { group: '', requests: 0, hits: 0, prompt: 0, cached: 0, completion: 0, cost: 0 }

const counts = (row: Omit<UsageRow, 'group'>) => ({
  requests: row.requests,
  hits: row.hits,
  prompt_tokens: row.prompt,
  cached_tokens: row.cached,
  completion_tokens: row.completion,
  cost: row.cost / 1e9,
})

function sum(rows: UsageRow[]): UsageRow {
  const total = { ...no_row }
  for (const row of rows) {
    for (const name of ['requests', 'hits', 'prompt', 'cached', 'completion', 'cost'] as const)
      total[name] += row[name]
  }
  return total
}

interface Answer extends Range {
  data: Record<string, string | number>[]
  [more: string]: unknown
}

/** @param heads what stands before the counts in each row, also where there is none */
function answer(c: Context<AppEnv>, heads: string[], body: Answer): Response {
  const format =
    c.req.query('format') ?? (c.req.header('accept')?.includes('text/csv') === true ? 'csv' : 'json')
  if (format === 'json') return c.json(body)
  if (format !== 'csv') throw wrong('format', 'json or csv')
  const columns = [...heads, ...Object.keys(counts(no_row))]
  const lines = [columns, ...body.data.map((row) => columns.map((column) => row[column] ?? ''))]
  const csv = lines.map((cells) => `${cells.map(cell).join(',')}\r\n`).join('')
  return c.body(csv, 200, { 'content-type': 'text/csv; charset=utf-8' })
}

/** RFC 4180; a text that a spreadsheet would take for a formula is kept a text. */
function cell(value: string | number): string {
  if (typeof value === 'number') return String(value)
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}

function readRange(c: Context<AppEnv>): Range {
  const now = Math.floor(Date.now() / 1000)
  const to = readTime(c, 'to') ?? now + 1
  const from = readTime(c, 'from') ?? to - day_s
  if (from >= to) throw wrong('from', 'a time before `to`')
  return { from, to }
}

/** Unix seconds or ISO 8601. */
function readTime(c: Context<AppEnv>, name: 'from' | 'to'): number | null {
  const text = c.req.query(name)
  if (text === undefined || text === '') return null
  const seconds = /^\d{1,12}$/.test(text) ? Number(text) : Date.parse(text) / 1000
  if (!Number.isFinite(seconds)) throw wrong(name, 'Unix seconds or ISO 8601, such as 2026-01-31T00:00:00Z')
  return Math.floor(seconds)
}

function readGroup<T extends string>(c: Context<AppEnv>, allowed: readonly T[]): T | null {
  const text = c.req.query('group_by')
  if (text === undefined) return null
  const group = allowed.find((name) => name === text)
  if (group === undefined) throw wrong('group_by', allowed.join(', '))
  return group
}
