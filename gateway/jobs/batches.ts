/**
 * The batches and files of one tenant. A batch runs behind everything interactive: two requests at a time, at low
 * priority. Its input is read a window of lines at a time, each window sorted so that equal beginnings run one after another
 * and find them in the engine's prefix cache. A result is a row by line number: what ran twice because this object died
 * counts once. The offset moves when a window is answered, so a restart repeats at most one window's open lines.
 */
import { DurableObject } from 'cloudflare:workers'
import { answer } from '../chat/answer.ts'
import {
  batchView,
  expires_ms,
  hasEnded,
  line_bytes_max,
  parseLine,
  requests_max,
  type BatchLine,
  type BatchRow,
  type BatchStatus,
} from './batch.ts'
import { fileKey, newFileId, readLines, writeFile, type StoredFile } from './file-store.ts'
import type { Caller } from '../keys/identify.ts'
import { migrate } from '../schema.ts'
import { attemptEnd } from './job-attempt.ts'
import type { Endpoint } from './job.ts'

const width = 2
/** Whichever is full first: an isolate holds 128 MB. */
const window_lines = 64
const window_bytes = 8e6
/** How much of the messages decides which requests run one after another. */
const beginning_chars = 2_000
/** How soon a waiting line learns that its batch was cancelled. */
const nap_ms = 2_000
const files_max = 1_000
const open_max = 100
const isOpen = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
/** A page that begins behind an id; the first where the id is ''. */
const newestFirst = (table: 'files' | 'batches') =>
  `SELECT * FROM ${table} WHERE ?1 = '' OR (created_at, id) < (SELECT created_at, id FROM ${table} WHERE id = ?1)
   ORDER BY created_at DESC, id DESC LIMIT ?2`
const heartbeat_ms = 5_000
const priority = -10

interface Numbered {
  n: number
  line: BatchLine
}

const schema = [
  `CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL,
     filename TEXT NOT NULL, purpose TEXT NOT NULL) WITHOUT ROWID;
   CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, status TEXT NOT NULL, caller TEXT NOT NULL,
     input_file_id TEXT NOT NULL, offset INTEGER NOT NULL, total INTEGER NOT NULL, completed INTEGER NOT NULL,
     failed INTEGER NOT NULL, endpoints TEXT NOT NULL, metadata TEXT, errors TEXT, output_file_id TEXT,
     error_file_id TEXT, created_at INTEGER NOT NULL, in_progress_at INTEGER, ended_at INTEGER);
   CREATE TABLE IF NOT EXISTS results (batch TEXT NOT NULL, n INTEGER NOT NULL, ok INTEGER NOT NULL, text TEXT NOT NULL,
     PRIMARY KEY (batch, n)) WITHOUT ROWID`,
]

export class Batches extends DurableObject<Env> {
  readonly #sql: SqlStorage
  #working = false

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env)
    this.#sql = ctx.storage.sql
    migrate(ctx.storage, 'batches', schema)
  }

  /** Everything but the files themselves: its tenant was deleted. */
  async erase(): Promise<void> {
    await this.ctx.storage.deleteAlarm()
    await this.ctx.storage.deleteAll()
    migrate(this.ctx.storage, 'batches', schema)
  }

  addFile({ id, bytes, created_at, filename, purpose }: StoredFile): void {
    const sql = 'INSERT INTO files (id, bytes, created_at, filename, purpose) VALUES (?, ?, ?, ?, ?)'
    this.#sql.exec(sql, id, bytes, created_at, filename, purpose)
  }

  file(id: string): StoredFile | null {
    const row = this.#sql
      .exec<Omit<StoredFile, 'object'>>('SELECT * FROM files WHERE id = ?', id)
      .toArray()[0]
    return row === undefined ? null : { ...row, object: 'file' }
  }

  /** Newest first. */
  files(after: string, limit: number): StoredFile[] {
    const sql = newestFirst('files')
    return this.#sql
      .exec<Omit<StoredFile, 'object'>>(sql, after, limit)
      .toArray()
      .map((row) => ({ ...row, object: 'file' }))
  }

  hasRoomForFile(): boolean {
    return this.#sql.exec<{ n: number }>('SELECT count(*) AS n FROM files').one().n < files_max
  }

  /** @returns false where a batch still reads it. */
  removeFile(id: string): boolean {
    const reading = `SELECT 1 FROM batches WHERE input_file_id = ? AND ${isOpen} LIMIT 1`
    if (this.#sql.exec(reading, id).toArray().length > 0) return false
    this.#sql.exec('DELETE FROM files WHERE id = ?', id)
    return true
  }

  /** @returns null where too many wait already. */
  async create(
    row: Pick<BatchRow, 'id' | 'caller' | 'input_file_id' | 'endpoints' | 'metadata'>,
  ): Promise<string | null> {
    const { n } = this.#sql.exec<{ n: number }>(`SELECT count(*) AS n FROM batches WHERE ${isOpen}`).one()
    if (n >= open_max) return null
    this.#sql.exec(
      `INSERT INTO batches (id, status, caller, input_file_id, offset, total, completed, failed, endpoints, metadata, created_at)
       VALUES (?, 'validating', ?, ?, 0, 0, 0, 0, ?, ?, ?)`,
      row.id,
      row.caller,
      row.input_file_id,
      row.endpoints,
      row.metadata,
      Date.now(),
    )
    await this.ctx.storage.setAlarm(Date.now())
    return this.show(row.id)
  }

  /** The batch as JSON. */
  show(id: string): string | null {
    const row = this.#row(id)
    return row === null ? null : JSON.stringify(batchView(row))
  }

  /** Newest first. */
  list(after: string, limit: number): string {
    const rows = this.#sql.exec<BatchRow>(newestFirst('batches'), after, limit).toArray()
    return JSON.stringify(rows.map(batchView))
  }

  async cancel(id: string): Promise<string | null> {
    this.#sql.exec(
      "UPDATE batches SET status = 'cancelling' WHERE id = ? AND status IN ('validating', 'in_progress')",
      id,
    )
    await this.ctx.storage.setAlarm(Date.now())
    return this.show(id)
  }

  override async alarm(): Promise<void> {
    const open = this.#sql
      .exec<BatchRow>(`SELECT * FROM batches WHERE ${isOpen} ORDER BY created_at LIMIT 1`)
      .toArray()[0]
    if (open === undefined) return
    await this.ctx.storage.setAlarm(Date.now() + heartbeat_ms)
    if (this.#working) return
    this.#working = true
    try {
      await this.#step(open)
      await this.ctx.storage.setAlarm(Date.now())
    } catch (cause) {
      console.error('a batch could not be worked on', open.id, cause)
    } finally {
      this.#working = false
    }
  }

  async #step(row: BatchRow): Promise<void> {
    if (row.status === 'validating') return this.#validate(row)
    if (this.#runs(row.id)) return this.#runWindow(row)
    await this.#finalize(row)
  }

  async #validate(row: BatchRow): Promise<void> {
    const seen = new Set<string>()
    const errors: { code: string; message: string; line: number | null }[] = []
    const wrong = (message: string, line: number | null) =>
      errors.push({ code: 'invalid_line', message, line })
    try {
      let at = 0
      for await (const { text } of readLines(await this.#input(row, 0), line_bytes_max)) {
        at++
        if (text.trim() === '') continue
        const line = parseLine(text)
        if (typeof line === 'string') wrong(line, at)
        else if (seen.has(line.custom_id)) wrong(`custom_id '${line.custom_id}' was there before`, at)
        else seen.add(line.custom_id)
        if (seen.size > requests_max) wrong(`more than ${requests_max} requests`, null)
        if (errors.length >= 20 || seen.size > requests_max) break
      }
      if (seen.size === 0 && errors.length === 0) wrong('no requests', null)
    } catch (cause) {
      wrong(cause instanceof Error ? cause.message : 'cannot be read', null)
    }
    if (this.#row(row.id)?.status !== 'validating') return
    if (errors.length > 0) {
      this.#sql.exec('UPDATE batches SET errors = ? WHERE id = ?', JSON.stringify(errors), row.id)
      return this.#end(row.id, 'failed')
    }
    const sql = "UPDATE batches SET status = 'in_progress', total = ?, in_progress_at = ? WHERE id = ?"
    this.#sql.exec(sql, seen.size, Date.now(), row.id)
  }

  async #runWindow(row: BatchRow): Promise<void> {
    // R2 knows no range that begins at the end.
    if (row.offset >= (this.file(row.input_file_id)?.bytes ?? 0)) {
      this.#sql.exec("UPDATE batches SET status = 'finalizing' WHERE id = ?", row.id)
      return
    }
    const lines: Numbered[] = []
    let offset = row.offset
    for await (const { text, bytes } of readLines(await this.#input(row, offset), line_bytes_max)) {
      const line = text.trim() === '' ? null : parseLine(text)
      // Its place in the file: stable, whatever was read before.
      if (line !== null && typeof line !== 'string') lines.push({ n: offset, line })
      offset += bytes
      if (lines.length === window_lines || offset - row.offset > window_bytes) break
    }
    const done = this.#sql.exec<{ n: number }>(
      'SELECT n FROM results WHERE batch = ? AND n >= ?',
      row.id,
      row.offset,
    )
    const known = new Set([...done].map(({ n }) => n))
    const open = lines
      .filter(({ n }) => !known.has(n))
      .map((one) => ({ ...one, key: JSON.stringify(one.line.body['messages']).slice(0, beginning_chars) }))
    open.sort((a, b) => (a.key < b.key ? -1 : 1))
    const workers = Array.from({ length: width }, async () => {
      for (let next = open.shift(); next !== undefined; next = open.shift()) {
        if (!this.#runs(row.id)) return
        await this.#runLine(row, next)
      }
    })
    await Promise.all(workers)
    if (!this.#runs(row.id)) return
    this.#sql.exec('UPDATE batches SET offset = ? WHERE id = ?', offset, row.id)
  }

  /** Until it has an end: a limit or a backend that is away is waited for. */
  async #runLine(row: BatchRow, { n, line }: Numbered): Promise<void> {
    const caller = JSON.parse(row.caller) as Caller
    for (let attempt = 1; this.#runs(row.id); attempt++) {
      await this.ctx.storage.setAlarm(Date.now() + heartbeat_ms)
      const request_id = `req_${row.id.slice('batch_'.length)}_${n}_${attempt}`
      const signal = new AbortController().signal
      const result = await answer(this.env, this.ctx, {
        requestId: request_id,
        caller,
        body: line.body,
        signal,
        priority,
      })
      const end = attemptEnd(result, attempt, Date.now() - row.created_at)
      if (end.type === 'again') {
        if (end.holds) attempt--
        const until = Date.now() + end.after_ms
        for (let left = end.after_ms; left > 0 && this.#runs(row.id); left = until - Date.now())
          await scheduler.wait(Math.min(left, nap_ms))
        continue
      }
      const ok = end.type === 'completed'
      const response = ok ? { status_code: 200, request_id, body: JSON.parse(end.response) as unknown } : null
      const error = ok ? null : (JSON.parse(end.error) as unknown)
      const text = JSON.stringify({
        id: `batch_req_${row.id.slice('batch_'.length)}_${n}`,
        custom_id: line.custom_id,
        response,
        error,
      })
      this.#keep(row.id, n, ok, text)
      return
    }
  }

  #keep(batch: string, n: number, ok: boolean, text: string): void {
    this.ctx.storage.transactionSync(() => {
      const sql = 'INSERT OR IGNORE INTO results (batch, n, ok, text) VALUES (?, ?, ?, ?) RETURNING n'
      if (this.#sql.exec(sql, batch, n, Number(ok), text).toArray().length === 0) return
      const count = 'UPDATE batches SET completed = completed + ?1, failed = failed + 1 - ?1 WHERE id = ?2'
      this.#sql.exec(count, Number(ok), batch)
    })
  }

  async #finalize(row: BatchRow): Promise<void> {
    const tenantId = (JSON.parse(row.caller) as Caller).tenantId
    const write = async (ok: number, filename: string): Promise<string | null> => {
      const one = this.#sql
        .exec('SELECT 1 FROM results WHERE batch = ? AND ok = ? LIMIT 1', row.id, ok)
        .toArray()
      if (one.length === 0) return null
      const id = newFileId()
      const created_at = Math.floor(Date.now() / 1000)
      const bytes = await writeFile(this.env.FILES, fileKey(tenantId, id), this.#resultLines(row.id, ok), {})
      this.addFile({ id, object: 'file', bytes, created_at, filename, purpose: 'batch_output' })
      return id
    }
    const output = await write(1, `${row.id}_output.jsonl`)
    const failed = await write(0, `${row.id}_errors.jsonl`)
    this.#sql.exec(
      'UPDATE batches SET output_file_id = ?, error_file_id = ? WHERE id = ?',
      output,
      failed,
      row.id,
    )
    const status =
      row.status === 'cancelling' ? 'cancelled' : row.status === 'finalizing' ? 'completed' : 'expired'
    await this.#end(row.id, status)
  }

  async *#resultLines(batch: string, ok: number): AsyncGenerator<Uint8Array> {
    const utf8 = new TextEncoder()
    let after = -1
    for (;;) {
      const sql = 'SELECT n, text FROM results WHERE batch = ? AND ok = ? AND n > ? ORDER BY n LIMIT 100'
      const rows = this.#sql.exec<{ n: number; text: string }>(sql, batch, ok, after).toArray()
      if (rows.length === 0) return
      yield utf8.encode(rows.map(({ text }) => `${text}\n`).join(''))
      after = rows.at(-1)?.n ?? after
    }
  }

  /** The event goes to the tenant's outbox under the batch's own id first: telling twice is telling once. */
  async #end(id: string, status: BatchStatus): Promise<void> {
    const now = Date.now()
    const row = this.#row(id)
    if (row === null || hasEnded(row.status)) return
    const type = `batch.${status}`
    const webhook_id = `evt_${id.slice('batch_'.length)}`
    const data = batchView({ ...row, status, ended_at: now })
    const body = JSON.stringify({
      id: webhook_id,
      object: 'event',
      created_at: Math.floor(now / 1000),
      type,
      data,
    })
    const { tenantId } = JSON.parse(row.caller) as Caller
    for (const { events: _, ...endpoint } of JSON.parse(row.endpoints) as Endpoint[])
      await this.env.JOBS.getByName(tenantId).tell({ webhook_id, ...endpoint, body })
    this.#sql.exec('UPDATE batches SET status = ?, ended_at = ? WHERE id = ?', status, now, id)
    if (status !== 'failed') this.#sql.exec('DELETE FROM results WHERE batch = ?', id)
  }

  async #input(row: BatchRow, offset: number): Promise<ReadableStream<Uint8Array>> {
    const { tenantId } = JSON.parse(row.caller) as Caller
    const object = await this.env.FILES.get(
      fileKey(tenantId, row.input_file_id),
      offset === 0 ? {} : { range: { offset } },
    )
    if (object === null || object.size === 0) throw new Error('the input file is empty or gone')
    return object.body
  }

  /** Neither cancelled nor expired meanwhile. */
  #runs(id: string): boolean {
    const row = this.#row(id)
    return row?.status === 'in_progress' && Date.now() < row.created_at + expires_ms
  }

  #row(id: string): BatchRow | null {
    return this.#sql.exec<BatchRow>('SELECT * FROM batches WHERE id = ?', id).toArray()[0] ?? null
  }
}
