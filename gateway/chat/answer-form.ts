import type { Context } from 'hono'
import { ApiError } from '../../src/errors.ts'
import { factory, type AppEnv } from '../app-env.ts'
import { generationId, shardOfPrompt } from '../flights/flight-names.ts'

/** How an answer is written, whatever it is made of. */
export interface AnswerForm {
  generationId: string
  /** Unix seconds. */
  created: number
  stream: boolean
  includeUsage: boolean
  logprobs: boolean
  /** Answers to the one prompt. */
  n: number
  /** Their text is read for tool calls. */
  toolCalls: boolean
  /** The last event that the caller has; -1: none. */
  after: number
}

export const form = factory.createMiddleware(async function form(c, next) {
  const { chat, prompt } = c.var
  const generation = generationId(shardOfPrompt(prompt))
  c.set('form', {
    generationId: generation,
    created: Math.floor(Date.now() / 1000),
    stream: chat.stream,
    includeUsage: chat.includeUsage,
    logprobs: prompt.sampling.logprobs !== null,
    n: prompt.sampling.n,
    toolCalls: chat.toolCalls,
    after: lastEventId(c),
  })
  c.set('resumable', c.req.header('x-resumable') === 'true')
  c.set('idempotent', false)
  await next()
})

export function lastEventId(c: Context<AppEnv>): number {
  const header = c.req.header('last-event-id')
  if (header === undefined || header === '') return -1
  if (/^\d{1,9}$/.test(header)) return Number(header)
  throw new ApiError('invalid_value', 'Last-Event-ID must be the id of an event of this answer.', {
    param: 'last-event-id',
  })
}
