/** The operator's books, one object: which tenants there are, and who changed what. */
import { DurableObject } from 'cloudflare:workers'
import { migrate } from '../schema.ts'

export interface AuditEntry {
  id: number
  /** Unix milliseconds. */
  at: number
  /** `tenant.create`, `key.revoke` ... */
  action: string
  tenant_id: string
  /** A key's id, or a template's path; empty: the tenant itself. */
  target: string
  request_id: string
  /** What was asked, without any secret. */
  detail: unknown
}

export interface Page<T> {
  data: T[]
  next_cursor: string | null
}

const page_max = 100

const schema = [
  `CREATE TABLE IF NOT EXISTS tenants (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE);
   CREATE TABLE IF NOT EXISTS audit (id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, action TEXT NOT NULL,
     tenant_id TEXT NOT NULL, target TEXT NOT NULL, request_id TEXT NOT NULL, detail TEXT NOT NULL);
   CREATE INDEX IF NOT EXISTS audit_of_tenant ON audit (tenant_id, id)`,
]

export class Registry extends DurableObject<Env> {
  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env)
    migrate(ctx.storage, 'registry', schema)
  }

  add(tenantId: string): void {
    this.ctx.storage.sql.exec('INSERT OR IGNORE INTO tenants (id) VALUES (?)', tenantId)
  }

  remove(tenantId: string): void {
    this.ctx.storage.sql.exec('DELETE FROM tenants WHERE id = ?', tenantId)
  }

  /** Oldest first. */
  tenants(cursor: number, limit: number): Page<string> {
    const rows = this.ctx.storage.sql
      .exec<{ n: number; id: string }>(
        'SELECT n, id FROM tenants WHERE n > ? ORDER BY n LIMIT ?',
        cursor,
        clamp(limit) + 1,
      )
      .toArray()
    return page(
      rows,
      limit,
      ({ n }) => n,
      ({ id }) => id,
    )
  }

  record(entry: Omit<AuditEntry, 'id' | 'at'>): void {
    this.ctx.storage.sql.exec(
      'INSERT INTO audit (at, action, tenant_id, target, request_id, detail) VALUES (?, ?, ?, ?, ?, ?)',
      Date.now(),
      entry.action,
      entry.tenant_id,
      entry.target,
      entry.request_id,
      JSON.stringify(entry.detail),
    )
  }

  /** Newest first; the detail as JSON text. */
  audit(
    cursor: number | null,
    limit: number,
    tenantId: string | null,
  ): Page<AuditEntry & { detail: string }> {
    const before = cursor ?? Number.MAX_SAFE_INTEGER
    const rows = this.ctx.storage.sql
      .exec<Omit<AuditEntry, 'detail'> & { detail: string }>(
        'SELECT * FROM audit WHERE id < ? AND (? IS NULL OR tenant_id = ?) ORDER BY id DESC LIMIT ?',
        before,
        tenantId,
        tenantId,
        clamp(limit) + 1,
      )
      .toArray()
    return page(
      rows,
      limit,
      ({ id }) => id,
      (row) => row,
    )
  }
}

const clamp = (limit: number) => Math.min(Math.max(1, Math.floor(limit) || 1), page_max)

/** One row more than asked says that there is another page. */
function page<Row, T>(rows: Row[], limit: number, at: (row: Row) => number, item: (row: Row) => T): Page<T> {
  const shown = rows.slice(0, clamp(limit))
  const last = shown.at(-1)
  const more = rows.length > shown.length && last !== undefined
  return { data: shown.map(item), next_cursor: more ? String(at(last)) : null }
}
