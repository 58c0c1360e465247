/**
 * The body of POST /v1/chat/completions: OpenAI's fields, and beside them vLLM's for what OpenAI has no name for
 * (top_k, min_p, repetition_penalty, min_tokens, ignore_eos, stop_token_ids, structured_outputs). Fields that change nothing here
 * (user, metadata, store, service_tier ...) are accepted and dropped; those that would change the answer and are not
 * served are refused by name rather than ignored.
 * https://platform.openai.com/docs/api-reference/chat/create
 */
import * as z from 'zod/mini'
import type { ChatMessage, ChatTool } from '../../src/chat-template.ts'
import { ApiError } from '../../src/errors.ts'
import type { GrammarSpec } from '../../src/grammar/grammar.ts'
import { isShallow } from '../../src/grammar/schema.ts'
import { parse } from '../../src/json-body.ts'
import { Sampling } from '../../src/sampling.ts'
import { checkGrammar, formatFields, responseFormat, structuredOutput } from './answer-grammar.ts'
import { toolFields, useTools } from './tools.ts'

const nullish = <T extends z.core.SomeType>(schema: T) => z.optional(z.nullable(schema))

const Content = z.union([z.string(), z.array(z.object({ type: z.literal('text'), text: z.string() }))], {
  error: 'must be a string or a list of {type: "text", text} parts; images and audio are not served',
})

const ToolCall = z.object({
  id: nullish(z.string()),
  type: nullish(z.literal('function')),
  function: z.object({ name: z.string(), arguments: z.string() }),
})

const Message = z.discriminatedUnion(
  'role',
  [
    z.object({ role: z.literal('system'), content: Content }),
    z.object({ role: z.literal('developer'), content: Content }),
    z.object({ role: z.literal('user'), content: Content }),
    z.object({
      role: z.literal('assistant'),
      content: nullish(Content),
      tool_calls: nullish(z.array(ToolCall)),
    }),
    z.object({ role: z.literal('tool'), content: Content, tool_call_id: nullish(z.string()) }),
  ],
  {
    error: ({ code }) =>
      code === 'invalid_union' ? 'must be system, developer, user, assistant or tool' : null,
  },
)

const s = Sampling.shape
const Body = z.object({
  model: z.string(),
  messages: z.array(Message).check(z.minLength(1, 'must hold at least one message')),
  stream: nullish(z.boolean()),
  stream_options: nullish(z.object({ include_usage: z.optional(z.boolean()) })),
  max_tokens: nullish(s.max_tokens),
  max_completion_tokens: nullish(s.max_tokens),
  stop: nullish(
    z.union(
      [z.string().check(z.minLength(1)), z.array(z.string().check(z.minLength(1))).check(z.maxLength(4))],
      {
        error: 'must be a non-empty string or up to 4 of them',
      },
    ),
  ),
  temperature: nullish(s.temperature),
  top_p: nullish(z.number().check(z.gte(0), z.lte(1))),
  top_k: nullish(s.top_k),
  min_p: nullish(s.min_p),
  repetition_penalty: nullish(s.repetition_penalty),
  presence_penalty: nullish(s.presence_penalty),
  frequency_penalty: nullish(s.frequency_penalty),
  seed: nullish(s.seed),
  min_tokens: nullish(s.min_tokens),
  stop_token_ids: nullish(s.stop_token_ids),
  ignore_eos: nullish(s.ignore_eos),
  logit_bias: nullish(s.logit_bias),
  logprobs: nullish(z.boolean()),
  top_logprobs: nullish(s.logprobs),
  n: nullish(s.n),
  ...toolFields,
  ...formatFields,
})

export interface ChatRequest {
  model: string
  messages: ChatMessage[]
  stream: boolean
  includeUsage: boolean
  stop: string[]
  sampling: Sampling
  /** What the prompt tells the model of. */
  tools: ChatTool[]
  /** The answer's text may hold calls. */
  toolCalls: boolean
}

/** Fields that change the answer and are not served: value -> whether it asks for more than the default. */
const unserved: Record<string, (value: unknown) => boolean> = {
  functions: (value) => !Array.isArray(value) || value.length > 0,
  function_call: (value) => value !== 'none' && value !== 'auto',
  modalities: (value) => !Array.isArray(value) || value.some((kind) => kind !== 'text'),
  audio: () => true,
  prediction: () => true,
  web_search_options: () => true,
  bad_words: (value) => !Array.isArray(value) || value.length > 0,
  allowed_token_ids: () => true,
  best_of: (value) => value !== 1,
  use_beam_search: (value) => value !== false,
  length_penalty: (value) => value !== 1,
  echo: (value) => value !== false,
  prompt_logprobs: () => true,
  continue_final_message: (value) => value !== false,
  add_generation_prompt: (value) => value !== true,
  chat_template: () => true,
  truncate_prompt_tokens: () => true,
}

export function parseChatRequest(json: unknown): ChatRequest {
  const body = parse(Body, json)
  for (const [field, asksForMore] of Object.entries(unserved)) {
    const value = (json as Record<string, unknown>)[field]
    if (value !== undefined && value !== null && asksForMore(value)) {
      throw new ApiError('unsupported_value', `'${field}' is not served with this value; leave it out.`, {
        param: field,
      })
    }
  }
  return normalise(body)
}

const text = (content: z.infer<typeof Content>): string =>
  typeof content === 'string' ? content : content.map((part) => part.text).join('')

function normalise(body: z.infer<typeof Body>): ChatRequest {
  const logprobs = body.logprobs === true ? (body.top_logprobs ?? 0) : null
  if (logprobs === null && body.top_logprobs) {
    throw new ApiError('invalid_value', "'top_logprobs' needs 'logprobs': true.", { param: 'top_logprobs' })
  }
  const { tools, grammar } = answerAsked(body)
  const sampling = {
    temperature: body.temperature,
    top_p: body.top_p,
    top_k: body.top_k,
    min_p: body.min_p,
    repetition_penalty: body.repetition_penalty,
    presence_penalty: body.presence_penalty,
    frequency_penalty: body.frequency_penalty,
    seed: body.seed,
    max_tokens: body.max_completion_tokens ?? body.max_tokens,
    min_tokens: body.min_tokens,
    stop_token_ids: body.stop_token_ids,
    ignore_eos: body.ignore_eos,
    logit_bias: body.logit_bias,
    logprobs,
    n: body.n,
    grammar,
  }
  return {
    model: body.model,
    messages: body.messages.map(message),
    stream: body.stream ?? false,
    includeUsage: body.stream_options?.include_usage ?? false,
    stop: typeof body.stop === 'string' ? [body.stop] : (body.stop ?? []),
    sampling: withoutNulls(sampling),
    tools,
    toolCalls: grammar?.type === 'tool_calls',
  }
}

/** Forced calls leave no text for `response_format` to speak of; with calls that are free to come, it speaks of the rest. */
function answerAsked(body: z.infer<typeof Body>): { tools: ChatTool[]; grammar: GrammarSpec | null } {
  const format = responseFormat(body)
  const structured = structuredOutput(body)
  const { tools, grammar } = useTools(body, format?.spec ?? null)
  const other = format?.param.split('.')[0] ?? (grammar === null ? undefined : 'tools')
  if (structured !== null && other !== undefined)
    throw new ApiError('invalid_value', `'${structured.param}' and '${other}' cannot hold at once.`, {
      param: structured.param,
    })
  if (grammar !== null) return { tools, grammar: checkGrammar({ spec: grammar, param: 'tools' }) }
  const asked = structured ?? format
  return { tools, grammar: asked === null ? null : checkGrammar(asked) }
}

function message(given: z.infer<typeof Message>, at: number): ChatMessage {
  const content = given.content === null || given.content === undefined ? '' : text(given.content)
  if (given.role === 'developer') return { role: 'system', content }
  if (given.role !== 'assistant') return { role: given.role, content }
  const calls = given.tool_calls ?? []
  if (calls.length === 0 && (given.content === null || given.content === undefined))
    throw new ApiError('invalid_value', `'messages[${at}]' has neither 'content' nor 'tool_calls'.`, {
      param: `messages[${at}].content`,
    })
  const toolCalls = calls.map((call, i) => ({
    name: call.function.name,
    arguments: parsedArguments(
      call.function.arguments,
      `messages[${at}].tool_calls[${i}].function.arguments`,
    ),
  }))
  return calls.length === 0 ? { role: 'assistant', content } : { role: 'assistant', content, toolCalls }
}

/** The prompt shows them as JSON, not as a text that holds JSON. */
function parsedArguments(json: string, param: string): unknown {
  try {
    const value: unknown = JSON.parse(json)
    if (isShallow(value)) return value
  } catch {
    // Said below.
  }
  throw new ApiError('invalid_value', `'${param}' must be JSON of at most 64 levels.`, { param })
}

type WithoutNulls<T> = { [K in keyof T]?: NonNullable<T[K]> }
const withoutNulls = <T extends object>(value: T): WithoutNulls<T> =>
  Object.fromEntries(
    Object.entries(value).filter(([, v]) => v !== null && v !== undefined),
  ) as WithoutNulls<T>
