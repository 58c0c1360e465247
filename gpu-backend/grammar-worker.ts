/**
 * A thread that turns grammars into masks, by xgrammar: which tokens may come next. It answers `open` and `accept` in
 * order. An exception inside the library leaves its memory in no defined state, so after one the thread says why and
 * ends; whoever started it (grammar-thread.ts) starts another.
 */
import { readFileSync } from 'node:fs'
import { createRequire, registerHooks } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { parentPort, workerData } from 'node:worker_threads'
import type * as Xgrammar from '@mlc-ai/web-xgrammar'
import { bytesOfTokenString } from '../src/tokenizer/byte-alphabet.ts'

export interface WorkerSettings {
  modelDir: string
  /** Tokens that exist. */
  vocabSize: number
  eosTokenIds: number[]
}

export type ToWorker =
  /** `grammar`: EBNF; `tokens`: what was generated already; `stop`: ids that end the answer. */
  | { type: 'open'; id: number; grammar: string; tokens: number[]; stop: number[] }
  | { type: 'accept'; id: number; token: number }
  | { type: 'close'; id: number }

export type FromWorker =
  /** The first message: the vocabulary is there. */
  | { type: 'ready' }
  /** One bit a token, in words from id 0 up; null: nothing may follow. */
  | { type: 'mask'; id: number; mask: Uint32Array<ArrayBuffer> | null }
  /** The last message: the thread ends. */
  | { type: 'broken'; id: number; message: string }

const compiled_max = 64

const port = parentPort
if (port === null) throw new Error('grammar-worker.ts runs as a worker thread')
const settings = workerData as WorkerSettings

/** What the library has printed of its failure: it aborts, and says why on stderr only. */
const said: string[] = []
console.error = (...words: unknown[]) => said.push(words.map(String).join(' '))

const xgrammar = loadLibrary()
const vocabulary = await xgrammar.TokenizerInfo.createTokenizerInfo(
  // The library takes bytes as well as strings; of a string it would make UTF-8, which a token need not be.
  tokenBytes(settings) as unknown as string[],
  'raw',
  false,
  settings.vocabSize,
  settings.eosTokenIds,
)
const compiler = await xgrammar.GrammarCompiler.createGrammarCompiler(vocabulary, false)
/** By EBNF, last used last. */
const compiled = new Map<string, Xgrammar.CompiledGrammar>()
const open = new Map<number, { matcher: Xgrammar.GrammarMatcher; stop: number[] }>()

post({ type: 'ready' })

let done = Promise.resolve()
port.on('message', (message: ToWorker) => {
  done = done.then(() => answer(message)).catch((cause: unknown) => broken(message.id, cause))
})

async function answer(message: ToWorker): Promise<void> {
  switch (message.type) {
    case 'open': {
      const { id, grammar, tokens, stop } = message
      const matcher = await xgrammar.GrammarMatcher.createGrammarMatcher(await compile(grammar))
      for (const token of tokens) accept(matcher, token)
      open.set(id, { matcher, stop })
      return postMask(id)
    }
    case 'accept': {
      const { id, token } = message
      const state = open.get(id)
      if (state !== undefined) accept(state.matcher, token)
      return postMask(id)
    }
    case 'close':
      open.get(message.id)?.matcher.dispose()
      open.delete(message.id)
  }
}

function accept(matcher: Xgrammar.GrammarMatcher, token: number): void {
  if (!matcher.acceptToken(token)) throw new Error(`token ${token} was not allowed by its mask`)
}

async function compile(grammar: string): Promise<Xgrammar.CompiledGrammar> {
  const known = compiled.get(grammar)
  if (known !== undefined) {
    compiled.delete(grammar)
    compiled.set(grammar, known)
    return known
  }
  const made = await compiler.compileGrammar(grammar)
  compiled.set(grammar, made)
  for (const [oldest, unused] of compiled) {
    if (compiled.size <= compiled_max) break
    unused.dispose()
    compiled.delete(oldest)
  }
  return made
}

async function postMask(id: number): Promise<void> {
  const state = open.get(id)
  if (state === undefined) return post({ type: 'mask', id, mask: null })
  const words = new Uint32Array((await state.matcher.getNextTokenBitmask()).buffer as ArrayBuffer)
  const mask = withStops(words, state.stop) ? words : null
  port?.postMessage({ type: 'mask', id, mask } satisfies FromWorker, mask === null ? [] : [mask.buffer])
}

/**
 * Where the grammar may end, each id that stops the answer may come; where it may not, none that is no text. @returns
 * whether anything else may come, too.
 */
function withStops(mask: Uint32Array, stop: number[]): boolean {
  const mayEnd = settings.eosTokenIds.some((id) => has(mask, id))
  for (const id of settings.eosTokenIds) clear(mask, id)
  const goesOn = mask.some((word) => word !== 0)
  if (mayEnd) for (const id of stop) set(mask, id)
  return goesOn
}

function has(mask: Uint32Array, id: number): boolean {
  return (((mask[id >>> 5] ?? 0) >>> (id & 31)) & 1) === 1
}
function set(mask: Uint32Array, id: number): void {
  if (id >>> 5 < mask.length) mask[id >>> 5] = (mask[id >>> 5] ?? 0) | (1 << (id & 31))
}
function clear(mask: Uint32Array, id: number): void {
  if (id >>> 5 < mask.length) mask[id >>> 5] = (mask[id >>> 5] ?? 0) & ~(1 << (id & 31))
}

function post(message: FromWorker): void {
  port?.postMessage(message)
}

function broken(id: number, cause: unknown): void {
  const fatal = said.findLast((line) => line.startsWith('[FATAL]'))
  // "[FATAL] /path/file.cc:12: what is wrong"
  const why =
    fatal?.replace(/^\[FATAL\] \S+ /, '') ?? (cause instanceof Error ? cause.message : String(cause))
  post({ type: 'broken', id, message: why.split('\n')[0]?.slice(0, 300) ?? '' })
  port?.close()
}

/** The package is a UMD file that calls itself a module; loaded as CommonJS, it works. */
function loadLibrary(): typeof Xgrammar {
  const require = createRequire(import.meta.url)
  const path = require.resolve('@mlc-ai/web-xgrammar')
  const url = pathToFileURL(path).href
  registerHooks({
    load: (asked, context, next) => next(asked, asked === url ? { ...context, format: 'commonjs' } : context),
  })
  return require(path) as typeof Xgrammar
}

interface TokenizerJson {
  model: { vocab: Record<string, number> }
  added_tokens?: { id: number; content: string; special: boolean }[]
}

/** By id; control tokens and rows that no token has are empty, which is never allowed. */
function tokenBytes({ modelDir, vocabSize }: WorkerSettings): Uint8Array[] {
  const json = JSON.parse(readFileSync(join(modelDir, 'tokenizer.json'), 'utf8')) as TokenizerJson
  const nothing = new Uint8Array()
  const bytes: Uint8Array[] = Array.from({ length: vocabSize }, () => nothing)
  for (const [token, id] of Object.entries(json.model.vocab)) {
    const text = bytesOfTokenString(token) ?? nothing
    if (id < vocabSize) bytes[id] = text.some(inNoUtf8) ? nothing : text
  }
  for (const { id, content, special } of json.added_tokens ?? [])
    if (id < vocabSize) bytes[id] = special ? nothing : new TextEncoder().encode(content)
  return bytes
}

/** Bytes that no UTF-8 holds. */
function inNoUtf8(byte: number): boolean {
  return byte === 0xc0 || byte === 0xc1 || byte >= 0xf5
}
