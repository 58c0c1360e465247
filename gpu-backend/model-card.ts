/**
 * What the gateway has to know of a checkpoint: the card (id, content hash, context, defaults) and the tokenizer in the
 * form it loads. `npm run build:model` writes both to gateway/model for bundling; the backend serves the same card at
 * GET /v1/model, so the two can compare revisions.
 */
import { createHash, type Hash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { open, readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import * as z from 'zod/mini'
import type { ModelCard } from '../src/protocol.ts'
import { packTokenizer } from '../src/tokenizer/compact.ts'
import { eosTokenIds, GenerationConfig, generationDefaults, ids } from './generation-config.ts'
import { ModelError } from './model-error.ts'
import { resolveModel, type ModelSource } from './model-source.ts'
import { endWithParent } from './parent.ts'

const revision_chars = 32
/** Larger weights are known by their header, size and samples: hashing 15 GB takes half a minute at each start. */
const whole_hash_bytes_max = 64 * 1024 ** 2
const samples = 64
const sample_bytes = 64 * 1024
const default_system = 'You are a helpful assistant.'

const Config = z.object({
  max_position_embeddings: z.int().check(z.gte(1)),
  eos_token_id: z.nullish(ids),
})
const TokenizerConfig = z.object({
  chat_template: z.nullish(
    z.union([z.string(), z.array(z.object({ name: z.string(), template: z.string() }))]),
  ),
})

export async function modelCard({ id, dir }: ModelSource): Promise<ModelCard> {
  const config = readJson(dir, 'config.json', Config)
  const generation = readJson(dir, 'generation_config.json', GenerationConfig, {})
  return {
    id,
    revision: await revisionOf(dir),
    created: Math.floor((await stat(join(dir, 'config.json'))).mtimeMs / 1000),
    context_length: config.max_position_embeddings,
    tokenizer: digest(createHash('sha256').update(tokenizerJson(dir))),
    default_system: defaultSystem(dir),
    generation: generationDefaults(generation),
    eos_token_ids: eosTokenIds(generation, config),
  }
}

/** The compact form where the vocabulary allows it; else tokenizer.json itself, told apart by its first byte, `{`. */
export function tokenizerFor(dir: string): Uint8Array {
  const bytes = tokenizerJson(dir)
  try {
    return packTokenizer(JSON.parse(bytes.toString()))
  } catch (error) {
    if (error instanceof SyntaxError)
      throw new ModelError(`${dir}/tokenizer.json is no JSON`, { cause: error })
    return bytes
  }
}

function tokenizerJson(dir: string): Buffer {
  const path = join(dir, 'tokenizer.json')
  if (!existsSync(path)) throw new ModelError(`${path} is missing`)
  return readFileSync(path)
}

async function revisionOf(dir: string): Promise<string> {
  const hash = createHash('sha256')
  const weights = (await readdir(dir)).filter((name) => name.endsWith('.safetensors')).toSorted()
  for (const name of ['config.json', 'generation_config.json', 'tokenizer.json', ...weights]) {
    const path = join(dir, name)
    if (!existsSync(path)) continue
    const { size } = await stat(path)
    hash.update(`${name}\0${size}\0`)
    if (size <= whole_hash_bytes_max) hash.update(await readFile(path))
    else await hashSamples(hash, path, size)
  }
  return digest(hash)
}

/** The first sample holds the safetensors header, or its beginning; the others lie evenly over the file. */
async function hashSamples(hash: Hash, path: string, size: number): Promise<void> {
  const file = await open(path)
  try {
    const block = Buffer.alloc(sample_bytes)
    for (let i = 0; i < samples; i++) {
      const at = Math.floor(((size - sample_bytes) / (samples - 1)) * i)
      const { bytesRead } = await file.read(block, 0, sample_bytes, at)
      hash.update(block.subarray(0, bytesRead))
    }
  } finally {
    await file.close()
  }
}

const digest = (hash: Hash): string => hash.digest('hex').slice(0, revision_chars)

/** What the chat template says for a conversation without a system message; '' where it says nothing. */
function defaultSystem(dir: string): string {
  const file = join(dir, 'chat_template.jinja')
  const { chat_template } = readJson(dir, 'tokenizer_config.json', TokenizerConfig, {})
  const template = existsSync(file)
    ? readFileSync(file, 'utf8')
    : Array.isArray(chat_template)
      ? chat_template.find(({ name }) => name === 'default')?.template
      : chat_template
  if (template === undefined || template === null) return default_system
  return /<\|im_start\|>system(?:\n|\\n)([^'"{}]*?)<\|im_end\|>/.exec(template)?.[1] ?? ''
}

function readJson<T>(dir: string, name: string, schema: z.ZodMiniType<T>, absent?: T): T {
  const path = join(dir, name)
  if (!existsSync(path)) {
    if (absent !== undefined) return absent
    throw new ModelError(`${path} is missing`)
  }
  try {
    return schema.parse(JSON.parse(readFileSync(path, 'utf8')))
  } catch (error) {
    const why =
      error instanceof z.core.$ZodError
        ? error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`).join('; ')
        : String(error)
    throw new ModelError(`${path}: ${why}`, { cause: error })
  }
}

/** Writes only what differs, each file whole or not at all. Whether anything changed. */
export async function writeModel(source: ModelSource, out: string): Promise<boolean> {
  mkdirSync(out, { recursive: true })
  const card = Buffer.from(`${JSON.stringify(await modelCard(source), null, 2)}\n`)
  const tokenizerChanged = writeIfChanged(join(out, 'tokenizer.bin'), tokenizerFor(source.dir))
  return writeIfChanged(join(out, 'card.json'), card) || tokenizerChanged
}

function writeIfChanged(path: string, content: Uint8Array): boolean {
  if (existsSync(path) && statSync(path).size === content.length && readFileSync(path).equals(content))
    return false
  const temporary = `${path}.${process.pid}`
  writeFileSync(temporary, content)
  renameSync(temporary, path)
  return true
}

if (import.meta.main) {
  endWithParent()
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { out: { type: 'string', default: join(import.meta.dirname, '../gateway/model') } },
    })
    const source = await resolveModel(positionals[0] ?? process.env['MODEL'] ?? 'tiny')
    if (await writeModel(source, values.out)) process.stderr.write(`model: ${source.id} -> ${values.out}\n`)
  } catch (error) {
    process.stderr.write(`${error instanceof ModelError ? error.message : String(error)}\n`)
    process.exitCode = 1
  }
}
