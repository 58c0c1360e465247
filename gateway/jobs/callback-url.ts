/** Callback URLs as the API takes them; src/callback-url.ts has the rules. */
import { refusal } from '../../src/callback-url.ts'
import { ApiError } from '../../src/errors.ts'

export function checkCallbackUrl(text: string, environment: string, param: string): void {
  const why = refusal(text, environment)
  if (why !== null) throw new ApiError('invalid_value', `Invalid value for '${param}': ${why}.`, { param })
}
