import { describe, expect, it } from 'vitest'
import { aborts, cachedEqualsUncached, crossHits, cutStreams, identical } from './edge-faults.ts'
import { stackOfFile } from './stack-of-file.ts'

const stack = stackOfFile({ QWEN_EDGE_DEV_REQUESTS_PER_MINUTE: '0' })

/** `npm run faults -- edge` does the same at full size. */
describe('the edge', () => {
  it('gives whole texts through a network that cuts every stream', async () => {
    const { cuts, wrong } = await cutStreams(stack, 40)
    expect(wrong).toEqual([])
    expect(cuts).toBeGreaterThan(30)
  })

  it('runs one generation for many identical requests', async () => {
    const { texts, failed, promptTokens, perPrompt } = await identical(stack, 100, 'Count from 1 to 20.')
    expect([texts.size, failed, promptTokens]).toEqual([1, 0, perPrompt])
  })

  it('answers from the cache what the engine would', async () => {
    const { hits, wrong } = await cachedEqualsUncached(stack, 30)
    expect(wrong).toEqual([])
    expect(hits).toBe(60)
  })

  it('never serves one tenant from another', async () => {
    expect(await crossHits(stack, 20)).toBe(0)
  })

  it('leaves nothing running behind readers that left', async () => {
    const { aborted } = await aborts(stack, 100)
    expect(aborted).toBeGreaterThan(50)
  })
})
