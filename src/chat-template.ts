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
}

export interface RenderedChat {
  tokenIds: number[]
  /** Leading tokens that the operator wrote and no tenant: those of the inserted system message. */
  sharedPrefixTokens: number
}

export const QWEN2_DEFAULT_SYSTEM = 'You are a helpful assistant.'

export function renderChat(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  { defaultSystem = QWEN2_DEFAULT_SYSTEM, addGenerationPrompt = true }: ChatOptions = {},
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
  const sharedPrefixTokens = tokenIds.length
  for (const message of messages) turn(message.role, textOf(message.content))
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
