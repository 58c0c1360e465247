/** The engine's own errors, as answers. */
import { ApiError, isErrorCode, type ErrorCode } from '../src/errors.ts'

const retry_after_s = 1

export const errorCode = (code: string): ErrorCode => (isErrorCode(code) ? code : 'engine_error')

export function submitted(submit: () => number): number {
  try {
    return submit()
  } catch (error) {
    if (!(error instanceof Error)) throw error
    if (error.name === 'QueueFullError')
      throw new ApiError('queue_full', 'The queue is full; try again shortly', {
        retryAfterS: retry_after_s,
        cause: error,
      })
    if (error.name === 'InvalidRequestError')
      throw new ApiError('invalid_value', error.message, { cause: error })
    throw new ApiError('engine_error', error.message, { cause: error })
  }
}
