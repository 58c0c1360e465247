import { execFileSync, spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { modelCard, tokenizerFor, writeModel } from '../../gpu-backend/model-card.ts'
import { modelId, resolveModel } from '../../gpu-backend/model-source.ts'
import { loadTokenizer } from '../../src/tokenizer/compact.ts'

const tiny = join(import.meta.dirname, '../../gpu-backend/models/tiny')
const root = mkdtempSync(join(tmpdir(), 'qwen-edge-card-'))
afterAll(() => rmSync(root, { recursive: true }))

let dir: string
let copies = 0
beforeEach(() => {
  dir = join(root, `checkpoint-${copies++}`)
  cpSync(tiny, dir, { recursive: true })
})
const card = () => modelCard({ id: 'x', dir })
const edit = (name: string, change: (json: Record<string, unknown>) => Record<string, unknown>) => {
  const path = join(dir, name)
  writeFileSync(
    path,
    JSON.stringify(change(JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>)),
  )
}

describe('the card', () => {
  it('tells of the shipped model what its files say', async () => {
    expect(await modelCard(await resolveModel('tiny'))).toMatchObject({
      id: 'tiny',
      revision: expect.stringMatching(/^[0-9a-f]{32}$/),
      context_length: 8192,
      default_system: 'You are a helpful assistant.',
      generation: { temperature: expect.any(Number), top_p: expect.any(Number) },
      eos_token_ids: expect.arrayContaining([expect.any(Number)]),
    })
  })

  it('has another revision when configuration, tokenizer or one bit of the weights changed', async () => {
    const revisions = [(await card()).revision]
    const weights = readFileSync(join(dir, 'model.safetensors'))
    weights[weights.length - 5]! ^= 1
    writeFileSync(join(dir, 'model.safetensors'), weights)
    revisions.push((await card()).revision)
    for (const name of ['config.json', 'generation_config.json', 'tokenizer.json']) {
      edit(name, (json) => ({ ...json, extra: true }))
      revisions.push((await card()).revision)
    }
    expect(new Set(revisions).size).toBe(revisions.length)
  })

  it('has the same revision wherever the same files lie', async () => {
    expect((await card()).revision).toBe((await modelCard({ id: 'y', dir: tiny })).revision)
  })

  it('knows large weights by size and samples', async () => {
    const path = join(dir, 'model.safetensors')
    truncateSync(path, 80 * 1024 ** 2)
    const before = (await card()).revision
    expect((await card()).revision).toBe(before)
    truncateSync(path, 80 * 1024 ** 2 + 1)
    const longer = (await card()).revision
    expect(longer).not.toBe(before)
    writeFileSync(path, Buffer.concat([Buffer.from([1]), readFileSync(path).subarray(1)]))
    expect((await card()).revision).not.toBe(longer)
  })

  it.each([
    ["{% if x %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}", 'Be brief.'],
    ["{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}", 'You are Qwen.'],
    ["{{ '<|im_start|>' + message['role'] + '\n' }}", ''],
    [undefined, 'You are a helpful assistant.'],
  ])('reads the default system message of %j', async (chat_template, text) => {
    edit('tokenizer_config.json', (json) => ({ ...json, chat_template }))
    expect((await card()).default_system).toBe(text)
  })

  it('falls back to neutral sampling without a generation_config.json', async () => {
    rmSync(join(dir, 'generation_config.json'))
    edit('config.json', (json) => ({ ...json, eos_token_id: 7 }))
    expect(await card()).toMatchObject({
      generation: { temperature: 1, top_p: 1, top_k: 0, repetition_penalty: 1 },
      eos_token_ids: [7],
    })
  })

  it.each([
    ['config.json', '{"max_position_embeddings":"many"}', /config\.json: max_position_embeddings/],
    ['config.json', '{', /config\.json: SyntaxError/],
  ])('names %s when it reads %s', async (name, text, message) => {
    writeFileSync(join(dir, name), text)
    await expect(card()).rejects.toThrow(message)
  })
})

describe('what is written for the gateway', () => {
  it('is the card and a tokenizer that it can load', async () => {
    const out = join(dir, 'out')
    expect(await writeModel({ id: 'x', dir }, out)).toBe(true)
    expect(JSON.parse(readFileSync(join(out, 'card.json'), 'utf8'))).toEqual(await card())
    const tokenizer = loadTokenizer(readFileSync(join(out, 'tokenizer.bin')))
    expect(tokenizer.decode(tokenizer.encode('What is 17 + 25?'))).toBe('What is 17 + 25?')
  })

  it('is left alone when nothing changed', async () => {
    const out = join(dir, 'out')
    await writeModel({ id: 'x', dir }, out)
    const before = statSync(join(out, 'tokenizer.bin')).ino
    expect(await writeModel({ id: 'x', dir }, out)).toBe(false)
    expect(statSync(join(out, 'tokenizer.bin')).ino).toBe(before)
  })

  it('is tokenizer.json itself where the compact form cannot say it', () => {
    edit('tokenizer.json', (json) => ({ ...json, normalizer: { type: 'Lowercase' } }))
    expect(tokenizerFor(dir)).toEqual(readFileSync(join(dir, 'tokenizer.json')))
  })

  it('is nothing at all for a tokenizer.json that is broken or absent', async () => {
    writeFileSync(join(dir, 'tokenizer.json'), '{')
    await expect(writeModel({ id: 'x', dir }, join(dir, 'out'))).rejects.toThrow(/tokenizer\.json is no JSON/)
    rmSync(join(dir, 'tokenizer.json'))
    await expect(writeModel({ id: 'x', dir }, join(dir, 'out'))).rejects.toThrow(/tokenizer\.json is missing/)
    expect(existsSync(join(dir, 'out', 'card.json'))).toBe(false)
  })

  it('comes from `npm run build:model` with MODEL and --out', () => {
    const out = join(dir, 'cli')
    const env = { ...process.env, MODEL: dir }
    execFileSync('node', ['gpu-backend/model-card.ts', '--out', out], { env, stdio: 'pipe' })
    expect(JSON.parse(readFileSync(join(out, 'card.json'), 'utf8'))).toMatchObject({
      id: dir.split('/').at(-1),
    })
    const failed = spawnSync('node', ['gpu-backend/model-card.ts'], { env: { ...env, MODEL: root } })
    expect(failed.status).toBe(1)
    expect(failed.stderr.toString()).toBe(`${root} is no checkpoint folder: it has no config.json\n`)
  })
})

describe('MODEL', () => {
  it.each([
    ['tiny', 'tiny'],
    ['Qwen/Qwen2-0.5B-Instruct', 'Qwen/Qwen2-0.5B-Instruct'],
    ['Qwen/Qwen2-0.5B-Instruct@refs/pr/1', 'Qwen/Qwen2-0.5B-Instruct'],
    [root, root.split('/').at(-1)],
    [`${root}/`, root.split('/').at(-1)],
  ])('%s is served as %s', (model, id) => {
    expect(modelId(model)).toBe(id)
  })

  it.each(['', 'nonsense', './nowhere', '/nowhere/at', 'a/b/c', '../x', 'a/..', 'a/b@../../c'])(
    '%j is refused',
    async (model) => {
      await expect(resolveModel(model)).rejects.toThrow('is no folder here')
    },
  )
})
