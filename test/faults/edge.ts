/** The edge under cut connections, leaving readers and crowds; the same code as test/e2e/edge-faults.test.ts, in full. */
import { aborts, cachedEqualsUncached, crossHits, cutStreams, idle, identical } from '../e2e/edge-faults.ts'
import { startStack, type Stack } from '../e2e/stack.ts'
import type { Finding } from './main.ts'

type Tell = (finding: Finding) => void

const sizes = { cut: 1_000, identical: 1_000, cached: 500, tenants: 1_000, aborts: 10_000 }

const scenarios: Record<keyof typeof sizes, (stack: Stack, count: number, tell: Tell) => Promise<void>> = {
  async cut(stack, count, tell) {
    const { cuts, wrong } = await cutStreams(stack, count)
    tell({ name: `${count} streams over a cutting proxy: connections cut`, value: cuts })
    tell({ name: 'texts unlike the uncut one', value: wrong.length, must: 0 })
  },
  async identical(stack, count, tell) {
    const { texts, failed, promptTokens, perPrompt } = await identical(stack, count, 'Count from 1 to 30.')
    tell({
      name: `${count} identical requests at once: generations`,
      value: promptTokens / perPrompt,
      must: 1,
    })
    tell({ name: 'different texts', value: texts.size, must: 1 })
    tell({ name: 'failed', value: failed, must: 0 })
  },
  async cached(stack, count, tell) {
    const { hits, wrong } = await cachedEqualsUncached(stack, count)
    tell({ name: `${count} requests of random options: cached answers`, value: hits, must: 2 * count })
    tell({ name: 'unlike the uncached one', value: wrong.length, must: 0 })
  },
  async tenants(stack, count, tell) {
    tell({
      name: `${count} prompts of two tenants: cross hits`,
      value: await crossHits(stack, count),
      must: 0,
    })
  },
  async aborts(stack, count, tell) {
    const { aborted } = await aborts(stack, count)
    tell({ name: `${count} requests, readers that left early`, value: aborted })
    await idle(stack)
    tell({ name: 'generations that went on', value: 0, must: 0 })
  },
}

export async function run(
  { quick, only }: { quick: boolean; only: string | undefined },
  tell: Tell,
): Promise<void> {
  const stack = await startStack({ QWEN_EDGE_DEV_REQUESTS_PER_MINUTE: '0' })
  try {
    for (const name of Object.keys(sizes) as (keyof typeof sizes)[]) {
      if (only !== undefined && only !== name) continue
      await scenarios[name](stack, Math.ceil(sizes[name] / (quick ? 100 : 1)), tell)
    }
  } finally {
    await stack.stop()
  }
}
