/**
 * What a tenant used, by hour, key, model and template: added up in memory, written to SQLite within a second. A
 * killed object loses what it had not yet written.
 */
import * as z from 'zod/mini'
import type { TokenUsage } from '../../src/protocol.ts'
import { migrate } from '../schema.ts'
import type { Use } from './tenant-record.ts'

export interface Counts {
  requests: number
  hits: number
  prompt: number
  cached: number
  completion: number
  /** Billionths of the operator's currency: whole numbers, so sums are exact. */
  cost: number
}

export type GroupBy = 'hour' | 'key' | 'model' | 'template'
export const groupings = ['hour', 'key', 'model', 'template'] as const satisfies GroupBy[]

export interface UsageRow extends Counts {
  /** Unix seconds of the hour, an id, or a model. */
  group: string
}

/** Requests that an isolate counted since it last said so. */
export interface RequestCounts extends Use {
  requests: number
  hits: number
}

/** Per million tokens; `*` stands for every model that is not named. */
export type Prices = Record<string, { prompt: number; cached: number; completion: number }>

const hour_s = 3600

const columns = [
  'hour',
  'key_id',
  'model',
  'template',
  'requests',
  'hits',
  'prompt',
  'cached',
  'completion',
  'cost',
] as const

interface Entry extends Use, Counts {
  hour: number
}

const schema = [
  `CREATE TABLE IF NOT EXISTS usage (
     hour INTEGER NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL, template TEXT NOT NULL,
     requests INTEGER NOT NULL, hits INTEGER NOT NULL, prompt INTEGER NOT NULL, cached INTEGER NOT NULL,
     completion INTEGER NOT NULL, cost INTEGER NOT NULL,
     PRIMARY KEY (hour, key_id, model, template)) WITHOUT ROWID`,
]

export class UsageBook {
  readonly #sql: SqlStorage
  #pending = new Map<string, Entry>()

  constructor(storage: DurableObjectStorage) {
    this.#sql = storage.sql
    migrate(storage, 'usage', schema)
  }

  get changed(): boolean {
    return this.#pending.size > 0
  }

  addRequests(use: Use, requests: number, hits: number, now_ms: number): void {
    const entry = this.#entry(use, now_ms)
    entry.requests += requests
    entry.hits += hits
  }

  addTokens(use: Use, { prompt, cached, completion }: TokenUsage, prices: Prices, now_ms: number): void {
    const entry = this.#entry(use, now_ms)
    entry.prompt += prompt
    entry.cached += cached
    entry.completion += completion
    entry.cost += cost({ prompt, cached, completion }, prices[use.model] ?? prices['*'])
  }

  /** What is written: hours from `from_s`'s own up to, not including, `to_s`. */
  read(from_s: number, to_s: number, group: GroupBy): UsageRow[] {
    const column = group === 'key' ? 'key_id' : group
    return this.#sql
      .exec<Record<keyof Counts, number> & { group: string }>(
        `SELECT CAST(${column} AS TEXT) AS "group", SUM(requests) AS requests, SUM(hits) AS hits,
           SUM(prompt) AS prompt, SUM(cached) AS cached, SUM(completion) AS completion, SUM(cost) AS cost
         FROM usage WHERE hour >= ? AND hour < ? GROUP BY ${column} ORDER BY ${column}`,
        Math.floor(from_s / hour_s) * hour_s,
        to_s,
      )
      .toArray()
  }

  flush(): void {
    for (const entry of this.#pending.values()) {
      this.#sql.exec(
        `INSERT INTO usage (${columns.join(', ')}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, hits = hits + excluded.hits,
           prompt = prompt + excluded.prompt, cached = cached + excluded.cached,
           completion = completion + excluded.completion, cost = cost + excluded.cost`,
        ...columns.map((column) => entry[column]),
      )
    }
    this.#pending = new Map()
  }

  #entry({ key_id, model, template }: Use, now_ms: number): Entry {
    const hour = Math.floor(now_ms / 1000 / hour_s) * hour_s
    const id = JSON.stringify([hour, key_id, model, template])
    let entry = this.#pending.get(id)
    if (entry === undefined) {
      const none = { requests: 0, hits: 0, prompt: 0, cached: 0, completion: 0, cost: 0 }
      entry = { hour, key_id, model, template, ...none }
      this.#pending.set(id, entry)
    }
    return entry
  }
}

/** A price of 1 per million tokens is 1,000 billionths a token; prices count to three decimals. */
function cost({ prompt, cached, completion }: TokenUsage, price: Prices[string] | undefined): number {
  if (price === undefined) return 0
  const each = (per_million: number) => Math.round(per_million * 1000)
  return (
    (prompt - cached) * each(price.prompt) + cached * each(price.cached) + completion * each(price.completion)
  )
}

const Price = z.number().check(z.gte(0), z.lte(1e6))
const PriceList = z.record(
  z.string(),
  z.strictObject({ prompt: z.optional(Price), cached: z.optional(Price), completion: z.optional(Price) }),
)

let lastParsed: { text: string; prices: Prices } | undefined

/** Reads the PRICES variable; of one that is not understood nothing counts, and the log says so, once an isolate. */
export function parsePrices(text = '{}'): Prices {
  if (lastParsed?.text !== text) lastParsed = { text, prices: readPrices(text) }
  return lastParsed.prices
}

function readPrices(text: string): Prices {
  try {
    const list = z.parse(PriceList, JSON.parse(text))
    return Object.fromEntries(
      Object.entries(list).map(([model, { prompt = 0, cached = prompt, completion = 0 }]) => [
        model,
        { prompt, cached, completion },
      ]),
    )
  } catch (cause) {
    console.error('PRICES is not understood; usage has no cost', cause)
    return {}
  }
}
