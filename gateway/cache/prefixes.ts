/**
 * POST /v1/prefixes {model, messages | template, pin_seconds?}: the engine computes the beginning of prompts to come, for
 * this tenant alone, and the answer says how many tokens of it they will not have to compute. Without `pin_seconds` it
 * stays until others need the memory. It is paid for as a prompt without an answer: what was there already as cached.
 */
import * as z from 'zod/mini'
import { renderChat } from '../../src/chat-template.ts'
import type { TokenUsage } from '../../src/protocol.ts'
import { bodyText } from '../body-text.ts'
import { admit } from '../limits/admission.ts'
import { factory } from '../app-env.ts'
import { warmPrefix } from '../chat/backend.ts'
import { usageView } from '../chat/openai-answer.ts'
import { parse, parseJson } from '../../src/json-body.ts'
import { generationId, wireId } from '../flights/flight-names.ts'
import { model, tokenizer } from '../model.ts'
import type { Prompt } from '../chat/prompt.ts'

const Pin = z.object({ pin_seconds: z.optional(z.nullable(z.number().check(z.gte(0), z.lte(7 * 86_400)))) })

export const prefixes = factory.createHandlers(async function prefixes(c) {
  const parsed = parse(Pin, parseJson(await bodyText(c.req)))
  const { caller, prompt } = c.var
  const tokenIds = withoutTurn(prompt.tokenIds)
  const asked: Prompt = {
    ...prompt,
    tokenIds,
    openEnded: false,
    sampling: { ...prompt.sampling, max_tokens: 1, min_tokens: 0, n: 1 },
  }
  const requestId = wireId(caller.tenantId, generationId(null))
  const { settle, headers } = await admit(asked, {
    env: c.env,
    requestId,
    caller,
    defer: (work) => c.executionCtx.waitUntil(work),
  })
  let usage: TokenUsage | null = null
  try {
    const warmed = await warmPrefix(
      c.env,
      {
        token_ids: tokenIds,
        salt: caller.tenantId,
        shared_prefix_tokens: Math.min(prompt.sharedPrefixTokens, tokenIds.length),
        pin_seconds: parsed.pin_seconds ?? 0,
      },
      c.req.raw.signal,
    )
    usage = warmed.usage
    const { cached_tokens, until } = warmed
    for (const [name, value] of Object.entries(headers)) c.header(name, value)
    return c.json({
      object: 'prefix',
      model: model.id,
      prompt_tokens: tokenIds.length,
      cached_tokens,
      until,
      usage: usageView(usage),
    })
  } finally {
    c.executionCtx.waitUntil(settle(usage))
  }
})

/** A prompt ends by opening the assistant's turn; what continues the same messages has another turn there. */
function withoutTurn(tokenIds: number[]): number[] {
  const render = (addGenerationPrompt: boolean) =>
    renderChat(tokenizer, [{ role: 'user', content: '' }], {
      defaultSystem: model.default_system,
      addGenerationPrompt,
    }).tokenIds.length
  return tokenIds.slice(0, render(false) - render(true))
}
