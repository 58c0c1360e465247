/**
 * The one error of both programs. Code decides status and OpenAI's `type`; the message tells the caller what to do.
 * Body form: https://platform.openai.com/docs/guides/error-codes
 */
const table = {
  invalid_json: [400, 'invalid_request_error'],
  invalid_encoding: [400, 'invalid_request_error'],
  incomplete_body: [400, 'invalid_request_error'],
  invalid_value: [400, 'invalid_request_error'],
  unsupported_value: [400, 'invalid_request_error'],
  context_length_exceeded: [400, 'invalid_request_error'],
  limit_below_request: [400, 'invalid_request_error'],
  missing_api_key: [401, 'authentication_error'],
  invalid_api_key: [401, 'authentication_error'],
  invalid_signature: [401, 'authentication_error'],
  insufficient_scope: [403, 'permission_error'],
  tenant_suspended: [403, 'permission_error'],
  model_not_found: [404, 'invalid_request_error'],
  not_found: [404, 'invalid_request_error'],
  method_not_allowed: [405, 'invalid_request_error'],
  conflict: [409, 'invalid_request_error'],
  hook_disabled: [410, 'invalid_request_error'],
  body_too_large: [413, 'invalid_request_error'],
  unsupported_encoding: [415, 'invalid_request_error'],
  idempotency_conflict: [422, 'invalid_request_error'],
  rate_limit_exceeded: [429, 'rate_limit_error'],
  queue_full: [503, 'server_error'],
  request_cancelled: [499, 'server_error'],
  internal_error: [500, 'server_error'],
  engine_error: [500, 'server_error'],
  response_too_large: [500, 'server_error'],
  job_interrupted: [500, 'server_error'],
  backend_unavailable: [503, 'server_error'],
  storage_unavailable: [503, 'server_error'],
  deadline_exceeded: [504, 'server_error'],
} as const satisfies Record<string, readonly [status: number, type: string]>

export type ErrorCode = keyof typeof table

export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: ErrorCode }
}

export interface ApiErrorOptions {
  param?: string
  /** Seconds; sent as Retry-After. */
  retryAfterS?: number
  headers?: Record<string, string>
  cause?: unknown
}

export class ApiError extends Error {
  readonly code: ErrorCode
  readonly status: number
  readonly param: string | null
  readonly headers: Record<string, string>

  constructor(code: ErrorCode, message: string, options: ApiErrorOptions = {}) {
    super(message, { cause: options.cause })
    this.name = 'ApiError'
    this.code = code
    this.status = table[code][0]
    this.param = options.param ?? null
    this.headers = {
      ...(options.retryAfterS === undefined
        ? {}
        : { 'retry-after': String(Math.max(1, Math.ceil(options.retryAfterS))) }),
      ...options.headers,
    }
  }

  body(): ErrorBody {
    return { error: { message: this.message, type: table[this.code][1], param: this.param, code: this.code } }
  }
}

export const isErrorCode = (code: string): code is ErrorCode => Object.hasOwn(table, code)
