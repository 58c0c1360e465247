/**
 * The jobs of one tenant and the outbox of what must be told about them.
 *
 * SQLite here is the truth and an alarm is the engine: a job is durable before it is accepted. Execution is at least
 * once (whatever was under way when this object died is run again), its effect exactly once: a result is taken only from
 * the attempt that the row names, and the event that tells of it is written in the same transaction. A tenant has one
 * object and runs `running_max` jobs at once, so a flood of one tenant's waits behind itself. A job over a limit waits, and
 * with it those of the same key. No queue stands between: it would hold a second, weaker copy of the truth.
 *
 * An alarm that keeps throwing is dropped by the platform: this one sets the next before it works, and never throws.
 */
import { DurableObject } from 'cloudflare:workers'
import { ApiError } from '../../src/errors.ts'
import { answer, type Answer } from '../chat/answer.ts'
import type { Caller } from '../keys/identify.ts'
import { migrate } from '../schema.ts'
import { isTerminal, jobEvent, kept_ms, type Endpoint, type JobRow, type JobStatus } from './job.ts'
import { attemptEnd, failed } from './job-attempt.ts'
import { interrupted_max, requeue, takeNext } from './job-queue.ts'
import { Outbox, type AttemptRow, type DeliveryRow, type Told } from './outbox.ts'
import type { SigningPair } from './signature.ts'
import { rotateSigningSecret, signingPair, signingSecrets } from './signing-keys.ts'

export interface NewJob {
  id: string
  caller: Caller
  /** A chat request as JSON. */
  request: string
  endpoints: Endpoint[]
  metadata: string | null
  /** One job only is made for a key; null: always a new one. */
  dedupe: string | null
}

/** An object holds 10 GB; the outbox and the finished jobs of a week want their part. */
const stored_bytes_max = 5e9
/** Behind clients that wait. */
const priority = -1
/** How often an object at work is looked after, should it die meanwhile. */
const heartbeat_ms = 5_000
const purge_every_ms = 3_600_000

const schema = [
  `CREATE TABLE IF NOT EXISTS jobs (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, dedupe TEXT UNIQUE,
     status TEXT NOT NULL, caller TEXT NOT NULL, request TEXT NOT NULL, endpoints TEXT NOT NULL, metadata TEXT,
     attempt INTEGER NOT NULL, run INTEGER NOT NULL, ready_at INTEGER NOT NULL, created_at INTEGER NOT NULL,
     started_at INTEGER, finished_at INTEGER, response TEXT, error TEXT);
   CREATE INDEX IF NOT EXISTS by_status ON jobs (status, seq);
   CREATE INDEX IF NOT EXISTS by_ready ON jobs (status, ready_at);
   CREATE INDEX IF NOT EXISTS by_end ON jobs (finished_at)`,
  'ALTER TABLE jobs ADD COLUMN interrupted INTEGER NOT NULL DEFAULT 0',
]

export class Jobs extends DurableObject<Env> {
  readonly #sql: SqlStorage
  #outbox: Outbox
  readonly #running = new Map<string, AbortController>()
  readonly #suspects: Set<string>
  readonly #waiting = new Map<string, Set<() => void>>()
  #alarmAt = Infinity
  /** By key: until when (milliseconds since the epoch) a limit lets none of its jobs start. */
  readonly #held = new Map<string, number>()
  /** Counted here: asking SQLite would read every waiting row for every job that comes. */
  #queued: number
  #purgeAt = 0

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env)
    this.#sql = ctx.storage.sql
    migrate(ctx.storage, 'jobs', schema)
    this.#outbox = new Outbox(ctx.storage, env)
    this.#suspects = requeue(this.#sql)
    const waiting = "SELECT count(*) AS n FROM jobs WHERE status = 'queued'"
    this.#queued = this.#sql.exec<{ n: number }>(waiting).one().n
  }

  /** Everything, and what runs is stopped: its tenant was deleted. */
  async erase(): Promise<void> {
    for (const abort of this.#running.values()) abort.abort()
    await this.ctx.storage.deleteAlarm()
    await this.ctx.storage.deleteAll()
    migrate(this.ctx.storage, 'jobs', schema)
    this.#outbox = new Outbox(this.ctx.storage, this.env)
    this.#held.clear()
    this.#suspects.clear()
    this.#queued = 0
    this.#alarmAt = Infinity
  }

  /** @returns the job, and whether it is new; the first one where its dedupe key is known; null: too many wait already. */
  async create(
    job: NewJob,
  ): Promise<{ id: string; status: JobStatus; isNew: boolean; isSame: boolean } | null> {
    const now = Date.now()
    const known = 'SELECT id, status, request FROM jobs WHERE dedupe = ?'
    const first = this.#sql
      .exec<{ id: string; status: JobStatus; request: string }>(known, job.dedupe)
      .toArray()[0]
    if (first !== undefined) {
      const { id, status, request } = first
      return { id, status, isNew: false, isSame: request === job.request }
    }
    if (this.#queued >= Number(this.env.QUEUED_JOBS_MAX) || this.#sql.databaseSize > stored_bytes_max)
      return null
    this.#sql.exec<{ id: string }>(
      `INSERT INTO jobs (id, dedupe, status, caller, request, endpoints, metadata, attempt, run, ready_at, created_at)
         VALUES (?, ?, 'queued', ?, ?, ?, ?, 0, 1, ?, ?)`,
      job.id,
      job.dedupe,
      JSON.stringify(job.caller),
      job.request,
      JSON.stringify(job.endpoints),
      job.metadata,
      now,
      now,
    )
    this.#queued++
    this.#work()
    return { id: job.id, status: 'queued', isNew: true, isSame: true }
  }

  /** The job, once it has ended or `wait_ms` have passed. */
  async get(id: string, wait_ms: number): Promise<JobRow | null> {
    const row = this.#row(id)
    if (row === null || isTerminal(row.status) || wait_ms <= 0) return row
    await new Promise<void>((resolve) => {
      const waiting = this.#waiting.get(id) ?? new Set()
      this.#waiting.set(id, waiting.add(resolve))
      setTimeout(() => {
        waiting.delete(resolve)
        if (waiting.size === 0) this.#waiting.delete(id)
        resolve()
      }, wait_ms)
    })
    return this.#row(id)
  }

  /** Newest first. */
  list(status: string | null, before: number, limit: number): JobRow[] {
    const sql = 'SELECT * FROM jobs WHERE seq < ? AND status = coalesce(?, status) ORDER BY seq DESC LIMIT ?'
    return this.#sql.exec<JobRow>(sql, before, status, limit).toArray()
  }

  async cancel(id: string): Promise<JobRow | null> {
    const row = this.#row(id)
    if (row === null || isTerminal(row.status)) return row
    if (row.status === 'queued') this.#queued--
    this.#finish({ ...row, status: 'cancelled', finished_at: Date.now() })
    this.#running.get(id)?.abort()
    this.#work()
    return this.#row(id)
  }

  /** Runs a job again that failed or was cancelled, for whoever asks; null where it is not one of these. */
  async retry(id: string, caller: Caller): Promise<JobRow | null> {
    const sql = `UPDATE jobs SET status = 'queued', run = run + 1, attempt = 0, interrupted = 0, ready_at = ?, started_at = NULL,
        finished_at = NULL, error = NULL, caller = ? WHERE id = ? AND status IN ('failed', 'cancelled') RETURNING *`
    const row = this.#sql.exec<JobRow>(sql, Date.now(), JSON.stringify(caller), id).toArray()[0]
    if (row === undefined) return null
    this.#queued++
    this.#work()
    return row
  }

  attempts(id: string): AttemptRow[] {
    return this.#outbox.attemptsOf(id)
  }

  deliveries(status: string | null, after: string, limit: number): DeliveryRow[] {
    return this.#outbox.list(status, after, limit)
  }

  async replay(id: string): Promise<DeliveryRow | null> {
    const row = this.#outbox.replay(id)
    this.#work()
    return row
  }

  async replaySince(since_ms: number, status: 'dead' | 'delivered'): Promise<number> {
    const count = this.#outbox.replaySince(since_ms, status)
    this.#work()
    return count
  }

  /** An event that no job stands behind. */
  async tell(message: Told): Promise<string> {
    const id = this.#outbox.add(message, null)
    this.#work()
    return id
  }

  /** What the tenant's own webhooks are signed with, the newest first. */
  signingSecrets(): string[] {
    return signingSecrets(this.ctx.storage.kv)
  }

  rotateSigningSecret(grace_ms: number): string[] {
    return rotateSigningSecret(this.ctx.storage.kv, grace_ms)
  }

  signingPair(): Promise<SigningPair> {
    return signingPair(this.ctx.storage.kv)
  }

  /** The tenant's hooks by id: each is an object of its own, which none could find otherwise. */
  addHook(id: string): void {
    this.ctx.storage.kv.put(`hook:${id}`, true)
  }

  removeHook(id: string): void {
    this.ctx.storage.kv.delete(`hook:${id}`)
  }

  hooks(after: string, limit: number): string[] {
    const prefix = 'hook:'
    const options = { prefix, limit, ...(after === '' ? {} : { startAfter: prefix + after }) }
    return [...this.ctx.storage.kv.list(options)].map(([key]) => key.slice(prefix.length))
  }

  override alarm(): void {
    this.#alarmAt = Infinity
    try {
      this.#work()
    } catch (cause) {
      console.error('jobs could not be worked on', cause)
      this.#wakeAt(Date.now() + heartbeat_ms)
    }
  }

  /** Starts what may start, and sees to it that somebody looks again. */
  #work(): void {
    const now = Date.now()
    this.#wakeAt(now + heartbeat_ms)
    if (now >= this.#purgeAt) this.#purge(now)
    for (const [key, until] of this.#held) if (until <= now) this.#held.delete(key)
    this.#startJobs(now)
    this.#outbox.send(now, () => this.#work())

    const sql = "SELECT min(ready_at) AS at FROM jobs WHERE status = 'queued' AND ready_at > ?"
    const nextJob = Math.min(
      this.#sql.exec<{ at: number | null }>(sql, now).one().at ?? Infinity,
      ...this.#held.values(),
    )
    const nextPurge =
      this.#sql.exec('SELECT 1 FROM jobs LIMIT 1').toArray().length > 0 ? this.#purgeAt : Infinity
    const next = Math.min(nextJob, this.#outbox.nextAfter(now) ?? Infinity, nextPurge)
    if (next < now + heartbeat_ms || !this.#isBusy()) this.#wakeAt(next, true)
  }

  #isBusy(): boolean {
    return this.#running.size > 0 || this.#outbox.sending > 0
  }

  /** @param exactly even if an earlier time is set. */
  #wakeAt(at: number, exactly = false): void {
    if (!exactly && this.#alarmAt <= at) return
    if (exactly && this.#alarmAt === at) return
    this.#alarmAt = at
    void (at === Infinity ? this.ctx.storage.deleteAlarm() : this.ctx.storage.setAlarm(at))
  }

  #startJobs(now: number): void {
    const rows = takeNext(this.#sql, {
      now,
      running: [...this.#running.keys()],
      held: [...this.#held.keys()],
      suspects: this.#suspects,
    })
    this.#queued -= rows.length
    for (const row of rows) {
      if (row.interrupted >= interrupted_max) {
        const error = new ApiError('job_interrupted', `This job broke off ${interrupted_max} times.`)
        this.#finish({ ...row, ...failed(error), status: 'failed', finished_at: now })
        return this.#startJobs(now)
      }
      const abort = new AbortController()
      this.#running.set(row.id, abort)
      void this.#run(row, abort).catch((cause: unknown) =>
        console.error('a job was left for later', row.id, cause),
      )
    }
  }

  async #run(row: JobRow, abort: AbortController): Promise<void> {
    let result: Answer
    try {
      result = await answer(this.env, this.ctx, {
        requestId: `req_${row.id.slice('job_'.length)}_${row.run}_${row.attempt}`,
        caller: JSON.parse(row.caller) as Caller,
        body: JSON.parse(row.request) as object,
        signal: abort.signal,
        priority,
      })
    } catch (cause) {
      console.error('a job could not be tried', row.id, cause)
      result = { ok: false, error: null }
    }
    if (this.#running.get(row.id) === abort) this.#running.delete(row.id)
    try {
      this.#settle(row, result)
    } catch (cause) {
      console.error('what a job gave could not be kept', row.id, cause)
      const error = new ApiError('internal_error', 'The result could not be kept.')
      this.#finish({ ...row, ...failed(error), status: 'failed', finished_at: Date.now() })
    }
    this.#work()
  }

  #settle(tried: JobRow, result: Answer): void {
    const row = this.#row(tried.id)
    // Cancelled meanwhile, or another attempt's to end.
    if (row?.status !== 'in_progress' || row.attempt !== tried.attempt || row.run !== tried.run) return
    const now = Date.now()
    const end = attemptEnd(result, row.attempt, now - (row.started_at ?? row.created_at))
    if (end.type === 'again') {
      if (end.holds) this.#held.set((JSON.parse(row.caller) as Caller).keyId, now + end.after_ms)
      // What only waited for its limit has not been tried.
      const sql = `UPDATE jobs SET status = 'queued', attempt = attempt - ?1, started_at = iif(?1, NULL, started_at),
        ready_at = ?2 WHERE id = ?3`
      // A moment behind the hold: those that were not tried yet go first.
      this.#sql.exec(sql, Number(end.holds), now + end.after_ms + Number(end.holds), row.id)
      this.#queued++
    } else {
      this.#finish({ ...row, status: end.type, response: end.response, error: end.error, finished_at: now })
    }
  }

  /** The end of a job and the events that tell of it, in one transaction. */
  #finish(row: JobRow): void {
    this.ctx.storage.transactionSync(() => {
      this.#sql.exec(
        'UPDATE jobs SET status = ?, response = ?, error = ?, finished_at = ? WHERE id = ?',
        row.status,
        row.response,
        row.error,
        row.finished_at,
        row.id,
      )
      const event = jobEvent(row)
      for (const { events, ...endpoint } of JSON.parse(row.endpoints) as Endpoint[]) {
        if (events.includes(event.type)) this.#outbox.add({ ...event, ...endpoint }, row.id)
      }
    })
    this.#suspects.delete(row.id)
    for (const resolve of this.#waiting.get(row.id) ?? []) resolve()
    this.#waiting.delete(row.id)
  }

  #row(id: string): JobRow | null {
    return this.#sql.exec<JobRow>('SELECT * FROM jobs WHERE id = ?', id).toArray()[0] ?? null
  }

  #purge(now: number): void {
    this.#purgeAt = now + purge_every_ms
    this.#sql.exec('DELETE FROM jobs WHERE finished_at < ?', now - kept_ms)
    this.#outbox.forget(now - kept_ms)
  }
}
