/** A batch as large as they may be: 50,000 lines in a file of almost 100 MB, sent in, run for a while, cancelled. */
import { readFileSync } from 'node:fs'
import OpenAI, { toFile } from 'openai'
import { pidOf } from '../e2e/processes.ts'
import { eventually, type Client } from './_client.ts'
import type { Finding } from './main.ts'

const lines_max = 50_000
const file_bytes = 99e6
const patience_ms = 300_000

export async function largeBatch(client: Client, scale: number, tell: (finding: Finding) => void) {
  const n = Math.max(200, Math.ceil(lines_max * scale))
  const openai = new OpenAI({
    baseURL: `${client.stack.gateway}/v1`,
    apiKey: client.stack.key,
    maxRetries: 0,
  })
  const workerd = pidOf(client.stack, 'workerd serve')
  const before = residentMb(workerd, 'VmRSS')
  const text = input(n, Math.floor(file_bytes / lines_max))
  const begun = performance.now()
  const file = await openai.files.create({ file: await toFile(text, 'large.jsonl'), purpose: 'batch' })
  const sent = performance.now()
  const { id } = await openai.batches.create({
    input_file_id: file.id,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
  })
  const now = () => openai.batches.retrieve(id)
  await eventually(async () => (await now()).status !== 'validating', patience_ms)
  const checked = performance.now()
  await eventually(async () => ((await now()).request_counts?.completed ?? 0) >= 100, patience_ms)
  await openai.batches.cancel(id)
  const asked = performance.now()
  await eventually(async () => (await now()).status === 'cancelled', patience_ms)
  const { status, request_counts: counts, output_file_id } = await now()
  const output = (await (await openai.files.content(output_file_id ?? '')).text()).trim().split('\n')
  tell({ name: 'large batch: lines', value: counts?.total ?? 0, must: n })
  tell({ name: 'large batch: MB sent', value: (text.length / 1e6).toFixed(1) })
  tell({ name: 'large batch: s to send it', value: ((sent - begun) / 1000).toFixed(1) })
  tell({ name: 'large batch: s to check every line', value: ((checked - sent) / 1000).toFixed(1) })
  tell({
    name: 'large batch: MB more that workerd held at the most',
    value: residentMb(workerd, 'VmHWM') - before,
  })
  tell({ name: 'large batch: after its cancellation', value: status, must: 'cancelled' })
  tell({ name: 'large batch: s until it was', value: ((performance.now() - asked) / 1000).toFixed(1) })
  tell({ name: 'large batch: answers given out', value: output.length, must: counts?.completed ?? 0 })
}

/** Lines alike in length, in groups of a hundred with one beginning, most of it blanks that cost no tokens. */
function input(lines: number, bytes: number): Buffer {
  const text = Array.from({ length: lines }, (_, n) => {
    const content = `You are helper ${n % 100}. What is ${n % 50} + 7?`
    const body = { model: 'tiny', messages: [{ role: 'user', content }], max_tokens: 1, temperature: 0 }
    const line = JSON.stringify({ custom_id: `line-${n}`, method: 'POST', url: '/v1/chat/completions', body })
    return line.slice(0, -1) + ' '.repeat(Math.max(0, bytes - line.length - 1)) + '}\n'
  })
  return Buffer.from(text.join(''))
}

function residentMb(pid: number, name: 'VmRSS' | 'VmHWM'): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  return Math.round(Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)?.[1] ?? 0) / 1024)
}
