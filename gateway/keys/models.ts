/** Which models a key reaches. One that it may not use is to it as one that does not exist, wherever it is named. */
import { ApiError } from '../../src/errors.ts'
import { model } from '../model.ts'
import type { Caller } from './identify.ts'

export const mayUse = ({ models }: Caller, id: string): boolean =>
  id === model.id && (models === null || models.includes(id))

export function requireModel(caller: Caller, id: string): void {
  if (mayUse(caller, id)) return
  throw new ApiError(
    'model_not_found',
    `The model '${id}' does not exist here, or is not for this key; GET /v1/models lists what is.`,
    { param: 'model' },
  )
}
