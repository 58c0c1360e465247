/**
 * The wire between gateway and backend: token ids in, token ids out, over SSE; one event per engine step and request.
 *
 *   POST /v1/generate                        GenerateRequest -> events: GenerateEvent ... , the last one has `finish_reason`
 *   POST /v1/generate/{request_id}/cancel    -> { usage, finish_reason }; idempotent, kept for 10 minutes
 *                                            ?index=i stops one of several answers
 *   POST /v1/prefixes                        PrefixRequest -> PrefixResponse, once the prefix is computed
 *   GET  /v1/model                           -> ModelCard
 *
 * A failure before the first event is a status with ErrorBody; after it, an SSE event named `error` with ErrorBody.
 * Everything under /v1 wants `authorization: Bearer <secret>`.
 */
import * as z from 'zod/mini'
import { Sampling, type GenerationDefaults } from './sampling.ts'
import type { ErrorCode } from './errors.ts'

/** One plain loop: a schema for each of 30,000 elements takes 7 ms, this 0.1. */
const isTokenIds = (value: unknown): boolean =>
  Array.isArray(value) &&
  value.length > 0 &&
  value.every((id) => Number.isInteger(id) && id >= 0 && id <= 0x7fffffff)

export const GenerateRequest = z.object({
  request_id: z.string().check(z.regex(/^[\w.:-]{1,128}$/)),
  model: z.string(),
  token_ids: z.custom<number[]>(isTokenIds, 'must be a list of at least one token id'),
  sampling: Sampling,
  cache: z.optional(
    z.object({
      /** Who may reuse the blocks: the tenant. Empty: nobody's in particular. */
      salt: z.optional(z.string().check(z.maxLength(256))),
      /** Leading tokens the operator published; their blocks are shared by every salt. */
      shared_prefix_tokens: z.optional(z.int().check(z.gte(0))),
    }),
  ),
  /** Higher runs first. */
  priority: z.optional(z.int().check(z.gte(-100), z.lte(100))),
  /** From arrival; the generation ends with `deadline` when it passes. */
  deadline_ms: z.optional(z.int().check(z.gte(1))),
})
export type GenerateRequest = z.infer<typeof GenerateRequest>

/** Computes a prompt's keys and values before anybody asks with it. */
export const PrefixRequest = z.object({
  token_ids: z.custom<number[]>(isTokenIds, 'must be a list of at least one token id'),
  salt: z.optional(z.string().check(z.maxLength(256))),
  shared_prefix_tokens: z.optional(z.int().check(z.gte(0))),
  /** How long it stays whatever else wants memory; pins may hold half of it, and the first to lapse yields. */
  pin_seconds: z.optional(z.number().check(z.gte(0), z.lte(7 * 24 * 3600))),
})
export type PrefixRequest = z.infer<typeof PrefixRequest>

export interface PrefixResponse {
  /** Leading tokens that a prompt starting with these need not compute. */
  cached_tokens: number
  /** When the pin lapses, Unix seconds; null without one. */
  until: number | null
  /** As of a prompt without an answer: `cached` was there before. */
  usage: TokenUsage
}

export interface TokenLogprob {
  token_id: number
  logprob: number
}
/** One generated token's log-probability and its most likely alternatives, best first. */
export interface TokenLogprobs extends TokenLogprob {
  top: TokenLogprob[]
}

export interface TokensEvent {
  index: number
  token_ids: number[]
  logprobs?: TokenLogprobs[]
}

export type FinishReason = 'stop' | 'length' | 'cancelled' | 'deadline'

/** Tokens. `prompt` includes the cached ones. With n > 1 each answer has its own `completion`; the prompt counts once. */
export interface TokenUsage {
  prompt: number
  cached: number
  completion: number
}

export interface Timing {
  queue_ms: number
  prefill_ms: number
  decode_ms: number
}

export interface FinishEvent {
  index: number
  finish_reason: FinishReason
  usage: TokenUsage
  timing: Timing
}

export type GenerateEvent = TokensEvent | FinishEvent

export const isFinish = (event: GenerateEvent): event is FinishEvent => 'finish_reason' in event

/** What both programs know of the model that runs; made from the checkpoint folder by gpu-backend/model-card.ts. */
export interface ModelCard {
  /** The API's model id. */
  id: string
  /** Content hash of configuration, tokenizer and weights: equal revisions answer alike. */
  revision: string
  /** Unix seconds. */
  created: number
  context_length: number
  /** Hash of tokenizer.json. */
  tokenizer: string
  default_system: string
  generation: GenerationDefaults
  /** Ids that end an answer. */
  eos_token_ids: number[]
}

export interface CancelResponse {
  request_id: string
  /** null: nothing known under that id. */
  usage: TokenUsage | null
  /** How it ended, `cancelled` where this or another call stopped it; null: it goes on, or is not known. */
  finish_reason: FinishReason | 'error' | null
}

export interface WireError {
  error: { message: string; type: string; param: string | null; code: ErrorCode }
}
