/** What a list is asked for and does not understand is a 400 by name, never an empty or another page. */
import { expect, it } from 'vitest'
import { admin } from './edge-client.ts'
import { get, newTenant } from './tenant-client.ts'

const cursors = ['x', '-1', "'; DROP TABLE jobs", '1.5', 'tpl', '9'.repeat(30)]
const limits = ['0', '-1', 'x', '1.5', '1e3', 'NaN']
const lists: [path: string, cursor: 'cursor' | 'after'][] = [
  ['/v1/jobs', 'cursor'],
  ['/v1/deliveries', 'cursor'],
  ['/v1/hooks', 'cursor'],
  ['/v1/templates', 'cursor'],
  ['/v1/files', 'after'],
  ['/v1/batches', 'after'],
  ['/admin/tenants', 'cursor'],
  ['/admin/audit', 'cursor'],
  ['/admin/usage', 'cursor'],
  ['/admin/templates', 'cursor'],
]

it.each(lists)('%s', async (path, cursor) => {
  const { key } = await newTenant()
  const list = (query: string) =>
    path.startsWith('/admin')
      ? admin(`${path.slice('/admin'.length)}?${query}`)
      : get(key, `${path}?${query}`)
  const refused = [
    ...cursors.map((value) => [cursor, value] as const),
    ...limits.map((value) => ['limit', value] as const),
    ...(/jobs|deliveries/.test(path) ? [['status', 'done'] as const] : []),
  ]
  for (const [param, value] of refused) {
    const response = await list(`${param}=${encodeURIComponent(value)}`)
    expect([param, value, response.status]).toEqual([param, value, 400])
    expect(await response.json()).toMatchObject({ error: { param, code: 'invalid_value' } })
  }
  for (const query of ['', `${cursor}=`, 'limit=', 'limit=1', 'limit=5000']) {
    expect([query, (await list(query)).status]).toEqual([query, 200])
  }
})

it('a wait that is no number of seconds is refused too', async () => {
  const { key } = await newTenant()
  expect((await get(key, '/v1/jobs/job_none?wait=long')).status).toBe(400)
  expect((await get(key, '/v1/jobs/job_none?wait=0')).status).toBe(404)
})
