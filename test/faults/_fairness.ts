/** What a tenant's jobs wait for while another tenant has thousands queued. */
import { startReceiver } from '../e2e/receiver.ts'
import { newTenant } from '../e2e/stack.ts'
import { Client, eventually, pool, quantile } from './_client.ts'
import type { Finding } from './main.ts'

const flood_jobs = 2_000
const probes = 30

export async function fairness({ stack }: Client, scale: number, tell: (finding: Finding) => void) {
  const tenant = async () => new Client({ ...stack, key: await (await newTenant(stack))() })
  const [flooding, other] = [await tenant(), await tenant()]
  const receiver = await startReceiver()
  const probe = async (kind: string) => {
    const times: number[] = []
    for (let n = 0; n < probes; n++) {
      const begun = performance.now()
      const { id } = await other.submit(n, `${receiver.url}${kind}`)
      const arrived = () => receiver.received.some(({ body }) => body.includes(id))
      await eventually(arrived, 60_000, 2)
      times.push(performance.now() - begun)
    }
    return times
  }
  const alone = await probe('alone')
  const n = Math.ceil(flood_jobs * scale)
  // Of a hundred tokens each: what is queued outlasts the probes.
  await pool(n, 16, (i) => flooding.submit(i, `${receiver.url}flood`, { max_tokens: 100, ignore_eos: true }))
  const beside = await probe('beside')
  const { data } = await flooding.json<{ data: unknown[] }>('/jobs?status=queued&limit=1')
  tell({ name: `fairness: jobs another tenant had queued`, value: n })
  tell({ name: 'fairness: some of them still waited at the end', value: data.length, must: 1 })
  tell({ name: 'fairness: p50 ms to a delivered result, alone', value: quantile(alone, 0.5) })
  tell({ name: 'fairness: p99 ms, alone', value: quantile(alone, 0.99) })
  tell({ name: 'fairness: p50 ms to a delivered result, beside the flood', value: quantile(beside, 0.5) })
  tell({ name: 'fairness: p99 ms, beside the flood', value: quantile(beside, 0.99) })
  await receiver.close()
}
