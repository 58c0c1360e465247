/**
 * Publishing a template runs what comes before its first variable through the engine once, so that the first caller
 * already finds it in the prefix cache. A tenant's own is warmed by an ordinary request of theirs, limits and all; the
 * operator's goes to the blocks that all tenants share. It is a favour: when it fails, the first caller does the work.
 */
import type { Context } from 'hono'
import { renderChat } from '../src/chat-template.ts'
import { answer } from './answer.ts'
import type { AppEnv } from './app-env.ts'
import * as backend from './backend.ts'
import { model, tokenizer } from './model.ts'
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
    ? warmShared(env, requestId, messages, signal)
    : answer(env, executionCtx, {
        requestId,
        caller: vars.caller,
        body: { model: model.id, messages, max_tokens: 1, temperature: 0 },
        signal,
      })
  executionCtx.waitUntil(
    work.catch((error: unknown) => console.warn(requestId, 'a template was not warmed', error)),
  )
}

async function warmShared(env: Env, request_id: string, messages: TemplateMessage[], signal: AbortSignal) {
  const { tokenIds } = renderChat(tokenizer, messages, {
    defaultSystem: model.default_system,
    addGenerationPrompt: false,
  })
  const request = {
    request_id,
    model: model.id,
    token_ids: tokenIds,
    sampling: { max_tokens: 1, temperature: 0 },
    cache: { salt: '', shared_prefix_tokens: tokenIds.length },
    priority: -1,
  }
  for await (const _ of backend.generate(env, request, signal));
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
