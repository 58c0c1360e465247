/**
 * Reads a Hugging Face checkpoint folder: config.json, generation_config.json, the size of tokenizer.json's vocabulary
 * and the tensor table of model.safetensors or of the shards that model.safetensors.index.json names.
 * Whatever is wrong is one CheckpointError, one line.
 */
import { createHash } from 'node:crypto'
import { open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import * as z from 'zod/mini'
import type { GenerationDefaults } from '../src/sampling.ts'
import { eosTokenIds, GenerationConfig, generationDefaults } from './generation-config.ts'
import { Config, modelConfig } from './model-config.ts'
import type { NativeModelConfig, TensorEntry } from './native-addon.ts'
import { CheckpointError, readHeader } from './safetensors.ts'

export { CheckpointError }

export interface Checkpoint {
  config: NativeModelConfig
  eosTokenIds: number[]
  generationDefaults: GenerationDefaults
  files: string[]
  tensors: TensorEntry[]
  weightBytes: number
  parameters: number
  /** The dtype most weights are stored in: BF16, F16, F32, or I32 where they are four-bit. */
  dtype: string
  /** SHA-256 (hex) over configuration, tensor table, file sizes and a sample of the content. */
  revision: string
}

const Index = z.object({ weight_map: z.record(z.string(), z.string()) })

const Tokenizer = z.object({
  model: z.object({ vocab: z.record(z.string(), z.int()) }),
  added_tokens: z.optional(z.array(z.object({ id: z.int() }))),
})

export async function readCheckpoint(dir: string): Promise<Checkpoint> {
  const config = await readJson(dir, 'config.json', Config)
  if (config === undefined) throw new CheckpointError(`${join(dir, 'config.json')}: cannot open`)
  const generation = (await readJson(dir, 'generation_config.json', GenerationConfig)) ?? {}
  const { files, tensors } = await readTable(dir)
  const ends = eosTokenIds(generation, config)
  const foreign = ends.find((id) => id >= config.vocab_size)
  if (foreign !== undefined)
    throw new CheckpointError(
      `${dir}: eos_token_id ${foreign} is outside the vocabulary of ${config.vocab_size}`,
    )
  return {
    config: modelConfig(join(dir, 'config.json'), config, await tokenizerVocabulary(dir)),
    eosTokenIds: ends,
    generationDefaults: generationDefaults(generation),
    files,
    tensors,
    weightBytes: tensors.reduce((sum, { begin, end }) => sum + end - begin, 0),
    parameters: tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0),
    dtype: mostCommonDtype(tensors),
    revision: await revisionOf(config, files, tensors),
  }
}

/** The parsed file, or undefined where there is none. */
async function readJson<T>(dir: string, name: string, schema: z.ZodMiniType<T>): Promise<T | undefined> {
  const path = join(dir, name)
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new CheckpointError(`${path}: cannot read: ${(error as NodeJS.ErrnoException).code}`)
  }
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    throw new CheckpointError(`${path}: not valid JSON`)
  }
  const result = schema.safeParse(json)
  if (result.success) return result.data
  const [issue] = result.error.issues
  throw new CheckpointError(
    `${path}: ${issue?.path.join('.') || 'the file'}: ${issue?.message ?? 'is invalid'}`,
  )
}

/** One past the highest token id, or undefined without a tokenizer.json. */
async function tokenizerVocabulary(dir: string): Promise<number | undefined> {
  const tokenizer = await readJson(dir, 'tokenizer.json', Tokenizer)
  if (tokenizer === undefined) return undefined
  let highest = -1
  for (const id of Object.values(tokenizer.model.vocab)) highest = Math.max(highest, id)
  for (const { id } of tokenizer.added_tokens ?? []) highest = Math.max(highest, id)
  return highest + 1
}

async function readTable(dir: string): Promise<{ files: string[]; tensors: TensorEntry[] }> {
  const index = await readJson(dir, 'model.safetensors.index.json', Index)
  if (index === undefined) {
    const file = join(dir, 'model.safetensors')
    return { files: [file], tensors: await readHeader(file, 0) }
  }
  const names = [...new Set(Object.values(index.weight_map))].toSorted()
  for (const name of names)
    if (!/^[\w.-]+\.safetensors$/.test(name))
      throw new CheckpointError(`${dir}: the index names a shard ${JSON.stringify(name.slice(0, 200))}`)
  const files = names.map((name) => join(dir, name))
  const tensors = (await Promise.all(files.map((path, i) => readHeader(path, i)))).flat()
  const where = new Map(tensors.map((tensor) => [tensor.name, names[tensor.file]]))
  for (const [tensor, shard] of Object.entries(index.weight_map))
    if (where.get(tensor) !== shard)
      throw new CheckpointError(
        `${join(dir, shard)}: tensor ${tensor}: the index says it is here, the shard does not`,
      )
  return { files, tensors }
}

function mostCommonDtype(tensors: TensorEntry[]): string {
  const bytes = new Map<string, number>()
  for (const { dtype, begin, end } of tensors) bytes.set(dtype, (bytes.get(dtype) ?? 0) + end - begin)
  return [...bytes].toSorted((a, b) => b[1] - a[1])[0]?.[0] ?? 'BF16'
}

const samples_per_file = 64
const sample_bytes = 4096

async function revisionOf(config: unknown, files: string[], tensors: TensorEntry[]): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify([config, tensors]))
  for (const path of files) {
    const handle = await open(path)
    try {
      const { size } = await handle.stat()
      hash.update(`\0${size}\0`)
      const sample = Buffer.alloc(sample_bytes)
      for (let i = 0; i < samples_per_file; i++) {
        const at = Math.floor((Math.max(size - sample_bytes, 0) * i) / (samples_per_file - 1))
        const { bytesRead } = await handle.read(sample, 0, sample_bytes, at)
        hash.update(sample.subarray(0, bytesRead))
      }
    } finally {
      await handle.close()
    }
  }
  return hash.digest('hex')
}
