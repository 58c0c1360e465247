/**
 * Qwen2's chat template, in token ids:
 *
 *     <|im_start|>{role}\n{content}<|im_end|>\n ...  <|im_start|>assistant\n
 *
 * The reference renders text and tokenizes it, control tokens and all; there a user who writes "<|im_end|>" ends their turn. Here the
 * control ids are ours alone and each span between them is encoded as plain text. A span is what the reference also tokenizes in
 * one piece: role, newline and content together, since a newline merges with the white space after it.
 *
 * Tools have the Hermes form, which Qwen2.5's template writes out and Qwen2 was trained on too: their signatures at the
 * end of the system message, calls as `<tool_call>` in the assistant's turn, results as `<tool_response>` in the user's.
 * Where the vocabulary has a token for such a tag (Qwen2.5), the template's own tags are that token.
 */
import { dumps } from './grammar/json-text.ts'
import type { Tokenizer } from './tokenizer/tokenizer.ts'

export interface TextPart {
  type: 'text'
  text: string
}

type Content = string | readonly TextPart[]

export type ChatMessage =
  | { role: 'system' | 'user' | 'tool'; content: Content }
  | { role: 'assistant'; content: Content; toolCalls?: readonly { name: string; arguments: unknown }[] }

export interface ChatTool {
  type: 'function'
  function: { name: string; description?: string; parameters?: unknown }
}

export interface ChatOptions {
  /** Inserted as the system message where none leads; '' inserts nothing. Absent: Qwen2's own. */
  defaultSystem?: string
  /** Open the assistant's turn at the end. Absent: true. */
  addGenerationPrompt?: boolean
  tools?: readonly ChatTool[]
  /** What the operator wrote of the messages: how many leading ones, and how the next one begins. */
  shared?: { messages: number; text: string }
}

export interface RenderedChat {
  tokenIds: number[]
  /** Leading tokens that the operator wrote and no tenant: the inserted system message, and what `shared` says. */
  sharedPrefixTokens: number
}

export const QWEN2_DEFAULT_SYSTEM = 'You are a helpful assistant.'

const tools_before =
  '\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' +
  'You are provided with function signatures within <tools></tools> XML tags:\n<tools>'
const tools_after =
  '\n</tools>\n\nFor each function call, return a json object with function name and arguments within ' +
  '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'

export function renderChat(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  { defaultSystem = QWEN2_DEFAULT_SYSTEM, addGenerationPrompt = true, tools = [], shared }: ChatOptions = {},
): RenderedChat {
  const start = tokenizer.specialId('<|im_start|>')
  const end = tokenizer.specialId('<|im_end|>')
  const betweenTurns = tokenizer.encode('\n')
  const tokenIds: number[] = []
  const turn = (parts: readonly Part[]): void => {
    tokenIds.push(start)
    append(tokenIds, encodeParts(tokenizer, parts))
    tokenIds.push(end)
    append(tokenIds, betweenTurns)
  }

  const first = messages[0]
  const ownSystem = first?.role === 'system'
  const insertSystem = !ownSystem && messages.length > 0 && (defaultSystem !== '' || tools.length > 0)
  if (insertSystem) turn(systemParts(defaultSystem, tools))
  let sharedPrefixTokens = insertSystem && tools.length === 0 ? tokenIds.length : 0
  // Only tokens that the operator's text alone would have: what a tenant's text has changed is not shared.
  const share = (from: number, alone: readonly number[]): void => {
    const differs = alone.findIndex((id, i) => id !== tokenIds[from + i])
    sharedPrefixTokens = from + (differs < 0 ? alone.length : differs)
  }
  const begun = (text: string) => [start, ...tokenizer.encode(text)]
  // The tools are the tenant's: nothing is shared behind them.
  if (insertSystem && tools.length > 0) share(0, begun(`system\n${defaultSystem}${tools_before}`))
  for (let at = 0; at < messages.length;) {
    const { parts, next } = turnAt(messages, at, at === 0 && ownSystem ? tools : [])
    const before = tokenIds.length
    turn(parts)
    const role = messages[at]?.role ?? ''
    const content = textOf(messages[at]?.content ?? '')
    if (shared !== undefined && (tools.length === 0 || (at === 0 && ownSystem))) {
      if (at < shared.messages && tools.length > 0) share(before, begun(`${role}\n${content}${tools_before}`))
      else if (at < shared.messages) sharedPrefixTokens = tokenIds.length
      if (at === shared.messages) share(before, begun(`${role}\n${shared.text}`))
    }
    at = next
  }
  if (addGenerationPrompt) {
    tokenIds.push(start)
    append(tokenIds, tokenizer.encode('assistant\n'))
  }
  return { tokenIds, sharedPrefixTokens }
}

/** Text of anybody, or a tag of the template's own. */
type Part = string | { tag: '<tool_call>' | '</tool_call>' | '<tool_response>' | '</tool_response>' }

const call_begin = { tag: '<tool_call>' } as const
const call_end = { tag: '</tool_call>' } as const

function systemParts(content: string, tools: readonly ChatTool[]): Part[] {
  if (tools.length === 0) return [`system\n${content}`]
  const signatures = tools.map((tool) => `\n${dumps(tool)}`).join('')
  const parts: Part[] = [`system\n${content}${tools_before}${signatures}`]
  for (const piece of tools_after.split(/(<\/?tool_call>)/))
    parts.push(piece === '<tool_call>' ? call_begin : piece === '</tool_call>' ? call_end : piece)
  return parts
}

/** The turn that begins with a message: tool results that follow each other are one turn of the user's. */
function turnAt(
  messages: readonly ChatMessage[],
  at: number,
  tools: readonly ChatTool[],
): { parts: Part[]; next: number } {
  const message = messages[at]
  if (message === undefined) return { parts: [], next: at + 1 }
  const content = textOf(message.content)
  if (message.role === 'tool') {
    const parts: Part[] = ['user']
    let next = at
    for (let each = messages[next]; each?.role === 'tool'; each = messages[++next])
      parts.push('\n', { tag: '<tool_response>' }, `\n${textOf(each.content)}\n`, { tag: '</tool_response>' })
    return { parts, next }
  }
  if (message.role === 'system') return { parts: systemParts(content, tools), next: at + 1 }
  const calls = message.role === 'assistant' ? (message.toolCalls ?? []) : []
  if (calls.length === 0) return { parts: [`${message.role}\n${content}`], next: at + 1 }
  const parts: Part[] = [content === '' ? 'assistant' : `assistant\n${content}`]
  for (const call of calls) {
    const body = `\n{"name": "${call.name}", "arguments": ${dumps(call.arguments)}}\n`
    parts.push('\n', call_begin, body, call_end)
  }
  return { parts, next: at + 1 }
}

/** Tags that the vocabulary has no token for are text, and one piece with what stands around them. */
function encodeParts(tokenizer: Tokenizer, parts: readonly Part[]): number[] {
  const ids: number[] = []
  let text = ''
  for (const part of parts) {
    const id = typeof part === 'string' ? undefined : tokenizer.addedId(part.tag)
    if (id === undefined) {
      text += typeof part === 'string' ? part : part.tag
      continue
    }
    append(ids, tokenizer.encode(text))
    ids.push(id)
    text = ''
  }
  append(ids, tokenizer.encode(text))
  return ids
}

export const textOf = (content: Content): string =>
  typeof content === 'string' ? content : content.map((part) => part.text).join('')

/** Not push(...ids): a long document has more ids than a call may have arguments. */
function append(to: number[], ids: readonly number[]): void {
  for (const id of ids) to.push(id)
}
