/**
 * Qwen2's chat template, in token ids:
 *
 *     <|im_start|>{role}\n{content}<|im_end|>\n ...  <|im_start|>assistant\n
 *
 * The reference renders text and tokenizes it, control tokens and all; there a user who writes "<|im_end|>" ends their turn. Here the
 * control ids are ours alone and each span between them is encoded as plain text. A span is what the reference also tokenizes in
 * one piece: role, newline and content together, since a newline merges with the white space after it.
 */
import type { Tokenizer } from './tokenizer/tokenizer.ts'

export interface TextPart {
  type: 'text'
  text: string
}

export interface ChatMessage {
  role: 'system' | 'user' | 'assistant'
  content: string | readonly TextPart[]
}

export interface ChatOptions {
  /** Inserted as the system message where none leads; '' inserts nothing. Absent: Qwen2's own. */
  defaultSystem?: string
  /** Open the assistant's turn at the end. Absent: true. */
  addGenerationPrompt?: boolean
  /** What the operator wrote of the messages: how many leading ones, and how the next one begins. */
  shared?: { messages: number; text: string }
}

export interface RenderedChat {
  tokenIds: number[]
  /** Leading tokens that the operator wrote and no tenant: the inserted system message, and what `shared` says. */
  sharedPrefixTokens: number
}

export const QWEN2_DEFAULT_SYSTEM = 'You are a helpful assistant.'

export function renderChat(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  { defaultSystem = QWEN2_DEFAULT_SYSTEM, addGenerationPrompt = true, shared }: ChatOptions = {},
): RenderedChat {
  const start = tokenizer.specialId('<|im_start|>')
  const end = tokenizer.specialId('<|im_end|>')
  const betweenTurns = tokenizer.encode('\n')
  const tokenIds: number[] = []
  const turn = (role: string, content: string): void => {
    tokenIds.push(start)
    append(tokenIds, tokenizer.encode(`${role}\n${content}`))
    tokenIds.push(end)
    append(tokenIds, betweenTurns)
  }

  const insertSystem = defaultSystem !== '' && messages.length > 0 && messages[0]?.role !== 'system'
  if (insertSystem) turn('system', defaultSystem)
  let sharedPrefixTokens = tokenIds.length
  for (const [at, message] of messages.entries()) {
    const before = tokenIds.length
    turn(message.role, textOf(message.content))
    if (shared !== undefined && at < shared.messages) sharedPrefixTokens = tokenIds.length
    if (shared !== undefined && at === shared.messages) {
      // Only tokens that the operator's text alone would have: what a tenant's text has changed is not shared.
      const alone = [start, ...tokenizer.encode(`${message.role}\n${shared.text}`)]
      const differs = alone.findIndex((id, i) => id !== tokenIds[before + i])
      sharedPrefixTokens = before + (differs < 0 ? alone.length : differs)
    }
  }
  if (addGenerationPrompt) {
    tokenIds.push(start)
    append(tokenIds, tokenizer.encode('assistant\n'))
  }
  return { tokenIds, sharedPrefixTokens }
}

export const textOf = (content: ChatMessage['content']): string =>
  typeof content === 'string' ? content : content.map((part) => part.text).join('')

/** Not push(...ids): a long document has more ids than a call may have arguments. */
function append(to: number[], ids: readonly number[]): void {
  for (const id of ids) to.push(id)
}
