/** Models from the hub: only what is needed, resumed after any interruption, every failure in one clear line. */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { fetchModel } from '../../gpu-backend/model-download.ts'
import { commit, hubServer, type HubServer } from './hub-server.ts'

const name = 'Qwen/Qwen2-test'
const weights = randomBytes(3_000_000)
const files = {
  'README.md': Buffer.from('not needed'),
  'config.json': Buffer.from('{"model_type":"qwen2"}'),
  'generation_config.json': Buffer.from('{}'),
  'tokenizer.json': Buffer.from('{"model":{}}'),
  'tokenizer_config.json': Buffer.from('{}'),
  'pytorch_model.bin': Buffer.from('not needed either'),
  'model.safetensors': weights,
}
const needed = [
  'config.json',
  'generation_config.json',
  'model.safetensors',
  'tokenizer.json',
  'tokenizer_config.json',
]

const root = mkdtempSync(join(tmpdir(), 'qwen-edge-hub-'))
afterAll(() => rmSync(root, { recursive: true }))
vi.spyOn(process.stderr, 'write').mockReturnValue(true)

let hub: HubServer
let dir: string
let models = 0
beforeEach(async () => {
  hub = await hubServer(name, files)
  dir = join(root, `model-${models++}`)
})
afterEach(() => hub.close())

const fetched = (env: Record<string, string> = {}) =>
  fetchModel({ id: name, revision: 'main', dir, env: { HF_ENDPOINT: hub.url, ...env }, retry_ms: 1 })
const visible = () => readdirSync(dir).filter((file) => !file.startsWith('.'))
const rangesOfWeights = () => hub.seen.filter((line) => line.startsWith('model.safetensors'))

describe('a download', () => {
  it('brings what is needed, and nothing else', async () => {
    expect(await fetched()).toBe(dir)
    expect(visible()).toEqual(needed)
    expect(readFileSync(join(dir, 'model.safetensors')).equals(weights)).toBe(true)
    expect(hub.authorizations).toEqual(new Set([undefined]))
  })

  it('sends HF_TOKEN', async () => {
    await fetched({ HF_TOKEN: 'hf_abc' })
    expect(hub.authorizations).toEqual(new Set(['Bearer hf_abc']))
  })

  it('needs no network once it is complete', async () => {
    await fetched()
    hub.status = 500
    expect(await fetched()).toBe(dir)
  })

  it('goes on where the connection was cut, again and again', async () => {
    hub.cuts = [1_000_000, 500_000, 700_000]
    await fetched()
    const ranges = rangesOfWeights()
    expect(ranges).toHaveLength(4)
    expect(ranges[0]).toBe('model.safetensors whole')
    for (const range of ranges.slice(1)) expect(range).toMatch(/bytes=[1-9]\d+-2999999$/)
    expect(readFileSync(join(dir, 'model.safetensors')).equals(weights)).toBe(true)
    expect(visible()).toEqual(needed)
  })

  it('goes on after the whole program was killed', async () => {
    hub.stallAfter = 2_000_000
    const env = {
      ...process.env,
      HF_ENDPOINT: hub.url,
      HF_TOKEN: '',
      MODELS_DIR: join(root, 'killed'),
      MODEL: name,
    }
    dir = join(root, 'killed', name)
    const child = spawn('node', ['gpu-backend/model-source.ts'], { env, stdio: 'ignore' })
    await vi.waitFor(
      () => expect(statSync(join(dir, 'model.safetensors.partial')).size).toBeGreaterThan(1_000_000),
      10_000,
    )
    child.kill('SIGKILL')
    await once(child, 'exit')
    expect(existsSync(join(dir, 'model.safetensors'))).toBe(false)
    const have = statSync(join(dir, 'model.safetensors.partial')).size

    hub.stallAfter = null
    const again = spawn('node', ['gpu-backend/model-source.ts'], { env, stdio: ['ignore', 'pipe', 'ignore'] })
    let said = ''
    again.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString()
    })
    expect(await once(again, 'close')).toEqual([0, null])
    expect(said).toBe(`${dir}\n`)
    expect(rangesOfWeights().at(-1)).toBe(`model.safetensors bytes=${have}-2999999`)
    expect(readFileSync(join(dir, 'model.safetensors')).equals(weights)).toBe(true)
  })

  it('goes on at the commit it began with', async () => {
    hub.cuts = [100_000, 0, 0, 0, 0, 0]
    await expect(fetched()).rejects.toThrow('run it again')
    await fetched()
    expect(hub.seen.length).toBeGreaterThan(0)
    expect(JSON.parse(readFileSync(join(dir, '.download.json'), 'utf8'))).toMatchObject({ commit })
  })

  it('is done by one process while the others wait', async () => {
    await Promise.all([fetched(), fetched(), fetched()])
    expect(rangesOfWeights()).toEqual(['model.safetensors whole'])
  })
})

describe('a download that cannot be', () => {
  it('removes what arrived damaged, and can be tried again', async () => {
    await hub.close()
    hub = await hubServer(name, files, { 'model.safetensors': { oid: 'f'.repeat(64) } })
    await expect(fetched()).rejects.toThrow(/model\.safetensors .*damaged/)
    expect(visible()).not.toContain('model.safetensors.partial')
    expect(visible()).not.toContain('model.safetensors')
  })

  it.each([
    [404, {}, 'No model Qwen/Qwen2-test (revision main)'],
    [401, {}, 'set HF_TOKEN'],
    [403, { HF_TOKEN: 'hf_abc' }, "accept the model's terms"],
    [503, {}, 'answered 503'],
  ])('explains status %i', async (status, env, text) => {
    hub.status = status
    const error = await fetched(env).catch((error: unknown) => error)
    expect(error).toMatchObject({ name: 'ModelError', message: expect.stringContaining(text) })
    expect((error as Error).message).not.toContain('\n')
  })

  it('explains that it is offline', async () => {
    await hub.close()
    await expect(fetched()).rejects.toThrow(/Cannot reach .*MODEL to a folder/)
    hub = await hubServer(name, files)
  })

  it('explains a token that is none', async () => {
    await expect(fetched({ HF_TOKEN: 'secret' })).rejects.toThrow("starts with 'hf_'")
  })

  it('asks for room before it begins', async () => {
    await hub.close()
    hub = await hubServer(name, files, { 'model.safetensors': { size: 1e15 } })
    await expect(fetched()).rejects.toThrow(/GiB free, the download needs 931322\.\d GiB/)
    expect(hub.seen).toEqual([])
  })

  it.each([
    ['model.safetensors', 'no .safetensors weights'],
    ['config.json', 'has no config.json'],
  ])('says that %s is missing', async (missing, text) => {
    await hub.close()
    hub = await hubServer(
      name,
      Object.fromEntries(Object.entries(files).filter(([path]) => path !== missing)),
    )
    await expect(fetched()).rejects.toThrow(text)
  })
})
