import { ApiError } from '../src/errors.ts'

/** What a store gave; null is a 404. */
export function found<T>(value: T | null, message = 'There is nothing under this id.'): T {
  if (value === null) throw new ApiError('not_found', message)
  return value
}
