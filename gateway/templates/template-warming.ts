/**
 * Publishing a template runs what comes before its first variable through the engine once, so that the first caller
 * already finds it in the prefix cache. A tenant's own is warmed by an ordinary request of theirs, limits and all; the
 * operator's goes to the blocks that all tenants share. It is a favour: when it fails, the first caller does the work.
 */
import type { Context } from 'hono'
import { renderChat } from '../../src/chat-template.ts'
import { answer } from '../chat/answer.ts'
import type { AppEnv } from '../app-env.ts'
import { warmPrefix } from '../chat/backend.ts'
import { model, tokenizer } from '../model.ts'
import type { TemplateBody, TemplateMessage } from './template.ts'
import { fill, parseText } from './template-text.ts'
import { published_prefix } from './template-use.ts'

const patience_ms = 20_000

export function warm(c: Context<AppEnv>, id: string, template: TemplateBody): void {
  const messages = prefix(template.messages)
  if (messages.length === 0) return
  const { env, executionCtx, var: vars } = c
  const requestId = `${vars.requestId}-warm`
  const signal = AbortSignal.timeout(patience_ms)
  const work = id.startsWith(published_prefix)
    ? warmShared(env, messages, signal)
    : answer(env, executionCtx, {
        requestId,
        caller: vars.caller,
        body: { model: model.id, messages, max_tokens: 1, temperature: 0 },
        signal,
      })
  executionCtx.waitUntil(
    work.catch((error: unknown) => console.warn(requestId, 'not warmed:', String(error))),
  )
}

async function warmShared(env: Env, messages: TemplateMessage[], signal: AbortSignal) {
  const text = messages.at(-1)?.content ?? ''
  const { tokenIds, sharedPrefixTokens } = renderChat(tokenizer, messages, {
    defaultSystem: model.default_system,
    addGenerationPrompt: false,
    shared: { messages: messages.length - 1, text },
  })
  const shared = tokenIds.slice(0, sharedPrefixTokens)
  await warmPrefix(env, { token_ids: shared, salt: '', shared_prefix_tokens: shared.length }, signal)
}

/** The messages up to the first variable, the last one cut there. */
function prefix(messages: readonly TemplateMessage[]): TemplateMessage[] {
  const known: TemplateMessage[] = []
  for (const { role, content } of messages) {
    const { literal, hasVariable } = fill(parseText(content, 'messages'), () => '')
    if (literal !== '') known.push({ role, content: literal })
    if (hasVariable) break
  }
  return known
}
