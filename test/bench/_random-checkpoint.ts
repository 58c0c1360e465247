/**
 * Writes a checkpoint of a Qwen2 shape with random bf16 weights (never zero: zeros would flatter caches and powers)
 * into a git-ignored folder, once; later runs find it there.
 */
import { createWriteStream, existsSync, mkdirSync, renameSync, statfsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'

export interface Shape {
  hidden: number
  layers: number
  heads: number
  kvHeads: number
  headDim: number
  intermediate: number
  vocab: number
  tied: boolean
}

export const shapes = {
  '0.5b': {
    hidden: 896,
    layers: 24,
    heads: 14,
    kvHeads: 2,
    headDim: 64,
    intermediate: 4864,
    vocab: 151936,
    tied: true,
  },
  '1.5b': {
    hidden: 1536,
    layers: 28,
    heads: 12,
    kvHeads: 2,
    headDim: 128,
    intermediate: 8960,
    vocab: 151936,
    tied: true,
  },
} as const satisfies Record<string, Shape>

const folder = join(import.meta.dirname, '../../.qwen-edge/bench')
/** Left on the disk after the checkpoint is written. */
const spare_bytes = 2e9

export async function randomCheckpoint(name: keyof typeof shapes): Promise<string> {
  const dir = join(folder, `qwen2-${name}`)
  const file = join(dir, 'model.safetensors')
  if (existsSync(file)) return dir
  mkdirSync(dir, { recursive: true })
  const shape = shapes[name]
  const tensors = tensorsOf(shape)
  const bytes = tensors.reduce((sum, [, dims]) => sum + dims.reduce((a, b) => a * b) * 2, 0)
  const { bavail, bsize } = statfsSync(dir)
  if (bavail * bsize < bytes + spare_bytes)
    throw new Error(`${dir}: ${(bytes / 1e9).toFixed(1)} GB of random weights do not fit on this disk`)
  writeFileSync(join(dir, 'config.json'), JSON.stringify(configOf(shape), null, 2))
  await pipeline(contentOf(tensors, bytes), createWriteStream(`${file}.partial`))
  renameSync(`${file}.partial`, file)
  return dir
}

function configOf(shape: Shape): object {
  return {
    model_type: 'qwen2',
    hidden_size: shape.hidden,
    num_hidden_layers: shape.layers,
    num_attention_heads: shape.heads,
    num_key_value_heads: shape.kvHeads,
    head_dim: shape.headDim,
    intermediate_size: shape.intermediate,
    vocab_size: shape.vocab,
    max_position_embeddings: 32768,
    rope_theta: 1e6,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: shape.tied,
    eos_token_id: 151645,
  }
}

function tensorsOf(shape: Shape): [name: string, dims: number[]][] {
  const { hidden, heads, kvHeads, headDim, intermediate, vocab } = shape
  const tensors: [string, number[]][] = [['model.embed_tokens.weight', [vocab, hidden]]]
  for (let i = 0; i < shape.layers; i++) {
    const add = (part: string, ...dims: number[]): unknown =>
      tensors.push([`model.layers.${i}.${part}`, dims])
    add('input_layernorm.weight', hidden)
    for (const [part, count] of [
      ['q', heads],
      ['k', kvHeads],
      ['v', kvHeads],
    ] as const) {
      add(`self_attn.${part}_proj.weight`, count * headDim, hidden)
      add(`self_attn.${part}_proj.bias`, count * headDim)
    }
    add('self_attn.o_proj.weight', hidden, heads * headDim)
    add('post_attention_layernorm.weight', hidden)
    add('mlp.gate_proj.weight', intermediate, hidden)
    add('mlp.up_proj.weight', intermediate, hidden)
    add('mlp.down_proj.weight', hidden, intermediate)
  }
  tensors.push(['model.norm.weight', [hidden]])
  if (!shape.tied) tensors.push(['lm_head.weight', [vocab, hidden]])
  return tensors
}

function* contentOf(tensors: [string, number[]][], total: number): Generator<Buffer> {
  let at = 0
  const header: Record<string, object> = {}
  for (const [name, shape] of tensors) {
    const end = at + shape.reduce((a, b) => a * b) * 2
    header[name] = { dtype: 'BF16', shape, data_offsets: [at, end] }
    at = end
  }
  const text = Buffer.from(JSON.stringify(header))
  const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, ' ')])
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(padded.length))
  yield Buffer.concat([length, padded])

  const values = randomValues(1 << 22)
  let done = 0
  for (const [name, shape] of tensors) {
    let left = shape.reduce((a, b) => a * b) * 2
    let from = ((done * 37) % (values.length / 2)) & ~1 // tensors start at different places of the same noise
    const isNorm = name.endsWith('norm.weight')
    while (left > 0) {
      const size = Math.min(left, values.length - from)
      yield isNorm ? Buffer.alloc(size, Buffer.from([0x80, 0x3f])) : values.subarray(from, from + size) // 1.0
      left -= size
      done += size
      from = 0
      if (process.stderr.isTTY)
        process.stderr.write(`\rrandom weights: ${((100 * done) / total).toFixed(0)}%`)
    }
  }
  if (process.stderr.isTTY) process.stderr.write('\n')
}

/** Normal numbers of deviation 0.02 as bf16; a fixed seed, so that every run measures the same. */
function randomValues(count: number): Buffer {
  const words = new Uint16Array(count)
  const single = new Float32Array(1)
  const bits = new Uint32Array(single.buffer)
  let x = 0x2545f491
  const uniform = (): number => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return ((x >>> 0) + 1) / 4294967297
  }
  for (let i = 0; i < count; i++) {
    single[0] = 0.02 * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform())
    words[i] = (bits[0] ?? 0) >>> 16 || 0x3c00
  }
  return Buffer.from(words.buffer)
}
