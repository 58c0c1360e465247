import { DurableObject } from 'cloudflare:workers'
import { migrate } from '../schema.ts'

/** What is kept of an API key, under the HMAC of the key; the key itself is kept nowhere. */
export interface KeyRecord {
  id: string
  tenant_id: string
  name: string
  /** null: all. */
  scopes: string[] | null
  models: string[] | null
  /** Unix seconds; null: never. */
  expires_at: number | null
}

const schema = ['CREATE TABLE IF NOT EXISTS keys (hash TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID']

/** One sixteenth of all keys, by hash. */
export class Directory extends DurableObject<Env> {
  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env)
    migrate(ctx.storage, 'keys', schema)
  }

  get(hash: string): KeyRecord | null {
    const row = this.ctx.storage.sql
      .exec<{ record: string }>('SELECT record FROM keys WHERE hash = ?', hash)
      .toArray()[0]
    return row === undefined ? null : (JSON.parse(row.record) as KeyRecord)
  }

  put(hash: string, record: KeyRecord): void {
    this.ctx.storage.sql.exec(
      'INSERT OR REPLACE INTO keys (hash, record) VALUES (?, ?)',
      hash,
      JSON.stringify(record),
    )
  }

  delete(hash: string): void {
    this.ctx.storage.sql.exec('DELETE FROM keys WHERE hash = ?', hash)
  }
}
