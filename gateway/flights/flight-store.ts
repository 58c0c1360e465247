/**
 * What must survive the object: flights that may be resumed, with their tickets, and the answers under idempotency
 * keys. Tokens are written as they come, at intervals; what was sent after the last write is generated again, alike,
 * since a resumable generation always has a seed.
 */
import { migrate } from '../schema.ts'
import type { FlightRequest } from './flight-client.ts'

/** What is needed to write an answer to a request that came before. */
export interface TicketRecord {
  id: string
  /** Unix seconds. */
  created: number
  includeUsage: boolean
  logprobs: boolean
  n: number
  toolCalls: boolean
}

export interface StoredFlight {
  id: string
  request: FlightRequest
  /** Under which the backend knows its last attempt; null: from a version that did not say. */
  wire: string | null
  done: boolean
  lines: string[]
}

/** A row holds 2 MB; a line with 20 log-probabilities some 2 kB. */
const lines_max_per_row = 256

const schema = [
  `CREATE TABLE IF NOT EXISTS flights (
     id TEXT PRIMARY KEY, request TEXT NOT NULL, done INTEGER NOT NULL, expires INTEGER NOT NULL
   ) WITHOUT ROWID;
   CREATE TABLE IF NOT EXISTS tickets (
     id TEXT PRIMARY KEY, flight TEXT NOT NULL, record TEXT NOT NULL, expires INTEGER NOT NULL
   ) WITHOUT ROWID;
   CREATE TABLE IF NOT EXISTS lines (
     flight TEXT NOT NULL, at INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (flight, at)
   ) WITHOUT ROWID;
   CREATE TABLE IF NOT EXISTS idempotency (
     key TEXT PRIMARY KEY, body TEXT NOT NULL, generation TEXT NOT NULL, expires INTEGER NOT NULL
   ) WITHOUT ROWID`,
  'ALTER TABLE flights ADD COLUMN wire TEXT',
]

export class FlightStore {
  readonly #sql: SqlStorage

  constructor(storage: DurableObjectStorage) {
    this.#sql = storage.sql
    migrate(storage, 'flights', schema)
  }

  begin(flight: string, request: FlightRequest, wire: string, expires: number): void {
    this.#sql.exec(
      'INSERT OR REPLACE INTO flights (id, request, wire, done, expires) VALUES (?, ?, ?, 0, ?)',
      flight,
      JSON.stringify(request),
      wire,
      expires,
    )
  }

  addTicket(flight: string, record: TicketRecord, expires: number): void {
    this.#sql.exec(
      'INSERT OR REPLACE INTO tickets (id, flight, record, expires) VALUES (?, ?, ?, ?)',
      record.id,
      flight,
      JSON.stringify(record),
      expires,
    )
    this.#sql.exec('UPDATE flights SET expires = max(expires, ?) WHERE id = ?', expires, flight)
  }

  append(flight: string, at: number, lines: string[]): void {
    for (let from = 0; from < lines.length; from += lines_max_per_row) {
      const text = lines.slice(from, from + lines_max_per_row).join('\n')
      const sql = 'INSERT OR REPLACE INTO lines (flight, at, text) VALUES (?, ?, ?)'
      this.#sql.exec(sql, flight, at + from, text)
    }
  }

  attempt(flight: string, wire: string): void {
    this.#sql.exec('UPDATE flights SET wire = ? WHERE id = ?', wire, flight)
  }

  done(flight: string): void {
    this.#sql.exec('UPDATE flights SET done = 1 WHERE id = ?', flight)
  }

  forget(flight: string): void {
    for (const [table, column] of [
      ['flights', 'id'],
      ['tickets', 'flight'],
      ['lines', 'flight'],
    ]) {
      this.#sql.exec(`DELETE FROM ${table} WHERE ${column} = ?`, flight)
    }
  }

  /** The tickets of a flight. */
  tickets(flight: string): string[] {
    const rows = this.#sql.exec<{ id: string }>('SELECT id FROM tickets WHERE flight = ?', flight)
    return rows.toArray().map(({ id }) => id)
  }

  /** Nobody will come back with this ticket; without another its flight is forgotten. */
  dropTicket(id: string, flight: string): void {
    this.#sql.exec('DELETE FROM tickets WHERE id = ?', id)
    if (this.tickets(flight).length === 0) this.forget(flight)
  }

  find(ticket: string): { flight: StoredFlight; record: TicketRecord } | null {
    const [row] = this.#sql
      .exec<{ flight: string; record: string; request: string; wire: string | null; done: number }>(
        `SELECT tickets.flight, tickets.record, flights.request, flights.wire, flights.done
         FROM tickets JOIN flights ON flights.id = tickets.flight WHERE tickets.id = ?`,
        ticket,
      )
      .toArray()
    if (row === undefined) return null
    const lines = this.#sql
      .exec<{ text: string }>('SELECT text FROM lines WHERE flight = ? ORDER BY at', row.flight)
      .toArray()
      .flatMap(({ text }) => text.split('\n'))
    const { flight: id, wire, done } = row
    const flight = {
      id,
      wire,
      done: done === 1,
      lines,
      request: JSON.parse(row.request) as FlightRequest,
    }
    return { flight, record: JSON.parse(row.record) as TicketRecord }
  }

  /** The generation that answers under this key, and the body it was asked with. The first to claim decides. */
  claim(
    key: string,
    body: string,
    generation: string,
    now: number,
    expires: number,
  ): { body: string; generation: string } {
    this.#sql.exec('DELETE FROM idempotency WHERE key = ? AND expires <= ?', key, now)
    const sql = 'INSERT OR IGNORE INTO idempotency (key, body, generation, expires) VALUES (?, ?, ?, ?)'
    this.#sql.exec(sql, key, body, generation, expires)
    return this.#sql
      .exec<{ body: string; generation: string }>(
        'SELECT body, generation FROM idempotency WHERE key = ?',
        key,
      )
      .one()
  }

  /** @returns when to come back; null: nothing is left. */
  expire(now: number): number | null {
    this.#sql.exec('DELETE FROM idempotency WHERE expires <= ?', now)
    this.#sql.exec('DELETE FROM tickets WHERE expires <= ?', now)
    this.#sql.exec('DELETE FROM lines WHERE flight IN (SELECT id FROM flights WHERE expires <= ?)', now)
    this.#sql.exec('DELETE FROM flights WHERE expires <= ?', now)
    return this.#sql
      .exec<{ next: number | null }>(
        'SELECT min(expires) AS next FROM (SELECT expires FROM flights UNION ALL SELECT expires FROM idempotency)',
      )
      .one().next
  }
}
