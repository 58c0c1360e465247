import { env } from 'cloudflare:workers'
import { runInDurableObject } from 'cloudflare:test'
import { expect, it } from 'vitest'
import { identify } from '../../../gateway/keys/identify.ts'
import { Ledger } from '../../../gateway/limits/ledger.ts'
import { countRequest, unlimited } from '../../../gateway/limits/limits.ts'
import { parsePrices, UsageBook } from '../../../gateway/limits/usage-book.ts'
import { makeKey } from '../../../src/keys.ts'

const inObject = <T>(name: string, work: (storage: DurableObjectStorage) => T) =>
  runInDurableObject(env.TENANT.getByName(name), (_, state) => work(state.storage))

const use = { key_id: 'k', model: 'tiny', template: '' }
const ask = { prompt_tokens: 10, max_tokens: 20, room_tokens: 20, least_tokens: 1 }
const limits = { ...unlimited, requests_per_minute: 10, tokens_per_minute: 1000, tokens_per_day: 5000 }
const scopes = (ledger: Ledger) => [
  { kind: 'tenant' as const, id: 'tenant', limits, meter: ledger.meter('tenant') },
]

it('a killed object forgets what it had not yet written, and no more', async () => {
  await inObject('ledger', (storage) => {
    const before = new Ledger(storage)
    for (let i = 0; i < 6; i++) countRequest(scopes(before), Date.now())
    before.admit('kept', use, scopes(before), ask, Date.now())
    before.touch(scopes(before))
    before.flush()
    countRequest(scopes(before), Date.now())
    before.admit('lost', use, scopes(before), ask, Date.now())

    const after = new Ledger(storage)
    expect(countRequest(scopes(after), Date.now())).toBeNull()
    const meter = after.meter('tenant')
    expect([meter.requests.used, meter.running, meter.tokens.used, meter.day.milli]).toEqual([
      7, 1, 30_000, 30_000,
    ])
    expect(after.settle('kept', [], { prompt: 10, cached: 0, completion: 1 }, 0.1, Date.now())).toBe(true)
    expect([meter.running, meter.tokens.used]).toEqual([0, 11_000])
    // Its reservation is gone with the object, what it used is not.
    after.settle('lost', scopes(after), { prompt: 10, cached: 10, completion: 5 }, 0.1, Date.now())
    expect([meter.running, meter.tokens.used]).toEqual([0, 17_000])
    after.flush()
    expect(new Ledger(storage).nextDeadline()).toBeNull()
  })
})

it.each(['{"tiny": {"prompt": "0,5"}}', '{"tiny": {"prompt": -1}}', '{"tiny": {"promt": 1}}', '{', '[1]'])(
  'has no prices where PRICES is %s',
  (text) => expect(parsePrices(text)).toEqual({}),
)

it('usage survives a restart, and costs what it cost then', async () => {
  await inObject('usage', (storage) => {
    const prices = parsePrices('{"tiny": {"prompt": 0.5, "cached": 0.05, "completion": 1.5}}')
    const now = Date.UTC(2026, 0, 1, 12, 30)
    for (let restart = 0; restart < 3; restart++) {
      const book = new UsageBook(storage)
      book.addRequests(use, 2, 1, now)
      book.addTokens(use, { prompt: 1_000_000, cached: 500_000, completion: 100_000 }, prices, now)
      book.flush()
    }
    const [row] = new UsageBook(storage).read(now / 1000 - 1, now / 1000 + 1, 'hour')
    expect(row).toMatchObject({ group: String(now / 1000 - 1800), requests: 6, hits: 3, prompt: 3_000_000 })
    expect(row!.cost / 1e9).toBe(1.275)
    expect(new UsageBook(storage).read(now / 1000 + 3600, now / 1000 + 7200, 'key')).toEqual([])
  })
})

it('ten thousand bad, cut, foreign and unknown keys are 401, each', async () => {
  let reads = 0
  const counted = { get: () => (reads++, Promise.resolve(null)) }
  const keys = Array.from({ length: 10_000 }, (_, i) => {
    const key = makeKey('test')
    return [key, key.slice(0, -1), `sk-${key}`, key.toLowerCase(), ''][i % 5] ?? key
  })
  const noKeys = {
    ...env,
    KEYS: counted,
    DIRECTORY: { getByName: () => ({ get: () => Promise.resolve(null) }) },
  } as unknown as Env
  for (const key of keys) {
    const status = await identify(noKeys, key, () => undefined).then(
      () => 200,
      (error: { status: number }) => error.status,
    )
    if (status !== 401) throw new Error(`${key} was ${status}`)
  }
  // Only a right checksum is worth a look.
  expect(reads).toBe(2_000)
})
