/**
 * The outbox of one tenant: every event that must reach a receiver, what was tried, and each endpoint's breaker. A row is
 * written in the transaction that ends its job, so an end is told exactly once by id, at least once by wire.
 */
import { migrate } from '../schema.ts'
import { deliver, type Outcome } from './deliver.ts'
import {
  afterAttempt,
  failures_max,
  isProbing,
  nextGap,
  timeScale,
  type Breaker,
} from './delivery-schedule.ts'
import type { Endpoint } from './job.ts'
import { secretsNow } from './signing-keys.ts'

export interface Told extends Pick<Endpoint, 'url' | 'secrets' | 'signer'> {
  webhook_id: string
  body: string
}

export type DeliveryRow = {
  id: string
  webhook_id: string
  job_id: string | null
  url: string
  secrets: string
  signer: string | null
  body: string
  status: 'pending' | 'sending' | 'delivered' | 'dead'
  attempt: number
  next_at: number | null
  created_at: number
  status_code: number | null
  error: string | null
}

export type AttemptRow = {
  id: string
  webhook_id: string
  attempt: number
  status_code: number | null
  error: string | null
  at: number | null
  next_at: number | null
}

/** At most this many at once, all together and to one endpoint: a receiver that hangs leaves room for the others. */
const in_flight_max = 5
const in_flight_per_endpoint_max = 3
const due_rows = 20
const dead_kept_ms = 30 * 24 * 3_600_000

const schema = [
  `CREATE TABLE IF NOT EXISTS deliveries (id TEXT PRIMARY KEY, webhook_id TEXT NOT NULL, job_id TEXT, url TEXT NOT NULL,
     secrets TEXT NOT NULL, body TEXT NOT NULL, status TEXT NOT NULL, attempt INTEGER NOT NULL, next_at INTEGER,
     created_at INTEGER NOT NULL, status_code INTEGER, error TEXT, UNIQUE (webhook_id, url)) WITHOUT ROWID;
   DROP INDEX IF EXISTS due;
   CREATE INDEX IF NOT EXISTS due_at ON deliveries (status, next_at, url);
   CREATE INDEX IF NOT EXISTS of_job ON deliveries (job_id);
   CREATE TABLE IF NOT EXISTS attempts (delivery_id TEXT NOT NULL, at INTEGER NOT NULL, attempt INTEGER NOT NULL,
     status_code INTEGER, error TEXT, next_at INTEGER, PRIMARY KEY (delivery_id, at, attempt)) WITHOUT ROWID;
   CREATE TABLE IF NOT EXISTS endpoints (url TEXT PRIMARY KEY, failures INTEGER NOT NULL, open_until INTEGER NOT NULL,
     disabled INTEGER NOT NULL) WITHOUT ROWID`,
  'ALTER TABLE deliveries ADD COLUMN signer TEXT',
]

export class Outbox {
  readonly #sql: SqlStorage
  readonly #kv: SyncKvStorage
  readonly #env: Env
  readonly #inFlight = new Map<string, number>()
  #sending = 0

  constructor(storage: DurableObjectStorage, env: Env) {
    this.#sql = storage.sql
    this.#kv = storage.kv
    this.#env = env
    migrate(storage, 'outbox', schema)
    // Whoever was sending these is gone.
    this.#sql.exec("UPDATE deliveries SET status = 'pending' WHERE status = 'sending'")
  }

  /** Nothing happens where this event already stands for this receiver. */
  add(message: Told, job_id: string | null): string {
    // In order of time, as lists are.
    const at = Date.now().toString(16).padStart(12, '0')
    const id = `dlv_${at}${crypto.randomUUID().replaceAll('-', '').slice(0, 20)}`
    this.#sql.exec(
      `INSERT OR IGNORE INTO deliveries (id, webhook_id, job_id, url, secrets, signer, body, status, attempt, next_at, created_at)
       VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', 0, ?, ?)`,
      id,
      message.webhook_id,
      job_id,
      message.url,
      JSON.stringify(message.secrets),
      message.signer ?? null,
      message.body,
      Date.now(),
      Date.now(),
    )
    return id
  }

  /** Starts what is due and fits; `done` is called after each. */
  send(now: number, done: () => void): void {
    if (this.#sending >= in_flight_max) return
    const inFlight = JSON.stringify([...this.#inFlight.keys()])
    const full = [...this.#inFlight].filter(([, n]) => n >= in_flight_per_endpoint_max).map(([url]) => url)
    const paused = this.#sql
      .exec<{ url: string }>(
        `SELECT url FROM endpoints WHERE open_until > ?1
         OR (failures >= ?2 AND url IN (SELECT value FROM json_each(?3)))`,
        now,
        failures_max,
        inFlight,
      )
      .toArray()
    // The inner query reads its index alone: all that waits for one endpoint is passed over at little cost.
    const due = this.#sql
      .exec<DeliveryRow & { failures: number; disabled: number }>(
        `SELECT d.*, coalesce(e.failures, 0) AS failures, coalesce(e.disabled, 0) AS disabled
         FROM deliveries d LEFT JOIN endpoints e ON e.url = d.url WHERE d.id IN (
           SELECT id FROM deliveries WHERE status = 'pending' AND next_at <= ?1
           AND url NOT IN (SELECT value FROM json_each(?2)) ORDER BY next_at LIMIT ?3) ORDER BY d.next_at`,
        now,
        JSON.stringify([...full, ...paused.map(({ url }) => url)]),
        due_rows,
      )
      .toArray()
    let begun = 0
    for (const row of due) {
      if (this.#sending >= in_flight_max) return
      if (row.disabled === 1) {
        this.#end(row, { type: 'refused', status_code: null, error: 'the receiver wanted no more' })
        continue
      }
      const breaker: Breaker = { failures: row.failures, open_until: 0 }
      const most = isProbing(breaker) ? 1 : in_flight_per_endpoint_max
      if ((this.#inFlight.get(row.url) ?? 0) >= most) continue
      this.#sql.exec("UPDATE deliveries SET status = 'sending' WHERE id = ?", row.id)
      this.#count(row.url, 1)
      void this.#attempt(row, done)
      begun++
    }
    // Those behind a page full of one endpoint's.
    if (begun > 0 && due.length === due_rows) this.send(now, done)
  }

  get sending(): number {
    return this.#sending
  }

  /** When to look again after `now`; null: nothing waits for its time. */
  nextAfter(now: number): number | null {
    const sql = `SELECT min(at) AS at FROM (
      SELECT min(next_at) AS at FROM deliveries WHERE status = 'pending' AND next_at > ?1
      UNION ALL SELECT min(open_until) FROM endpoints WHERE open_until > ?1)`
    return this.#sql.exec<{ at: number | null }>(sql, now).one().at
  }

  attemptsOf(job_id: string): AttemptRow[] {
    const sql = `SELECT d.id, d.webhook_id, coalesce(a.attempt, 0) AS attempt, a.status_code, a.error, a.at,
        iif(a.at IS NULL, d.next_at, a.next_at) AS next_at
      FROM deliveries d LEFT JOIN attempts a ON a.delivery_id = d.id WHERE d.job_id = ? ORDER BY d.id, a.at`
    return this.#sql.exec<AttemptRow>(sql, job_id).toArray()
  }

  /** Newest first. */
  list(status: string | null, after: string, limit: number): DeliveryRow[] {
    const sql = `SELECT * FROM deliveries WHERE (?1 = '' OR id < ?1) AND status = coalesce(?2, status)
      ORDER BY id DESC LIMIT ?3`
    return this.#sql.exec<DeliveryRow>(sql, after, status, limit).toArray()
  }

  /** Sends it again from the first attempt on, under the same id; an endpoint that was given up gets another chance. */
  replay(id: string): DeliveryRow | null {
    const row = this.#sql.exec<DeliveryRow>('SELECT * FROM deliveries WHERE id = ?', id).toArray()[0]
    if (row === undefined) return null
    if (row.status === 'pending' || row.status === 'sending') return row
    this.#sql.exec('DELETE FROM endpoints WHERE url = ?', row.url)
    const sql = "UPDATE deliveries SET status = 'pending', attempt = 0, next_at = ? WHERE id = ? RETURNING *"
    return this.#sql.exec<DeliveryRow>(sql, Date.now(), id).one()
  }

  /** All of a status whose events came since then. */
  replaySince(since_ms: number, status: 'dead' | 'delivered'): number {
    const where = 'status = ? AND created_at >= ?'
    this.#sql.exec(
      `DELETE FROM endpoints WHERE url IN (SELECT url FROM deliveries WHERE ${where})`,
      status,
      since_ms,
    )
    const sql = `UPDATE deliveries SET status = 'pending', attempt = 0, next_at = ? WHERE ${where} RETURNING id`
    return this.#sql.exec(sql, Date.now(), status, since_ms).toArray().length
  }

  forget(before_ms: number): void {
    this.#sql.exec(
      `DELETE FROM deliveries WHERE (status = 'delivered' AND created_at < ?) OR (status = 'dead' AND created_at < ?)`,
      before_ms,
      Date.now() - dead_kept_ms,
    )
    this.#sql.exec('DELETE FROM attempts WHERE delivery_id NOT IN (SELECT id FROM deliveries)')
  }

  async #attempt(row: DeliveryRow, done: () => void): Promise<void> {
    try {
      const held = { signer: row.signer, secrets: JSON.parse(row.secrets) as string[] }
      const secrets = await secretsNow(this.#env, this.#kv, held)
      this.#end(row, await deliver(this.#env, { ...row, secrets }))
    } catch (cause) {
      console.error('a delivery could not be tried', row.id, cause)
      this.#end(row, { type: 'failed', status_code: null, error: 'could not be tried', retryAfterMs: 0 })
    } finally {
      this.#count(row.url, -1)
      done()
    }
  }

  #end(row: DeliveryRow, outcome: Outcome): void {
    const now = Date.now()
    const scale = timeScale(this.#env)
    const attempt = row.attempt + 1
    const gap =
      outcome.type === 'failed'
        ? nextGap(attempt, { retryAfterMs: outcome.retryAfterMs, random: Math.random(), timeScale: scale })
        : null
    const next_at = gap === null ? null : Math.ceil(now + gap)
    const status = outcome.type === 'delivered' ? 'delivered' : next_at === null ? 'dead' : 'pending'
    const error = outcome.type === 'delivered' ? null : outcome.error
    const code = outcome.status_code
    this.#sql.exec(
      'UPDATE deliveries SET status = ?, attempt = ?, next_at = ?, status_code = ?, error = ? WHERE id = ?',
      status,
      attempt,
      next_at,
      code,
      error,
      row.id,
    )
    const log = `INSERT OR REPLACE INTO attempts (delivery_id, at, attempt, status_code, error, next_at)
      VALUES (?, ?, ?, ?, ?, ?)`
    this.#sql.exec(log, row.id, now, attempt, code, error, next_at)
    this.#judge(row.url, outcome, now, scale)
  }

  /** What this attempt says of the endpoint. */
  #judge(url: string, outcome: Outcome, now: number, scale: number): void {
    const known = this.#sql
      .exec<{ failures: number; open_until: number }>(
        'SELECT failures, open_until FROM endpoints WHERE url = ?',
        url,
      )
      .toArray()[0]
    if (known === undefined && outcome.type === 'delivered') return
    const before = known ?? { failures: 0, open_until: 0 }
    const { failures, open_until } = afterAttempt(before, outcome.type === 'delivered', now, scale)
    const gone = Number(outcome.status_code === 410)
    const sql = `INSERT INTO endpoints (url, failures, open_until, disabled) VALUES (?1, ?2, ?3, ?4)
      ON CONFLICT (url) DO UPDATE SET failures = ?2, open_until = ?3, disabled = max(disabled, ?4)`
    this.#sql.exec(sql, url, failures, Math.ceil(open_until), gone)
  }

  #count(url: string, change: number): void {
    this.#sending += change
    const now = (this.#inFlight.get(url) ?? 0) + change
    if (now === 0) this.#inFlight.delete(url)
    else this.#inFlight.set(url, now)
  }
}
