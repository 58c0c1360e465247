/**
 * The line from a prompt to its answer. HTTP requests walk it after auth, jobs and webhooks by answer.ts: limits, cache
 * and billing hold for all alike, since there is no second path to the GPU.
 */
import { form } from './answer-form.ts'
import { chat } from './chat.ts'
import { count } from '../limits/count.ts'
import { idempotency } from '../flights/idempotency.ts'
import { prompt } from './prompt.ts'
import { cache } from '../cache/result-cache.ts'

export const line = [prompt, count, form, idempotency, cache, ...chat] as const
