/** A thread that callers' grammars may cost: who pays, and what the others notice. */
import { join } from 'node:path'
import { afterEach, expect, it, vi } from 'vitest'
import { GrammarThread, type Constraint, type Mask } from '../../gpu-backend/grammar-thread.ts'

const settings = {
  modelDir: join(import.meta.dirname, '../../gpu-backend/models/tiny'),
  vocabSize: 2259,
  eosTokenIds: [2258, 2256],
}
const limits = {
  compile_ms_max: 10_000,
  mask_ms_max: 10_000,
  waiting_max: 100,
  tenant_waiting_max: 100,
  refused_ms: 60_000,
  idle_ms: 60_000,
}
let thread: GrammarThread
afterEach(() => thread.close())

const next = (constraint: Constraint, token: number) =>
  new Promise<Mask>((resolve, reject) => constraint.accept(token, resolve, reject))
const allowed = (mask: Mask) =>
  Array.from({ length: 2259 }, (_, id) => id).filter((id) => ((mask?.[id >>> 5] ?? 0) >>> (id & 31)) & 1)
/** Each step of each repetition is a look at the vocabulary; no two are alike. */
const slow =
  `root ::= ${Array.from({ length: 60 }, (_, i) => `[^${String.fromCharCode(40 + i)}]{1,190}`).join(' "x" ')}`
    .replace('[^\\]', '[^z]')
    .replace('[^]]', '[^z]')
    .replace('[^[]', '[^z]')
    .replace('[^^]', '[^z]')
    .replace('[^-]', '[^z]')
const letters = 'root ::= [a-c]{6}'

it('what takes too long is refused by name; who was under way goes on where it was', async () => {
  thread = new GrammarThread(settings, { ...limits, compile_ms_max: 400 })
  const other = await thread.open(letters, [], 'a')
  const first = allowed(other.first)
  expect(first.length).toBeGreaterThan(2)
  const lone = await thread.open(letters, [], 'a')
  const expected = allowed(await next(lone, first[0]!))
  const both = [thread.open(slow, [], 'a'), thread.open(slow, [], 'a')]
  const mask = next(other, first[0]!)
  const refused = performance.now()
  for (const one of both) await expect(one).rejects.toThrow('took longer than 0.4 s')
  expect(performance.now() - refused).toBeLessThan(750)
  expect(allowed(await mask)).toEqual(expected)
  const started = performance.now()
  await expect(thread.open(slow, [], 'a')).rejects.toMatchObject({ code: 'unsupported_value' })
  expect(performance.now() - started).toBeLessThan(50)
})

it('what can have no text is refused', async () => {
  thread = new GrammarThread(settings, limits)
  await expect(thread.open('root ::= root', [2256], 'a')).rejects.toThrow('no text can satisfy it')
})

it('a refusal is forgotten: the machine may have been to blame', async () => {
  thread = new GrammarThread(settings, { ...limits, compile_ms_max: 300, refused_ms: 50 })
  await expect(thread.open(slow, [], 'a')).rejects.toThrow('took longer')
  await new Promise((resolve) => setTimeout(resolve, 60))
  const started = performance.now()
  await expect(thread.open(slow, [], 'a')).rejects.toThrow('took longer')
  expect(performance.now() - started).toBeGreaterThan(250)
})

it('what the library fails over is refused by its words', async () => {
  thread = new GrammarThread(settings, limits)
  await expect(thread.open('root ::= missing_rule', [], 'a')).rejects.toThrow('missing_rule')
  expect((await thread.open(letters, [], 'a')).first).not.toBeNull()
})

it('stop ids may come where the grammar may end, and only there; at its very end nothing may', async () => {
  thread = new GrammarThread(settings, limits)
  const letter = allowed((await thread.open('root ::= "a"', [], 'a')).first)
  const constraint = await thread.open('root ::= "a" "a"?', [2258, 7], 'a')
  expect(allowed(constraint.first)).not.toContain(2258)
  const middle = allowed(await next(constraint, letter[0]!))
  expect(middle).toEqual(expect.arrayContaining([2258, 7]))
  expect(middle).not.toContain(2256)
  expect(await next(constraint, letter[0]!)).toBeNull()
})

it('a queue that is full is said at once, and a close fails who waits', async () => {
  thread = new GrammarThread(settings, { ...limits, waiting_max: 3, tenant_waiting_max: 2 })
  // The first begins at once.
  const waiting = ['a', 'a', 'a', 'b'].map((tenant) =>
    thread.open(letters, [], tenant).then(
      () => 'opened',
      ({ code }: { code: string }) => code,
    ),
  )
  await expect(thread.open(letters, [], 'a')).rejects.toMatchObject({ code: 'rate_limit_exceeded' })
  await expect(thread.open(letters, [], 'b')).rejects.toMatchObject({ code: 'queue_full' })
  await thread.close()
  expect(await Promise.all(waiting)).toEqual(waiting.map(() => 'backend_unavailable'))
  await expect(thread.open(letters, [], 'b')).rejects.toMatchObject({ code: 'backend_unavailable' })
})

it('tenants take turns: who brings much waits behind itself', async () => {
  thread = new GrammarThread(settings, limits)
  const order: string[] = []
  const open = async (tenant: string, i: number) => {
    await thread.open(`root ::= "${tenant}" "${i}"?`, [], tenant)
    order.push(tenant)
  }
  await Promise.all([
    ...Array.from({ length: 20 }, (_, i) => open('a', i)),
    ...Array.from({ length: 3 }, (_, i) => open('b', i)),
    open('c', 0),
  ])
  // One of a's had begun before the others came.
  expect(order.join('')).toBe('abcabab' + 'a'.repeat(17))
})

it('a thread that nobody needs ends, by time or by word, and the next grammar starts it again', async () => {
  thread = new GrammarThread(settings, { ...limits, idle_ms: 50 })
  const constraint = await thread.open(letters, [], 'a')
  await thread.rest()
  await new Promise((resolve) => setTimeout(resolve, 100))
  expect(thread.running).toBe(true)
  expect(await next(constraint, allowed(constraint.first)[0]!)).not.toBeNull()
  constraint.close()
  await vi.waitUntil(() => !thread.running, { timeout: 2_000 })
  const again = await thread.open(letters, [], 'a')
  expect(allowed(again.first)).toEqual(allowed(constraint.first))
  again.close()
  await thread.rest()
  expect(thread.running).toBe(false)
})

it('a token that was not allowed costs that answer alone', async () => {
  thread = new GrammarThread(settings, limits)
  const good = await thread.open(letters, [], 'a')
  const bad = await thread.open(letters, [], 'a')
  const wrong = next(bad, 2258)
  const right = next(good, allowed(good.first)[0]!)
  await expect(wrong).rejects.toThrow('was not allowed by its mask')
  expect(await right).not.toBeNull()
})
