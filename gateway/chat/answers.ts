/**
 * The answers of one generation, from tokens to text: never half a character, nothing of a stop string, which is looked
 * for in content alone and not in tool calls or their frame, as OpenAI does. Of several
 * answers the tokens are given out row by row, the k-th of each before the next of any: so an event's place in the
 * stream is the same whenever the answers are generated, whichever the engine was quicker with.
 */
import { ApiError } from '../../src/errors.ts'
import {
  isFinish,
  type FinishEvent,
  type GenerateEvent,
  type Timing,
  type TokenLogprobs,
  type TokenUsage,
  type TokensEvent,
} from '../../src/protocol.ts'
import { StopMatcher } from '../../src/stop-strings.ts'
import { Detokenizer } from '../../src/tokenizer/detokenizer.ts'
import { tokenizer } from '../model.ts'
import type { Prompt } from './prompt.ts'
import { ToolCallReader, type Piece } from './tool-call-reader.ts'

export interface TextDelta {
  type: 'text'
  /** Which answer's. */
  index: number
  text: string
  token_ids: number[]
  logprobs?: TokenLogprobs[]
}

/** The last of one answer. */
export interface EndDelta {
  type: 'end'
  index: number
  /** What was held back until it was sure. */
  text: string
  token_ids: []
  reason: 'stop' | 'length'
}

/** The last of all. */
export interface FinishDelta {
  type: 'finish'
  /** Completion tokens of all answers; the prompt counts once. */
  usage: TokenUsage
  /** null: nothing ran for this answer. */
  timing: Timing | null
  /** Limits, not the request, ended an answer: the same request may get more later. */
  cut_short: boolean
}

export type AnswerDelta = TextDelta | EndDelta
export type Delta = AnswerDelta | FinishDelta
export const isFinishDelta = (delta: Delta): delta is FinishDelta => delta.type === 'finish'

/** Each item is what one read gave, in order; the last holds the finish. */
export type Deltas = AsyncGenerator<Delta[]>

export class Answers {
  readonly #all: Answer[]
  readonly #asked: Prompt
  #timing: Timing | null = null
  /** Whose turn it is to give out a token. */
  #turn = 0

  /**
   * @param asked before limits capped its max_tokens
   * @param emitted the tokens that an earlier attempt has given out of a single answer
   */
  constructor(asked: Prompt, emitted: number[]) {
    this.#asked = asked
    this.#all = Array.from(
      { length: asked.sampling.n },
      (_, index) => new Answer(index, asked, index === 0 ? emitted : []),
    )
    this.#rows()
  }

  /** Tokens of all answers, an earlier attempt's included. */
  get tokens(): number {
    return this.#all.reduce((sum, { tokens }) => sum + tokens, 0)
  }

  /** Each has its text, whether or not the engine has said how much it used. */
  get over(): boolean {
    return this.#all.every(({ over }) => over)
  }

  /** Those that a stop string has just ended while the engine still runs them. */
  newlyStopped(): number[] {
    return this.#all.filter((answer) => answer.takeStopped()).map(({ index }) => index)
  }

  push(events: GenerateEvent[]): Delta[] {
    for (const event of events) {
      const answer = this.#all[event.index]
      if (answer === undefined) throw new ApiError('backend_unavailable', 'The backend answered out of turn.')
      if (!isFinish(event)) answer.tokensCame(event)
      else {
        answer.finishCame(event)
        this.#timing = event.timing
      }
    }
    const deltas: Delta[] = this.#rows()
    if (this.#all.every(({ used }) => used !== null)) deltas.push(this.#finish())
    return deltas
  }

  /** @param cached prompt tokens that the engine found computed. */
  endedByStop(cached: number): FinishDelta {
    const prompt = this.#asked.tokenIds.length
    return {
      type: 'finish',
      usage: { prompt, cached: Math.min(cached, prompt), completion: this.tokens },
      timing: null,
      cut_short: false,
    }
  }

  #rows(): AnswerDelta[] {
    const deltas: AnswerDelta[] = []
    for (let silent = 0; silent < this.#all.length;) {
      const answer = this.#all[this.#turn]
      const delta = answer?.take()
      if (delta === undefined && answer?.given === false) break
      silent = delta === undefined ? silent + 1 : 0
      if (delta !== undefined) deltas.push(delta)
      this.#turn = (this.#turn + 1) % this.#all.length
    }
    return deltas
  }

  #finish(): FinishDelta {
    const used = this.#all.flatMap((answer) => answer.used ?? [])
    const { max_tokens } = this.#asked.sampling
    const prompt = this.#asked.tokenIds.length
    return {
      type: 'finish',
      usage: {
        prompt,
        // Those that began later found what the first had computed.
        cached: Math.min(prompt, ...used.map(({ cached }) => cached)),
        completion: this.#all.reduce((sum, answer) => sum + answer.completion, 0),
      },
      timing: this.#timing,
      cut_short: this.#all.some(({ reason, tokens }) => reason === 'length' && tokens < max_tokens),
    }
  }
}

class Answer {
  readonly index: number
  tokens = 0
  reason: 'stop' | 'length' | null = null
  /** As the engine says; null: it has not. */
  used: TokenUsage | null = null
  readonly #detokenizer = new Detokenizer(tokenizer)
  readonly #matcher: StopMatcher
  /** Tells calls from the content that stop strings may end; null: all is content. */
  readonly #calls: ToolCallReader | null
  readonly #waiting: AnswerDelta[] = []
  readonly #emitted: number
  #stopped: 'no' | 'new' | 'known' = 'no'

  constructor(index: number, { stop, sampling }: Prompt, emitted: number[]) {
    this.index = index
    this.#matcher = new StopMatcher(stop)
    this.#calls = stop.length > 0 && sampling.grammar?.type === 'tool_calls' ? new ToolCallReader() : null
    this.#emitted = emitted.length
    this.tokensCame({ index, token_ids: emitted })
  }

  /** Tokens to pay for: what was read up to a stop string, else what the engine says. */
  get completion(): number {
    return this.used === null || this.#matcher.matched ? this.tokens : this.used.completion + this.#emitted
  }

  get over(): boolean {
    return this.reason !== null
  }

  /** Everything has been taken. */
  get given(): boolean {
    return this.over && this.#waiting.length === 0
  }

  take(): AnswerDelta | undefined {
    return this.#waiting.shift()
  }

  takeStopped(): boolean {
    if (this.#stopped !== 'new') return false
    this.#stopped = 'known'
    return this.used === null
  }

  /** One delta a token, however the engine's steps were read: so a position in an answer means the same everywhere. */
  tokensCame(event: TokensEvent): void {
    for (const [at, id] of event.token_ids.entries()) {
      if (this.over) return
      this.tokens++
      const text = this.#beforeStop(this.#detokenizer.push([id]))
      const logprobs = event.logprobs?.[at]
      this.#waiting.push({
        type: 'text',
        index: this.index,
        text,
        token_ids: [id],
        ...(logprobs ? { logprobs: [logprobs] } : {}),
      })
      if (!this.#matcher.matched) continue
      this.#stopped = 'new'
      this.#end('', 'stop')
    }
  }

  finishCame({ finish_reason, usage }: FinishEvent): void {
    this.used = usage
    if (this.over) return
    if (finish_reason === 'deadline')
      throw new ApiError('deadline_exceeded', 'The generation took longer than its deadline.')
    if (finish_reason === 'cancelled')
      throw new ApiError('request_cancelled', 'The generation was cancelled.')
    const tail = this.#beforeStop(this.#detokenizer.flush()) + this.#heldBack()
    this.#end(tail, this.#matcher.matched ? 'stop' : finish_reason)
  }

  /** What can be given out of the text up to now. */
  #beforeStop(text: string): string {
    return this.#calls === null ? this.#matcher.push(text) : this.#untilStop(this.#calls.push(text))
  }

  /** The text has ended. */
  #heldBack(): string {
    return this.#untilStop(this.#calls?.flush() ?? []) + this.#matcher.flush()
  }

  #untilStop(pieces: Piece[]): string {
    let free = ''
    for (const { type, text } of pieces) {
      if (this.#matcher.matched) break
      free += type === 'content' ? this.#matcher.push(text) : this.#matcher.flush() + text
    }
    return free
  }

  #end(text: string, reason: 'stop' | 'length'): void {
    this.reason = reason
    this.#waiting.push({ type: 'end', index: this.index, text, token_ids: [], reason })
  }
}
