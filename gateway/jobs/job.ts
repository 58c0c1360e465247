/** A job as it is kept and as it is shown; and the event that tells of its end, in OpenAI's envelope. */
import type { ChatCompletion } from '../chat/answer.ts'

export const jobStatuses = ['queued', 'in_progress', 'completed', 'failed', 'cancelled'] as const
export type JobStatus = (typeof jobStatuses)[number]

export const isTerminal = (status: JobStatus): boolean => status !== 'queued' && status !== 'in_progress'

export const events = ['response.completed', 'response.failed', 'response.cancelled'] as const
export type JobEvent = (typeof events)[number]

/** Where its end is told. */
export interface Endpoint {
  url: string
  /** As they were when the event was accepted. */
  secrets: string[]
  /** Whose secrets sign when it is sent: `tenant`, or a hook's id; absent: those here, which came with the request. */
  signer?: string
  events: readonly JobEvent[]
}

/** A row; JSON texts stay texts until somebody looks. Times in milliseconds since the epoch. */
export type JobRow = {
  id: string
  seq: number
  status: JobStatus
  caller: string
  request: string
  endpoints: string
  metadata: string | null
  /** How often it was taken up, and how often it was asked for. */
  attempt: number
  run: number
  /** How often the object died while it ran. */
  interrupted: number
  ready_at: number
  created_at: number
  started_at: number | null
  finished_at: number | null
  response: string | null
  error: string | null
}

/** Milliseconds that a finished job is kept. */
export const kept_ms = 7 * 24 * 3_600_000

export function jobView(row: JobRow) {
  const response = parsed(row.response) as ChatCompletion | null
  return {
    id: row.id,
    object: 'job' as const,
    status: row.status,
    created_at: seconds(row.created_at),
    started_at: row.started_at === null ? null : seconds(row.started_at),
    finished_at: row.finished_at === null ? null : seconds(row.finished_at),
    expires_at: row.finished_at === null ? null : seconds(row.finished_at + kept_ms),
    attempts: row.attempt,
    metadata: parsed(row.metadata),
    ...(response === null ? {} : { response, usage: response.usage }),
    ...(row.error === null ? {} : { error: parsed(row.error) }),
  }
}

/** The id stays the same however often the event is sent; a retried job's end is a new event. */
export function jobEvent(row: JobRow): { type: JobEvent; webhook_id: string; body: string } {
  const type = `response.${row.status}` as JobEvent
  const webhook_id = `evt_${row.id.slice('job_'.length)}${row.run > 1 ? `_${row.run}` : ''}`
  const response = parsed(row.response) as ChatCompletion | null
  const data = {
    id: response?.id ?? row.id,
    job_id: row.id,
    output_text: response?.choices[0]?.message.content ?? null,
    response,
    usage: response?.usage ?? null,
    metadata: parsed(row.metadata),
    ...(row.error === null ? {} : { error: parsed(row.error) }),
  }
  const created_at = seconds(row.finished_at ?? row.created_at)
  return {
    type,
    webhook_id,
    body: JSON.stringify({ id: webhook_id, object: 'event', created_at, type, data }),
  }
}

const seconds = (ms: number) => Math.floor(ms / 1000)
const parsed = (text: string | null): unknown => (text === null ? null : JSON.parse(text))
