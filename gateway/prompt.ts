/** Validates a chat request, renders it to token ids and settles what will be sampled. Nothing is asked of anyone yet. */
import { ApiError } from '../src/errors.ts'
import { renderChat } from '../src/chat-template.ts'
import { resolveSampling, type ResolvedSampling } from '../src/sampling.ts'
import { factory } from './app-env.ts'
import { parseChatRequest, type ChatRequest } from './chat-request.ts'
import { model, tokenizer } from './model.ts'

export interface Prompt {
  tokenIds: number[]
  /** Leading tokens that no tenant wrote. */
  sharedPrefixTokens: number
  sampling: ResolvedSampling
  stop: string[]
}

export const prompt = factory.createMiddleware(async function prompt(c, next) {
  const chat = parseChatRequest(await c.req.text())
  if (chat.model !== model.id) {
    throw new ApiError(
      'model_not_found',
      `The model '${chat.model}' does not exist here; GET /v1/models lists what does.`,
      { param: 'model' },
    )
  }
  const { models } = c.var.caller
  if (models !== null && !models.includes(chat.model)) {
    throw new ApiError('model_not_allowed', `This key may not use the model '${chat.model}'.`, {
      param: 'model',
    })
  }
  c.set('chat', chat)
  c.set('prompt', render(chat))
  await next()
})

function render(chat: ChatRequest): Prompt {
  const { tokenIds, sharedPrefixTokens } = renderChat(tokenizer, chat.messages, {
    defaultSystem: model.default_system,
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
  return { tokenIds, sharedPrefixTokens, sampling, stop: chat.stop }
}
