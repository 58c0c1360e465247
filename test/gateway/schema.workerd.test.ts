/** Deployments are upgraded while they run: what an object stored under an older version, or a newer one, must be read. */
import { env } from 'cloudflare:workers'
import { abortAllDurableObjects, runInDurableObject } from 'cloudflare:test'
import { expect, it } from 'vitest'
import { flightsOf } from '../../gateway/flights/flight-names.ts'
import { FlightStore } from '../../gateway/flights/flight-store.ts'
import type { Caller } from '../../gateway/keys/identify.ts'
import { UsageBook } from '../../gateway/limits/usage-book.ts'
import { migrate } from '../../gateway/schema.ts'

const inStorage = <T>(name: string, work: (storage: DurableObjectStorage) => T) =>
  runInDurableObject(env.REGISTRY.getByName(name), async (_, { storage }) => work(storage))

it('steps run once each, in order, and one that fails leaves all as it was', async () => {
  await inStorage('steps', (storage) => {
    const steps = ['CREATE TABLE IF NOT EXISTS t (a TEXT)']
    const rows = () => storage.sql.exec('SELECT * FROM t').toArray()
    migrate(storage, 't', steps)
    storage.sql.exec("INSERT INTO t (a) VALUES ('old')")
    steps.push('ALTER TABLE t ADD COLUMN b TEXT')
    for (let start = 0; start < 3; start++) migrate(storage, 't', steps)
    expect(rows()).toEqual([{ a: 'old', b: null }])

    const bad = [...steps, 'ALTER TABLE t ADD COLUMN c TEXT', 'ALTER TABLE t ADD COLUMN c TEXT']
    expect(() => migrate(storage, 't', bad)).toThrow('duplicate column')
    expect(rows()).toEqual([{ a: 'old', b: null }])
    migrate(storage, 't', [...steps, 'ALTER TABLE t ADD COLUMN c TEXT'])
    expect(rows()).toEqual([{ a: 'old', b: null, c: null }])
    migrate(storage, 't', steps)
    expect(rows()).toEqual([{ a: 'old', b: null, c: null }])
  })
})

/** As they were published before steps were counted. */
const first = {
  jobs: `CREATE TABLE jobs (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, dedupe TEXT UNIQUE,
    status TEXT NOT NULL, caller TEXT NOT NULL, request TEXT NOT NULL, endpoints TEXT NOT NULL, metadata TEXT,
    attempt INTEGER NOT NULL, run INTEGER NOT NULL, ready_at INTEGER NOT NULL, created_at INTEGER NOT NULL,
    started_at INTEGER, finished_at INTEGER, response TEXT, error TEXT)`,
  deliveries: `CREATE TABLE deliveries (id TEXT PRIMARY KEY, webhook_id TEXT NOT NULL, job_id TEXT, url TEXT NOT NULL,
    secrets TEXT NOT NULL, body TEXT NOT NULL, status TEXT NOT NULL, attempt INTEGER NOT NULL, next_at INTEGER,
    created_at INTEGER NOT NULL, status_code INTEGER, error TEXT, UNIQUE (webhook_id, url)) WITHOUT ROWID`,
  flights: `CREATE TABLE flights (id TEXT PRIMARY KEY, request TEXT NOT NULL, done INTEGER NOT NULL,
    expires INTEGER NOT NULL) WITHOUT ROWID`,
}

it('an object of the first version wakes with its rows, and works', async () => {
  const tenant = `ten_${crypto.randomUUID().replaceAll('-', '')}`
  // A stub breaks with its object.
  const jobs = () => env.JOBS.getByName(tenant)
  const later = Date.now() + 3_600_000
  await runInDurableObject(jobs(), async (_, { storage }) => {
    await storage.deleteAll()
    storage.sql.exec(`${first.jobs}; ${first.deliveries}`)
    const job = `INSERT INTO jobs VALUES (NULL, ?, NULL, ?, '{"keyId":"key_1"}', '{}', '[]', NULL, 1, 1, ?, 0, 0, ?, NULL, NULL)`
    storage.sql.exec(job, 'job_done', 'completed', 0, later)
    storage.sql.exec(job, 'job_under_way', 'in_progress', later, null)
    storage.sql.exec(
      `INSERT INTO deliveries VALUES ('dlv_1', 'evt_1', 'job_done', 'https://a.io/', '["whsec_x"]', '{}', 'dead', 10, NULL, 1, 500, 'x')`,
    )
  })
  const flights = () => flightsOf(env, tenant, 0)
  await runInDurableObject(flights(), async (_, { storage }) => {
    await storage.deleteAll()
    storage.sql.exec(first.flights)
    storage.sql.exec(`INSERT INTO flights VALUES ('gen_1', '{}', 1, ?)`, later)
  })
  await abortAllDurableObjects()

  expect(await jobs().get('job_done', 0)).toMatchObject({ status: 'completed', interrupted: 0 })
  expect(await jobs().get('job_under_way', 0)).toMatchObject({ status: 'queued', interrupted: 1 })
  expect(await jobs().deliveries(null, '', 9)).toMatchObject([{ id: 'dlv_1', signer: null }])
  expect(await jobs().replay('dlv_1')).toMatchObject({ attempt: 0 })
  await runInDurableObject(flights(), async (_, { storage }) => {
    const store = new FlightStore(storage)
    const ticket = { id: 't', created: 1, includeUsage: false, logprobs: false, n: 1, toolCalls: false }
    store.addTicket('gen_1', ticket, later)
    expect(store.find('t')).toMatchObject({ flight: { id: 'gen_1', done: true } })
  })
})

it('every object works on tables to which a newer version has added columns', async () => {
  const tenant = `ten_${crypto.randomUUID().replaceAll('-', '')}`
  const now = Date.now()
  const use = { key_id: 'key_1', model: 'tiny', template: '' }
  const at = {
    jobs: () => env.JOBS.getByName(tenant),
    batches: () => env.BATCHES.getByName(tenant),
    templates: () => env.TEMPLATES.getByName(tenant),
    registry: () => env.REGISTRY.getByName(tenant),
    directory: () => env.DIRECTORY.getByName(tenant),
    flights: () => flightsOf(env, tenant, 0),
    limits: () => env.TENANT.getByName(tenant),
  }
  const caller = { keyId: 'key_1', tenantId: tenant } as Caller
  const work = async (n: number) => {
    const job = { id: `job_${n}`, caller, request: '{}', endpoints: [], metadata: null, dedupe: null }
    expect(await at.jobs().create(job)).toMatchObject({ isNew: true })
    await at.jobs().cancel(job.id)
    const event = { webhook_id: `evt_${n}`, url: 'https://10.0.0.1/', secrets: [], body: '{}' }
    const id = await at.jobs().tell(event)
    await expect
      .poll(async () => (await at.jobs().deliveries('dead', '', 9)).map((row) => row.id))
      .toContain(id)
    const file = { id: `file-${n}`, bytes: 1, created_at: n, filename: 'f', purpose: 'batch' } as const
    await at.batches().addFile({ ...file, object: 'file' })
    const input = { caller: JSON.stringify(caller), input_file_id: file.id, endpoints: '[]', metadata: null }
    expect(await at.batches().create({ ...input, id: `batch_${n}` })).toContain('validating')
    expect(await at.templates().create(`tpl_${n}`, 'x', '{}')).toMatchObject({ version: 1 })
    await at.registry().add(tenant)
    await at.registry().record({ action: 'a', tenant_id: tenant, target: '', request_id: '', detail: {} })
    const key = { id: 'key_1', tenant_id: tenant, name: 'k', scopes: null, models: null, expires_at: null }
    await at.directory().put(`hash-${n}`, key)
    expect(await at.flights().claim(`k${n}`, 'body', 'gen', now + 9_000)).toEqual({
      body: 'body',
      generation: 'gen',
    })
    await runInDurableObject(at.limits(), async (_, { storage }) => {
      const book = new UsageBook(storage)
      book.addRequests(use, 1, 0, now)
      book.flush()
      expect(book.read(now / 1000 - 7_200, now / 1000 + 7_200, 'key')).toMatchObject([{ requests: n }])
    })
    await runInDurableObject(at.flights(), async (_, { storage }) => {
      const store = new FlightStore(storage)
      store.begin(`gen_${n}`, {} as Parameters<typeof store.begin>[1], 'wire', now)
      store.append(`gen_${n}`, 0, ['x'])
    })
  }
  await work(1)
  for (const stub of Object.values(at))
    await runInDurableObject(stub() as DurableObjectStub, async (_, { storage }) => {
      const tables = storage.sql
        .exec<{ name: string }>(
          "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB '[_s]*_*'",
        )
        .toArray()
      expect(tables.length).toBeGreaterThan(0)
      for (const { name } of tables) storage.sql.exec(`ALTER TABLE ${name} ADD COLUMN of_later TEXT`)
    })
  await abortAllDurableObjects()
  await work(2)
})
