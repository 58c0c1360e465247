/**
 * Rewrites a random bf16 checkpoint as GGUF v3, bf16 or Q8_0, so that llama.cpp computes with the same weights.
 * Its vocabulary is made up (llama.cpp wants one): ids go in and come out. Source: ggml-org/ggml, docs/gguf.md; Q8_0 is 32 weights to a
 * block, an fp16 scale (largest / 127) and 32 bytes.
 */
import { closeSync, existsSync, openSync, readFileSync, readSync, renameSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { readHeader } from '../../gpu-backend/safetensors.ts'

export type GgufFormat = 'bf16' | 'q8_0'

const types = { f32: 0, q8_0: 8, bf16: 30 } as const
const block_bytes = 34
const alignment = 32

/** @returns the file, written once beside the checkpoint. */
export async function toGguf(dir: string, format: GgufFormat): Promise<string> {
  const path = join(dir, `${format}.gguf`)
  if (existsSync(path)) return path
  const source = openSync(join(dir, 'model.safetensors'), 'r')
  const target = openSync(`${path}.partial`, 'w')
  const tensors = (await readHeader(join(dir, 'model.safetensors'), 0)).map((tensor) => {
    const type: keyof typeof types = tensor.shape.length === 1 ? 'f32' : format
    const count = tensor.shape.reduce((a, b) => a * b)
    const bytes = type === 'f32' ? count * 4 : type === 'bf16' ? count * 2 : (count / 32) * block_bytes
    return { ...tensor, name: renamed(tensor.name), type, bytes }
  })
  const head = new Writer()
  const metadata = metadataOf(JSON.parse(readFileSync(join(dir, 'config.json'), 'utf8')) as Config)
  head.bytes(Buffer.from('GGUF')).u32(3).u64(tensors.length).u64(metadata.length)
  for (const [key, value] of metadata) head.pair(key, value)
  let offset = 0
  for (const { name, shape, type, bytes } of tensors) {
    head.text(name).u32(shape.length)
    for (const dim of shape.toReversed()) head.u64(dim)
    head.u32(types[type]).u64(offset)
    offset += Math.ceil(bytes / alignment) * alignment
  }
  writeSync(target, padded(head.content()))
  for (const { begin, end, type } of tensors) {
    const stored = Buffer.alloc(end - begin)
    readSync(source, stored, 0, stored.length, begin)
    writeSync(target, padded(type === 'bf16' ? stored : type === 'f32' ? widened(stored) : eightBits(stored)))
  }
  closeSync(source)
  closeSync(target)
  renameSync(`${path}.partial`, path)
  return path
}

interface Config {
  hidden_size: number
  num_hidden_layers: number
  num_attention_heads: number
  num_key_value_heads: number
  intermediate_size: number
  vocab_size: number
  max_position_embeddings: number
  rope_theta: number
  rms_norm_eps: number
}

type Value = string | number | { f32: number } | string[]

/** A name for every id: the 256 characters that stand for bytes, then numbers. */
function vocabulary(size: number): string[] {
  return Array.from({ length: size }, (_, id) => (id < 256 ? String.fromCodePoint(256 + id) : `<${id}>`))
}

/** Whole numbers are written as u32, `{ f32 }` as floats. */
function metadataOf(config: Config): [key: string, value: Value][] {
  return [
    ['general.architecture', 'qwen2'],
    ['qwen2.block_count', config.num_hidden_layers],
    ['qwen2.context_length', config.max_position_embeddings],
    ['qwen2.embedding_length', config.hidden_size],
    ['qwen2.feed_forward_length', config.intermediate_size],
    ['qwen2.attention.head_count', config.num_attention_heads],
    ['qwen2.attention.head_count_kv', config.num_key_value_heads],
    ['qwen2.attention.layer_norm_rms_epsilon', { f32: config.rms_norm_eps }],
    ['qwen2.rope.freq_base', { f32: config.rope_theta }],
    ['qwen2.vocab_size', config.vocab_size],
    ['tokenizer.ggml.model', 'gpt2'],
    ['tokenizer.ggml.pre', 'qwen2'],
    ['tokenizer.ggml.tokens', vocabulary(config.vocab_size)],
    ['tokenizer.ggml.merges', ['< 1']],
    ['tokenizer.ggml.eos_token_id', 0],
  ]
}

const parts: Record<string, string> = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  lm_head: 'output',
  input_layernorm: 'attn_norm',
  post_attention_layernorm: 'ffn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}

function renamed(name: string): string {
  const [, layer, part = '', kind = ''] = /^(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)$/.exec(name) ?? []
  const known = parts[part]
  if (known === undefined) throw new Error(`no GGUF name for tensor ${name}`)
  return layer === undefined ? `${known}.${kind}` : `blk.${layer}.${known}.${kind}`
}

function padded(bytes: Buffer): Buffer {
  const rest = bytes.length % alignment
  return rest === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(alignment - rest)])
}

/** bf16 -> f32 */
function widened(stored: Buffer): Buffer {
  const words = new Uint32Array(stored.length / 2)
  for (let i = 0; i < words.length; i++) words[i] = stored.readUInt16LE(2 * i) << 16
  return Buffer.from(words.buffer)
}

function eightBits(stored: Buffer): Buffer {
  const values = new Float32Array(widened(stored).buffer)
  const blocks = Buffer.alloc((values.length / 32) * block_bytes)
  const scale = new DataView(new ArrayBuffer(4))
  for (let block = 0; block < values.length / 32; block++) {
    let top = 0
    for (let i = 0; i < 32; i++) top = Math.max(top, Math.abs(values[block * 32 + i] ?? 0))
    scale.setFloat32(0, top / 127)
    blocks.writeUInt16LE(half(scale.getUint32(0)), block * block_bytes)
    const inverse = top === 0 ? 0 : 127 / top
    for (let i = 0; i < 32; i++)
      blocks.writeInt8(Math.round((values[block * 32 + i] ?? 0) * inverse), block * block_bytes + 2 + i)
  }
  return blocks
}

/** A positive normal float's bits as fp16's, cut; scales of random weights lie well inside its range. */
const half = (bits: number): number => {
  const exponent = ((bits >>> 23) & 255) - 112
  return exponent <= 0 ? 0 : (exponent << 10) | ((bits >>> 13) & 1023)
}

class Writer {
  #parts: Buffer[] = []

  bytes(part: Buffer): this {
    this.#parts.push(part)
    return this
  }
  u32(value: number): this {
    const part = Buffer.alloc(4)
    part.writeUInt32LE(value)
    return this.bytes(part)
  }
  u64(value: number): this {
    const part = Buffer.alloc(8)
    part.writeBigUInt64LE(BigInt(value))
    return this.bytes(part)
  }
  text(value: string): this {
    return this.u64(Buffer.byteLength(value)).bytes(Buffer.from(value))
  }
  pair(key: string, value: Value): void {
    this.text(key)
    if (typeof value === 'string') this.u32(8).text(value)
    else if (typeof value === 'number') this.u32(4).u32(value)
    else if (Array.isArray(value)) {
      this.u32(9).u32(8).u64(value.length)
      for (const each of value) this.text(each)
    } else {
      const part = Buffer.alloc(4)
      part.writeFloatLE(value.f32)
      this.u32(6).bytes(part)
    }
  }
  content(): Buffer {
    return Buffer.concat(this.#parts)
  }
}
