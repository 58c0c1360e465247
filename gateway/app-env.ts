import { createFactory } from 'hono/factory'
import type { AnswerForm } from './chat/answer-form.ts'
import type { Caller } from './keys/identify.ts'
import type { ChatRequest } from './chat/chat-request.ts'
import type { Prompt } from './chat/prompt.ts'
import type { CachePlan } from './cache/result-cache.ts'

export interface AppEnv {
  Bindings: Env
  Variables: {
    requestId: string
    /** Set by auth. */
    caller: Caller
    /** Set by answer, for what no client waits for. */
    priority?: number
    /** Set by answer: nobody can leave, so a JSON answer may take its time. */
    unattended?: boolean
    /** Set by prompt. */
    chat: ChatRequest
    prompt: Prompt
    /** Set by form. */
    form: AnswerForm
    /** The answer must be there to be read again. */
    resumable: boolean
    /** Set by idempotency: kept for a day, under the caller's own key. */
    idempotent: boolean
    /** Set by cache: what it found and where an answer is to be kept. */
    cache: CachePlan
  }
}

export const factory = createFactory<AppEnv>()
