/** The edge's tokenizer against @huggingface/tokenizers, both warm, on the same texts in the same run. */
import { renderChat } from '../../src/chat-template.ts'
import { loadTokenizer, packTokenizer } from '../../src/tokenizer/compact.ts'
import { referenceTokenizer } from '../../src/tokenizer/reference.ts'
import { qwen2Json } from '../src/tokenizer/vocabularies.ts'
import { texts } from '../golden/tokenizer/texts.ts'
import type { BenchOptions, BenchResult } from './main.ts'

const peer = '@huggingface/tokenizers'

export async function run({ quick }: BenchOptions): Promise<BenchResult[]> {
  const rounds = quick ? 3 : 15
  const json = qwen2Json()
  const file = packTokenizer(json)
  const compact = loadTokenizer(file)
  const reference = referenceTokenizer(json, '')

  const speeds = Object.entries(corpora(quick ? 20_000 : 100_000)).map(([name, text]): BenchResult => {
    const bytes = new TextEncoder().encode(text(0)).length
    const ours = bestMs(rounds, (round) => compact.encode(text(round)))
    const theirs = bestMs(rounds, (round) => reference.encode(text(round)))
    return {
      name: `encode ${name}`,
      value: bytes / ours / 1000,
      unit: 'MB/s',
      peer,
      ratio: theirs / ours,
      goal: 5,
    }
  })
  const loadOurs = bestMs(rounds, () => loadTokenizer(file))
  const loadTheirs = bestMs(Math.min(rounds, 5), () => referenceTokenizer(json, ''))
  return [
    {
      name: "load Qwen2's vocabulary",
      value: loadOurs,
      unit: 'ms',
      peer: '20 ms',
      ratio: 20 / loadOurs,
      goal: 1,
    },
    {
      name: "load Qwen2's vocabulary",
      value: loadOurs,
      unit: 'ms',
      peer,
      ratio: loadTheirs / loadOurs,
      goal: 10,
    },
    ...speeds,
    ...budgets(compact, rounds),
  ]
}

/** What one request may cost the isolate. */
function budgets(compact: ReturnType<typeof loadTokenizer>, rounds: number): BenchResult[] {
  const against = (name: string, budgetMs: number, work: () => unknown): BenchResult => {
    const ms = bestMs(rounds, work)
    return { name, value: ms, unit: 'ms', peer: `${budgetMs} ms`, ratio: budgetMs / ms, goal: 1 }
  }
  const messages = [{ role: 'user' as const, content: english(6_500) }]
  const { tokenIds } = renderChat(compact, messages)
  return [
    against(`render a chat of ${tokenIds.length} tokens`, 1, () => renderChat(compact, messages)),
    against('encode 1 MB of one letter', 250, () => compact.encode('a'.repeat(1_000_000))),
    against('encode 1 MB of combining marks', 250, () => compact.encode('\u0301\u0316'.repeat(250_000))),
  ]
}

/** By round: what is the same in every round meets warm word caches, as a repeated system prompt does. */
function corpora(length: number): Record<string, (round: number) => string> {
  const same = (text: string) => () => text
  return {
    English: same(english(length)),
    Chinese: same(repeat(texts['chinese'] ?? '', length / 3)),
    'Chinese, never seen': (round) => newChinese(length / 3, round),
    '29 languages': same(repeat(Object.values(texts).slice(0, 29).join('\n'), length / 2)),
    code: same(
      repeat(['python', 'tabs', 'json', 'markdown', 'html'].map((name) => texts[name]).join('\n'), length),
    ),
  }
}

/** Clauses of ten common characters in an order that does not come again: every one is a word to merge. */
function newChinese(length: number, round: number): string {
  const common = Array.from(texts['chinese'] ?? '').filter((character) => /\p{L}/u.test(character))
  let state = round + 1
  let text = ''
  while (text.length < length) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    text += text.length % 11 === 10 ? '，' : (common[(state >>> 8) % common.length] ?? '')
  }
  return text
}

/** Words of a few thousand different stems, so that the word caches of both see what a real text shows them. */
function english(length: number): string {
  const words = (texts['english'] ?? '').split(' ')
  const stems = ['', 're', 'un', 'over', 'under', 'out', 'inter', 'non']
  const ends = ['', 's', 'ed', 'ing', 'ly', 'ness', 'er', 'able']
  let text = ''
  for (let i = 0; text.length < length; i++) {
    text += `${stems[(i * 7) % 61] ?? ''}${words[(i * 5) % words.length]}${ends[(i * 11) % 53] ?? ''} `
  }
  return text
}

const repeat = (text: string, length: number): string => text.repeat(Math.ceil(length / text.length))

function bestMs(rounds: number, work: (round: number) => unknown): number {
  let best = Infinity
  for (let round = 0; round <= rounds; round++) {
    const start = performance.now()
    work(round)
    best = Math.min(best, performance.now() - start)
  }
  return best
}
