/** A thread that callers' grammars may cost: who pays, and what the others notice. */
import { join } from 'node:path'
import { afterEach, expect, it } from 'vitest'
import { GrammarThread, type Constraint, type Mask } from '../../gpu-backend/grammar-thread.ts'

const settings = {
  modelDir: join(import.meta.dirname, '../../gpu-backend/models/tiny'),
  vocabSize: 2259,
  eosTokenIds: [2258, 2256],
}
const limits = { compile_ms_max: 10_000, mask_ms_max: 10_000, waiting_max: 100, refused_ms: 60_000 }
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
  const other = await thread.open(letters, [])
  const first = allowed(other.first)
  expect(first.length).toBeGreaterThan(2)
  const lone = await thread.open(letters, [])
  const expected = allowed(await next(lone, first[0]!))
  const both = [thread.open(slow, []), thread.open(slow, [])]
  const mask = next(other, first[0]!)
  const refused = performance.now()
  for (const one of both) await expect(one).rejects.toThrow('took longer than 0.4 s')
  expect(performance.now() - refused).toBeLessThan(750)
  expect(allowed(await mask)).toEqual(expected)
  const started = performance.now()
  await expect(thread.open(slow, [])).rejects.toMatchObject({ code: 'unsupported_value' })
  expect(performance.now() - started).toBeLessThan(50)
})

it('a refusal is forgotten: the machine may have been to blame', async () => {
  thread = new GrammarThread(settings, { ...limits, compile_ms_max: 300, refused_ms: 50 })
  await expect(thread.open(slow, [])).rejects.toThrow('took longer')
  await new Promise((resolve) => setTimeout(resolve, 60))
  const started = performance.now()
  await expect(thread.open(slow, [])).rejects.toThrow('took longer')
  expect(performance.now() - started).toBeGreaterThan(250)
})

it('what the library fails over is refused by its words', async () => {
  thread = new GrammarThread(settings, limits)
  await expect(thread.open('root ::= missing_rule', [])).rejects.toThrow('missing_rule')
  expect((await thread.open(letters, [])).first).not.toBeNull()
})

it('stop ids may come where the grammar may end, and only there; at its very end nothing may', async () => {
  thread = new GrammarThread(settings, limits)
  const letter = allowed((await thread.open('root ::= "a"', [])).first)
  const constraint = await thread.open('root ::= "a" "a"?', [2258, 7])
  expect(allowed(constraint.first)).not.toContain(2258)
  const middle = allowed(await next(constraint, letter[0]!))
  expect(middle).toEqual(expect.arrayContaining([2258, 7]))
  expect(middle).not.toContain(2256)
  expect(await next(constraint, letter[0]!)).toBeNull()
})

it('a queue that is full is said at once, and a close fails who waits', async () => {
  thread = new GrammarThread(settings, { ...limits, waiting_max: 2 })
  const waiting = [thread.open(letters, []), thread.open(letters, [])].map((opening) =>
    opening.then(
      () => 'opened',
      ({ code }: { code: string }) => code,
    ),
  )
  await expect(thread.open(letters, [])).rejects.toMatchObject({ code: 'queue_full' })
  await thread.close()
  expect(await Promise.all(waiting)).toEqual(['backend_unavailable', 'backend_unavailable'])
})

it('a token that was not allowed costs that answer alone', async () => {
  thread = new GrammarThread(settings, limits)
  const good = await thread.open(letters, [])
  const bad = await thread.open(letters, [])
  const wrong = next(bad, 2258)
  const right = next(good, allowed(good.first)[0]!)
  await expect(wrong).rejects.toThrow('was not allowed by its mask')
  expect(await right).not.toBeNull()
})
