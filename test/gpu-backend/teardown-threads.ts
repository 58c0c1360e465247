/** Threads that end while their engine computes, is being closed, or is still being opened; run as a process by teardown.test.ts. */
import { once } from 'node:events'
import { join } from 'node:path'
import { isMainThread, Worker, workerData } from 'node:worker_threads'
import { openEngine } from '../../gpu-backend/engine.ts'
import { greedy } from './engine-fixtures.ts'

const ends = ['computing', 'closing', 'closed', 'opening'] as const
type End = (typeof ends)[number]

async function end(when: End): Promise<never> {
  const opening = openEngine({
    modelDir: join(import.meta.dirname, '../../gpu-backend/models/tiny'),
    device: 'cpu',
    threads: 1,
    kvMemoryMb: 16,
  })
  if (when === 'opening') {
    await new Promise((resolve) => setTimeout(resolve, 5))
    process.exit(0)
  }
  const engine = await opening
  const prompt = Uint32Array.from({ length: 500 }, (_, i) => i)
  const request = { sampling: { ...greedy, max_tokens: 500 }, salt: '', sharedPrefixTokens: 0, priority: 0 }
  engine.submit({ tokenIds: prompt, ...request }, () => undefined)
  if (when !== 'computing') {
    const closed = engine.close()
    if (when === 'closed') await closed
  }
  process.exit(0)
}

if (isMainThread) {
  const asked = ends.filter((when) => process.argv.length === 2 || process.argv.includes(when))
  for (let round = 0; round < 5; round++)
    for (const when of asked) {
      const [status] = (await once(new Worker(import.meta.filename, { workerData: when }), 'exit')) as [
        number,
      ]
      if (status !== 0) throw new Error(`a thread that ended while ${when} had status ${status}`)
    }
} else await end(workerData as End)
