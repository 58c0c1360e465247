/**
 * Answers in OpenAI's form. Beside its fields they carry `timing` (milliseconds in queue, prefill and decode) where the
 * engine ran for them.
 *
 * Every event of a stream has an id, the same whenever the answer is written: the first ones for the roles, then one for
 * each token, then the rest. What the caller has already (Last-Event-ID) is left out.
 */
import { ApiError } from '../../src/errors.ts'
import type { TokenLogprob, TokenLogprobs, TokenUsage } from '../../src/protocol.ts'
import { encodeSse } from '../../src/sse.ts'
import { model, tokenizer } from '../model.ts'
import type { AnswerForm } from './answer-form.ts'
import {
  isFinishDelta,
  type AnswerDelta,
  type Delta,
  type Deltas,
  type EndDelta,
  type FinishDelta,
} from './answers.ts'
import { ToolCallReader, type Piece } from './tool-call-reader.ts'

export async function completion(form: AnswerForm, first: IteratorResult<Delta[]>, deltas: Deltas) {
  const choices = Array.from({ length: form.n }, (_, index) => new Choice(form, index))
  let finish: FinishDelta | undefined
  const take = (batch: Delta[]) => {
    for (const delta of batch) {
      if (isFinishDelta(delta)) finish = delta
      else choices[delta.index]?.take(delta)
    }
  }
  if (first.done !== true) take(first.value)
  for await (const batch of deltas) take(batch)
  if (finish === undefined) throw new ApiError('internal_error', 'The answer ended without a finish.')
  return {
    ...head(form, 'chat.completion'),
    choices: choices.map((choice) => choice.whole()),
    usage: usageView(finish.usage),
    ...timing(finish),
  }
}

interface ToolCall {
  id: string
  type: 'function'
  function: { name: string; arguments: string }
}

class Choice {
  readonly #form: AnswerForm
  readonly #index: number
  readonly #reader: ToolCallReader | null
  readonly #calls: ToolCall[] = []
  readonly #logprobs: TokenLogprobs[] = []
  #content = ''
  #reason: EndDelta['reason'] = 'stop'

  constructor(form: AnswerForm, index: number) {
    this.#form = form
    this.#index = index
    this.#reader = form.toolCalls ? new ToolCallReader() : null
  }

  take(delta: AnswerDelta): void {
    for (const piece of read(this.#reader, delta)) {
      if (piece.type === 'content') this.#content += piece.text
      else if (piece.type === 'call') this.#calls.push(toolCall(this.#form, this.#index, piece))
      else if (piece.type === 'arguments') {
        const call = this.#calls[piece.index]
        if (call !== undefined) call.function.arguments += piece.text
      }
    }
    if (delta.type === 'end') this.#reason = delta.reason
    else this.#logprobs.push(...(delta.logprobs ?? []))
  }

  whole() {
    const called = this.#calls.length > 0
    return {
      index: this.#index,
      message: {
        role: 'assistant',
        content: called && this.#content === '' ? null : this.#content,
        refusal: null,
        ...(called ? { tool_calls: this.#calls } : {}),
      },
      logprobs: this.#form.logprobs ? openaiLogprobs(this.#logprobs) : null,
      finish_reason: finishReason(this.#reason, called),
    }
  }
}

export class ChunkWriter {
  readonly #form: AnswerForm
  readonly #head
  readonly #readers: (ToolCallReader | null)[]
  /** An answer's end waits for what comes next: the very last one also says how long all took. */
  #end: EndDelta | null = null
  /** Of the next event. */
  #id = 0

  constructor(form: AnswerForm) {
    this.#form = form
    this.#head = head(form, 'chat.completion.chunk')
    this.#readers = Array.from({ length: form.n }, () => (form.toolCalls ? new ToolCallReader() : null))
  }

  chunks(deltas: Delta[]): string {
    let out = ''
    const content = this.#form.toolCalls ? null : ''
    if (this.#id === 0)
      for (let index = 0; index < this.#form.n; index++)
        out += this.#chunk(index, { role: 'assistant', content, refusal: null })
    for (const delta of deltas) {
      if (isFinishDelta(delta)) out += this.#finish(delta)
      else {
        out += this.#ended()
        if (delta.type === 'end') this.#end = delta
        else out += this.#text(delta)
      }
    }
    return out
  }

  #text(delta: Exclude<AnswerDelta, EndDelta>): string {
    const said = this.#said(delta)
    // Half a character, what may become a stop string, or the frame of a tool call.
    if (said === null && !delta.logprobs) {
      this.#id++
      return ''
    }
    const logprobs = delta.logprobs ? openaiLogprobs(delta.logprobs) : null
    return this.#chunk(delta.index, said ?? { content: '' }, { logprobs })
  }

  /** The `delta` of a chunk; null: nothing to say yet. */
  #said(delta: AnswerDelta): object | null {
    const pieces = read(this.#readers[delta.index] ?? null, delta)
    const content = pieces.map((piece) => (piece.type === 'content' ? piece.text : '')).join('')
    const calls = pieces.flatMap((piece) => this.#callChunk(delta.index, piece))
    if (content === '' && calls.length === 0) return null
    return { ...(content === '' ? {} : { content }), ...(calls.length === 0 ? {} : { tool_calls: calls }) }
  }

  #callChunk(choice: number, piece: Piece): object[] {
    if (piece.type === 'content' || piece.type === 'frame') return []
    if (piece.type === 'call') return [{ index: piece.index, ...toolCall(this.#form, choice, piece) }]
    return [{ index: piece.index, function: { arguments: piece.text } }]
  }

  #ended(last: FinishDelta | null = null): string {
    const end = this.#end
    if (end === null) return ''
    this.#end = null
    const said = this.#said(end) ?? {}
    const finish_reason = finishReason(end.reason, this.#readers[end.index]?.called === true)
    return this.#chunk(end.index, said, { finish_reason }, last === null ? {} : timing(last))
  }

  #finish(delta: FinishDelta): string {
    const last = this.#ended(delta)
    const usages = this.#form.includeUsage
      ? this.#event({ ...this.#head, choices: [], usage: usageView(delta.usage), ...timing(delta) })
      : ''
    const id = this.#id++
    if (id < this.#form.after)
      throw new ApiError('invalid_value', `Last-Event-ID is beyond this answer, whose last event is ${id}.`, {
        param: 'last-event-id',
      })
    return id === this.#form.after ? '' : last + usages + encodeSse({ data: '[DONE]', id: String(id) })
  }

  #chunk(
    index: number,
    delta: object,
    {
      logprobs = null,
      finish_reason = null,
    }: { logprobs?: object | null; finish_reason?: string | null } = {},
    more: object = {},
  ): string {
    const withUsage = this.#form.includeUsage ? { usage: null } : {}
    return this.#event({
      ...this.#head,
      choices: [{ index, delta, logprobs, finish_reason }],
      ...withUsage,
      ...more,
    })
  }

  #event(chunk: object): string {
    const id = this.#id++
    return id <= this.#form.after ? '' : `id: ${id}\ndata: ${JSON.stringify(chunk)}\n\n`
  }
}

function read(reader: ToolCallReader | null, delta: AnswerDelta): Piece[] {
  if (reader === null) return delta.text === '' ? [] : [{ type: 'content', text: delta.text }]
  const pieces = reader.push(delta.text)
  return delta.type === 'end' ? [...pieces, ...reader.flush()] : pieces
}

/** Its id is of generation, answer and place: the same whenever the answer is written. */
const toolCall = (
  { generationId }: AnswerForm,
  choice: number,
  { index, name }: Extract<Piece, { type: 'call' }>,
): ToolCall => ({
  id: `call_${generationId.slice('gen_'.length)}_${choice}_${index}`,
  type: 'function',
  function: { name, arguments: '' },
})

const finishReason = (reason: EndDelta['reason'], called: boolean) =>
  called && reason === 'stop' ? 'tool_calls' : reason

const head = <Kind extends string>({ generationId, created }: AnswerForm, object: Kind) => ({
  id: `chatcmpl-${generationId.slice('gen_'.length)}`,
  object,
  created,
  model: model.id,
  system_fingerprint: `fp_${model.revision.slice(0, 12)}`,
})

export const usageView = ({ prompt, cached, completion }: TokenUsage) => ({
  prompt_tokens: prompt,
  completion_tokens: completion,
  total_tokens: prompt + completion,
  prompt_tokens_details: { cached_tokens: cached },
})

const timing = ({ timing }: FinishDelta) => {
  if (timing === null) return {}
  const rounded = (ms: number) => Math.round(ms * 100) / 100
  const { queue_ms, prefill_ms, decode_ms } = timing
  return {
    timing: { queue_ms: rounded(queue_ms), prefill_ms: rounded(prefill_ms), decode_ms: rounded(decode_ms) },
  }
}

function openaiLogprobs(tokens: TokenLogprobs[]) {
  const one = ({ token_id, logprob }: TokenLogprob) => {
    const bytes = tokenizer.tokenBytes(token_id)
    return { token: new TextDecoder().decode(bytes), logprob, bytes: [...bytes] }
  }
  return {
    content: tokens.map((token) => ({ ...one(token), top_logprobs: token.top.map(one) })),
    refusal: null,
  }
}
