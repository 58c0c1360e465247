/** Validates a chat request, renders it to token ids and settles what will be sampled. Nothing is asked of anyone yet. */
import { ApiError } from '../../src/errors.ts'
import { renderChat } from '../../src/chat-template.ts'
import { resolveSampling, type ResolvedSampling, type Sampling } from '../../src/sampling.ts'
import { bodyText } from '../body-text.ts'
import { factory } from '../app-env.ts'
import { parseJson } from '../../src/json-body.ts'
import { parseChatRequest, type ChatRequest } from './chat-request.ts'
import type { Caller } from '../keys/identify.ts'
import { requireModel } from '../keys/models.ts'
import { model, tokenizer } from '../model.ts'
import { useTemplate, type TemplateUse } from '../templates/template-use.ts'

export interface Prompt {
  tokenIds: number[]
  /** Leading tokens that no tenant wrote. */
  sharedPrefixTokens: number
  sampling: ResolvedSampling
  /** The caller set no max_tokens: what the limits hold may be less than sampling.max_tokens. */
  openEnded: boolean
  stop: string[]
  /** The template that it was rendered from. */
  template: TemplateUse | null
  /** Higher runs first in the engine. Absent: 0. */
  priority?: number
}

export const prompt = factory.createMiddleware(async function prompt(c, next) {
  const prepared = await prepare(c.env, c.var.caller, parseJson(await bodyText(c.req)))
  c.set('chat', prepared.chat)
  c.set('prompt', { ...prepared.prompt, priority: c.var.priority ?? 0 })
  await next()
})

/** A chat request's body in, what the engine is asked out; throws what is wrong with it. */
export async function prepare(
  env: Env,
  caller: Caller,
  body: unknown,
): Promise<{ chat: ChatRequest; prompt: Prompt }> {
  const { json, used } = await useTemplate(env, caller.tenantId, body)
  const chat = parseChatRequest(json)
  requireModel(caller, chat.model)
  requireKnownTokens(chat.sampling)
  return { chat, prompt: render(chat, used) }
}

function requireKnownTokens({ stop_token_ids = [], logit_bias = {} }: Sampling): void {
  const named = { stop_token_ids, logit_bias: Object.keys(logit_bias).map(Number) }
  for (const [param, ids] of Object.entries(named)) {
    const unknown = ids.find((id) => id < 0 || id >= tokenizer.vocabSize)
    if (unknown === undefined) continue
    const message = `'${param}' has the token id ${unknown}; there are 0 to ${tokenizer.vocabSize - 1}.`
    throw new ApiError('invalid_value', message, { param })
  }
}

function render(chat: ChatRequest, template: TemplateUse | null): Prompt {
  const { tokenIds, sharedPrefixTokens } = renderChat(tokenizer, chat.messages, {
    defaultSystem: model.default_system,
    tools: chat.tools,
    ...(template?.shared ? { shared: template.shared } : {}),
  })
  const room = model.context_length - tokenIds.length
  if (room < 1) {
    throw new ApiError(
      'context_length_exceeded',
      `The messages are ${tokenIds.length} tokens; this model's context is ${model.context_length}. Shorten them.`,
      { param: 'messages' },
    )
  }
  const sampling = resolveSampling(chat.sampling, model.generation, room)
  if (sampling.max_tokens > room) {
    throw new ApiError(
      'context_length_exceeded',
      `The messages are ${tokenIds.length} tokens and max_tokens asks for ${sampling.max_tokens} more; this model's context is ${model.context_length}.`,
      { param: 'max_tokens' },
    )
  }
  if (sampling.min_tokens > sampling.max_tokens) {
    throw new ApiError('invalid_value', "'min_tokens' is larger than 'max_tokens'.", { param: 'min_tokens' })
  }
  const openEnded = chat.sampling.max_tokens === undefined
  return { tokenIds, sharedPrefixTokens, sampling, openEnded, stop: chat.stop, template }
}
