/** The templates of one tenant, or of the operator: names, versions and which of these is used when none is asked for. */
import { DurableObject } from 'cloudflare:workers'
import { migrate } from '../schema.ts'

export interface TemplateInfo {
  id: string
  object: 'template'
  name: string
  /** The one in use. */
  version: number
  /** Whether new versions leave it in use. */
  pinned: boolean
  latest_version: number
  created_at: number
}

export interface TemplateVersion {
  id: string
  version: number
  created_at: number
  /** A TemplateBody as JSON. */
  body: string
}

type InfoRow = {
  id: string
  name: string
  version: number
  pinned: number
  latest: number
  created_at: number
}
type VersionRow = { [Field in keyof TemplateVersion]: TemplateVersion[Field] }

const schema = [
  `CREATE TABLE IF NOT EXISTS templates (id TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL,
     pinned INTEGER NOT NULL, latest INTEGER NOT NULL, created_at INTEGER NOT NULL) WITHOUT ROWID;
   CREATE TABLE IF NOT EXISTS versions (id TEXT NOT NULL, version INTEGER NOT NULL, created_at INTEGER NOT NULL,
     body TEXT NOT NULL, PRIMARY KEY (id, version)) WITHOUT ROWID`,
]

export class Templates extends DurableObject<Env> {
  readonly #sql: SqlStorage

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env)
    this.#sql = ctx.storage.sql
    migrate(ctx.storage, 'templates', schema)
  }

  /** Everything: its tenant was deleted. */
  async erase(): Promise<void> {
    await this.ctx.storage.deleteAll()
    migrate(this.ctx.storage, 'templates', schema)
  }

  create(id: string, name: string, body: string): TemplateInfo | null {
    const sql = `INSERT INTO templates (id, name, version, pinned, latest, created_at) VALUES (?, ?, 0, 0, 0, ?)`
    this.#sql.exec(sql, id, name, nowS())
    return this.addVersion(id, body)
  }

  addVersion(id: string, body: string): TemplateInfo | null {
    const info = this.get(id)
    if (info === null) return null
    const version = info.latest_version + 1
    const sql = 'INSERT INTO versions (id, version, created_at, body) VALUES (?, ?, ?, ?)'
    this.#sql.exec(sql, id, version, nowS(), body)
    this.#sql.exec(
      'UPDATE templates SET latest = ?, version = iif(pinned, version, ?) WHERE id = ?',
      version,
      version,
      id,
    )
    return this.get(id)
  }

  get(id: string): TemplateInfo | null {
    const row = this.#sql.exec<InfoRow>('SELECT * FROM templates WHERE id = ?', id).toArray()[0]
    return row === undefined ? null : info(row)
  }

  list(after: string, limit: number): TemplateInfo[] {
    const sql = 'SELECT * FROM templates WHERE id > ? ORDER BY id LIMIT ?'
    return this.#sql.exec<InfoRow>(sql, after, limit).toArray().map(info)
  }

  /** @param version absent: the one in use. */
  version(id: string, version?: number): TemplateVersion | null {
    const sql = `SELECT * FROM versions WHERE id = ?1
      AND version = coalesce(?2, (SELECT version FROM templates WHERE id = ?1))`
    return this.#sql.exec<VersionRow>(sql, id, version ?? null).toArray()[0] ?? null
  }

  versions(id: string): { version: number; created_at: number }[] {
    const sql = 'SELECT version, created_at FROM versions WHERE id = ? ORDER BY version'
    return this.#sql.exec<{ version: number; created_at: number }>(sql, id).toArray()
  }

  /** Puts a version to use; null when there is none such. */
  use(id: string, version: number, pinned: boolean): TemplateInfo | null {
    if (this.version(id, version) === null) return null
    this.#sql.exec('UPDATE templates SET version = ?, pinned = ? WHERE id = ?', version, Number(pinned), id)
    return this.get(id)
  }

  delete(id: string): boolean {
    this.#sql.exec('DELETE FROM versions WHERE id = ?', id)
    return this.#sql.exec('DELETE FROM templates WHERE id = ?', id).rowsWritten > 0
  }
}

const nowS = () => Math.floor(Date.now() / 1000)

const info = (row: InfoRow): TemplateInfo => ({
  id: row.id,
  object: 'template',
  name: row.name,
  version: row.version,
  pinned: row.pinned === 1,
  latest_version: row.latest,
  created_at: row.created_at,
})
