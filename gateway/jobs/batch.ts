/** A batch in OpenAI's form, and what a line of its input must be. https://platform.openai.com/docs/api-reference/batch */
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import { parse } from '../../src/json-body.ts'

export const requests_max = 50_000
export const line_bytes_max = 1_000_000

export type BatchStatus =
  | 'validating'
  | 'failed'
  | 'in_progress'
  | 'finalizing'
  | 'completed'
  | 'expired'
  | 'cancelling'
  | 'cancelled'

export type BatchRow = {
  id: string
  status: BatchStatus
  caller: string
  input_file_id: string
  /** Bytes of the input whose lines are all answered. */
  offset: number
  total: number
  completed: number
  failed: number
  endpoints: string
  metadata: string | null
  errors: string | null
  output_file_id: string | null
  error_file_id: string | null
  /** Milliseconds since the epoch. */
  created_at: number
  in_progress_at: number | null
  ended_at: number | null
}

export const expires_ms = 24 * 3_600_000
export const hasEnded = (status: BatchStatus) =>
  ['failed', 'completed', 'expired', 'cancelled'].includes(status)

const Line = z.object({
  custom_id: z.string().check(z.minLength(1), z.maxLength(512)),
  method: z.literal('POST'),
  url: z.literal('/v1/chat/completions'),
  body: z.record(z.string(), z.unknown()),
})
export type BatchLine = z.infer<typeof Line>

/** The line, or what is wrong with it. */
export function parseLine(text: string): BatchLine | string {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    return 'not JSON'
  }
  try {
    return parse(Line, json)
  } catch (cause) {
    if (cause instanceof ApiError) return cause.message
    throw cause
  }
}

export function batchView(row: BatchRow) {
  const at = (status: BatchStatus) =>
    row.status === status && row.ended_at !== null ? seconds(row.ended_at) : null
  return {
    id: row.id,
    object: 'batch' as const,
    endpoint: '/v1/chat/completions',
    errors: row.errors === null ? null : { object: 'list', data: JSON.parse(row.errors) as unknown[] },
    input_file_id: row.input_file_id,
    completion_window: '24h',
    status: row.status,
    output_file_id: row.output_file_id,
    error_file_id: row.error_file_id,
    created_at: seconds(row.created_at),
    in_progress_at: row.in_progress_at === null ? null : seconds(row.in_progress_at),
    expires_at: seconds(row.created_at + expires_ms),
    completed_at: at('completed'),
    failed_at: at('failed'),
    expired_at: at('expired'),
    cancelled_at: at('cancelled'),
    request_counts: { total: row.total, completed: row.completed, failed: row.failed },
    metadata: row.metadata === null ? null : (JSON.parse(row.metadata) as unknown),
  }
}

const seconds = (ms: number) => Math.floor(ms / 1000)
