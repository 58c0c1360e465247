/**
 * What isolates have told, by id: they tell again what they got no answer to, and it must not count twice. Ids are
 * written in the same flush as what they brought, so an object that restarts has forgotten both or neither.
 */
import { migrate } from '../schema.ts'

const schema = ['CREATE TABLE taken (id TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID']

export class Taken {
  readonly #sql: SqlStorage
  /** Milliseconds since the epoch: until then the same id may come again. */
  readonly #until = new Map<string, number>()
  #unwritten: string[] = []

  constructor(storage: DurableObjectStorage, now_ms: number) {
    this.#sql = storage.sql
    migrate(storage, 'taken', schema)
    const kept = 'SELECT id, until FROM taken WHERE until > ?'
    for (const { id, until } of this.#sql.exec<{ id: string; until: number }>(kept, now_ms))
      this.#until.set(id, until)
  }

  /** Whether this is the first time. */
  take(id: string, until_ms: number): boolean {
    if (this.#until.has(id)) return false
    this.#until.set(id, until_ms)
    this.#unwritten.push(id)
    return true
  }

  flush(now_ms: number): void {
    for (const id of this.#unwritten)
      this.#sql.exec(
        'INSERT OR REPLACE INTO taken (id, until) VALUES (?, ?)',
        id,
        this.#until.get(id) ?? now_ms,
      )
    this.#unwritten = []
    this.#sql.exec('DELETE FROM taken WHERE until <= ?', now_ms)
    for (const [id, until] of this.#until) if (until <= now_ms) this.#until.delete(id)
  }
}
