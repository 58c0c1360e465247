import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { readCheckpoint } from '../../gpu-backend/checkpoint.ts'
import { CheckpointError, openEngine } from '../../gpu-backend/engine.ts'
import { generate, loadFixture } from './engine-fixtures.ts'

const fixture = loadFixture('dense-gqa-untied')
const original = readFileSync(join(fixture.modelDir, 'model.safetensors'))
const headerLength = Number(original.readBigUInt64LE())
type Header = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>
const header = (): Header => {
  const { __metadata__, ...tensors } = JSON.parse(original.toString('utf8', 8, 8 + headerLength)) as Header
  return tensors
}
const data = original.subarray(8 + headerLength)

let dir: string
let file: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'checkpoint-'))
  file = join(dir, 'model.safetensors')
  for (const name of ['config.json', 'generation_config.json'])
    copyFileSync(join(fixture.modelDir, name), join(dir, name))
  copyFileSync(join(fixture.modelDir, 'model.safetensors'), file)
})
afterEach(() => rmSync(dir, { recursive: true }))

function encode(text: string, content: Uint8Array): Buffer {
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(text)))
  return Buffer.concat([length, Buffer.from(text), content])
}
const write = (tensors: unknown, content: Uint8Array = data): void =>
  writeFileSync(file, encode(JSON.stringify(tensors), content))

async function refusal(): Promise<string> {
  const opened = openEngine({ modelDir: dir, device: 'cpu', kvMemoryMb: 8 })
  const error = await opened.then(
    (engine) => engine.close().then(() => new Error('it was accepted')),
    (error: Error) => error,
  )
  expect(error.message).not.toBe('it was accepted')
  expect(error).toBeInstanceOf(CheckpointError)
  expect(error.message).not.toContain('\n')
  return error.message
}

const norm = 'model.layers.1.input_layernorm.weight'
const embedding = 'model.embed_tokens.weight'

describe('a lying safetensors file is refused in one line that names file, tensor and lie', () => {
  const edits: [what: string, edit: (h: Header) => void, message: string][] = [
    ['a tensor is missing', (h) => delete h[norm], `tensor ${norm}: is missing`],
    ['an end beyond the file', (h) => (h[norm]!.data_offsets[1] += 1e9), 'of a file of'],
    ['a begin after the end', (h) => (h[norm]!.data_offsets = [768, 0]), 'after its end'],
    ['a range larger than the shape', (h) => (h[norm]!.data_offsets[1] += 2), 'needs 768'],
    ['a shape larger than the range', (h) => (h[norm]!.shape = [385]), 'needs 770'],
    [
      'a shape the config does not imply',
      (h) => (h[embedding]!.shape = [384, 192]),
      'config.json implies [192, 384]',
    ],
    ['a shape that overflows', (h) => (h[norm]!.shape = [2 ** 52, 2 ** 52, 2 ** 52]), 'overflows'],
    ['a dtype of another size', (h) => (h[norm]!.dtype = 'F32'), 'needs 1536'],
    ['a dtype that is no float', (h) => (h[norm]!.dtype = 'I16'), 'has dtype I16'],
    ['a dtype nobody knows', (h) => (h[norm]!.dtype = 'Q17'), 'unknown dtype Q17'],
    ['overlapping tensors', (h) => (h[norm]!.data_offsets = [0, 768]), 'overlaps tensor'],
    [
      'offsets that only fit beside the header',
      (h) => (h[norm]!.data_offsets = [2 ** 53 - 769, 2 ** 53 - 1]),
      'beyond any file',
    ],
    ['a name of several lines', (h) => (h['a\nb\u001b[2J'] = h[norm]!), 'a\\nb\\u001b[2J: has a name'],
    ['a negative offset', (h) => (h[norm]!.data_offsets = [-768, 0]), 'not two whole numbers'],
    ['a fractional offset', (h) => (h[norm]!.data_offsets = [0.5, 768.5]), 'not two whole numbers'],
    ['a shape of strings', (h) => (h[norm]!.shape = ['384'] as unknown as number[]), 'whole numbers'],
    ['no offsets', (h) => delete (h[norm] as Partial<Header[string]>).data_offsets, 'not two whole numbers'],
  ]
  it.each(edits)('%s', async (_, edit, message) => {
    const tensors = header()
    edit(tensors)
    write(tensors)
    const line = await refusal()
    expect(line).toContain(message)
    expect(line).toContain('model.safetensors')
  })

  it.each([
    ['NaN', 0x7fc0],
    ['infinity', 0x7f80],
  ])('%s among the weights', async (_, bits) => {
    const content = Buffer.from(data)
    content.writeUInt16LE(bits, header()[norm]!.data_offsets[0] + 100)
    write(header(), content)
    expect(await refusal()).toContain(`tensor ${norm}: contains NaN or infinity`)
  })

  it.each([0, 7, 8, 100, headerLength, headerLength + 9, original.length - 1])(
    'cut to %i bytes',
    async (length) => {
      truncateSync(file, length)
      expect(await refusal()).toContain(file)
    },
  )

  it('a header that claims 100 MB, or more than there is', async () => {
    for (const claim of [100_000_000n, BigInt(original.length), 2n ** 64n - 1n]) {
      const lie = Buffer.from(original)
      lie.writeBigUInt64LE(claim)
      writeFileSync(file, lie)
      expect(await refusal()).toContain('claims a header of')
    }
  })

  it.each(['', '[]', 'null', '7', '{', '{"a":1}', '{"a":null}', '\xff\xff'])(
    'a header that is %j',
    async (text) => {
      writeFileSync(file, encode(text, data))
      expect(await refusal()).toContain('model.safetensors')
    },
  )

  it('any bytes at all', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(headerLength + 8), fc.nat(255)), { minLength: 1, maxLength: 8 }),
        async (changes) => {
          const lie = Buffer.from(original)
          for (const [at, byte] of changes) lie[at] = byte
          writeFileSync(file, lie)
          // Either it still is a checkpoint, or it is refused as one; nothing else happens.
          await openEngine({ modelDir: dir, device: 'cpu', kvMemoryMb: 8 }).then(
            (engine) => engine.close(),
            (error: Error) => expect(error).toBeInstanceOf(CheckpointError),
          )
        },
      ),
      { numRuns: 150, seed: 1 },
    )
  })
})

describe('a checkpoint may lie in', () => {
  it('a file whose tensors are not aligned', async () => {
    writeFileSync(file, encode(`${JSON.stringify(header())} `.padEnd(headerLength + 1), data))
    const engine = await openEngine({ modelDir: dir, device: 'cpu', kvMemoryMb: 8 })
    const { token_ids, greedy } = fixture.prompts[4]!
    expect((await generate(engine, token_ids)).tokens).toEqual(greedy)
    await engine.close()
  })

  const shard = (): Record<string, string> => {
    const names = Object.keys(header())
    const weight_map: Record<string, string> = {}
    for (const [i, part] of ['model-1-of-2.safetensors', 'model-2-of-2.safetensors'].entries()) {
      const tensors: Header = {}
      const content: Buffer[] = []
      let at = 0
      for (const name of names.filter((_, n) => n % 2 === i)) {
        const { data_offsets, ...tensor } = header()[name]!
        const bytes = data.subarray(...data_offsets)
        tensors[name] = { ...tensor, data_offsets: [at, (at += bytes.length)] }
        content.push(bytes)
        weight_map[name] = part
      }
      writeFileSync(join(dir, part), encode(JSON.stringify(tensors), Buffer.concat(content)))
    }
    rmSync(file)
    return weight_map
  }
  const index = (weight_map: Record<string, string>): void =>
    writeFileSync(join(dir, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map }))

  it('shards', async () => {
    index(shard())
    const engine = await openEngine({ modelDir: dir, device: 'cpu', kvMemoryMb: 8 })
    const { token_ids, greedy } = fixture.prompts[4]!
    expect((await generate(engine, token_ids)).tokens).toEqual(greedy)
    await engine.close()
  })

  it('but not in a missing, a misnamed or a foreign shard', async () => {
    const map = shard()
    index({ ...map, [norm]: 'model-3-of-3.safetensors' })
    expect(await refusal()).toContain('model-3-of-3.safetensors: cannot open')
    index({ ...map, [norm]: '../../etc/passwd.safetensors' })
    expect(await refusal()).toContain('the index names a shard')
    index({ ...map, 'no.such.tensor': map[norm]! })
    expect(await refusal()).toContain('the shard does not')
  })

  it.each([
    ['F32', (bf16: number) => bf16 * 65536],
    ['F16', undefined],
  ])('%s instead of BF16', async (dtype, widen) => {
    const tensors = header()
    const words = new Uint16Array(Uint8Array.from(data).buffer)
    const content = widen
      ? new Uint32Array(words.map((w) => w)).map(widen)
      : new Uint16Array(words.length).map((_, i) => toF16(words[i]!))
    const scale = widen ? 2 : 1
    for (const tensor of Object.values(tensors)) {
      tensor.dtype = dtype
      tensor.data_offsets = [tensor.data_offsets[0] * scale, tensor.data_offsets[1] * scale]
    }
    write(tensors, new Uint8Array(content.buffer))
    const engine = await openEngine({ modelDir: dir, device: 'cpu', kvMemoryMb: 8 })
    expect(engine.model.dtype).toBe(dtype)
    // bf16 widens to fp32 without loss, and to fp16 but for a few tiny values: the first tokens must agree.
    const { token_ids, greedy } = fixture.prompts[4]!
    const { tokens } = await generate(engine, token_ids, { sampling: { max_tokens: 8 } })
    expect(tokens).toEqual(greedy.slice(0, 8))
    await engine.close()
  })
})

/** bf16 bits to the nearest-toward-zero fp16 bits; exact for normal fp16 values. */
function toF16(bf16: number): number {
  const sign = bf16 & 0x8000
  const exponent = ((bf16 >> 7) & 0xff) - 127
  const mantissa = 0x80 | (bf16 & 0x7f)
  if (exponent < -14) return sign | ((mantissa << 3) >> Math.min(-14 - exponent, 31))
  return sign | ((exponent + 15) << 10) | ((mantissa & 0x7f) << 3)
}

const gptq = { quant_method: 'gptq', bits: 4, group_size: 128 }
const moe = {
  model_type: 'qwen2_moe',
  num_experts: 8,
  num_experts_per_tok: 2,
  moe_intermediate_size: 16,
  shared_expert_intermediate_size: 16,
}

describe('config.json', () => {
  const change = (changes: object): void => {
    const path = join(dir, 'config.json')
    const config = JSON.parse(readFileSync(path, 'utf8')) as object
    writeFileSync(path, JSON.stringify({ ...config, ...changes }))
  }
  it.each([
    [{ model_type: 'llama' }, 'model_type'],
    [{ hidden_size: 0 }, 'hidden_size'],
    [{ hidden_size: 383 }, 'not a multiple'],
    [{ num_hidden_layers: 1e9 }, 'num_hidden_layers'],
    [{ num_key_value_heads: 2 }, 'multiple of num_key_value_heads'],
    [{ head_dim: 63 }, 'head_dim'],
    [{ vocab_size: 191 }, 'config.json implies [191, 384]'],
    [{ use_sliding_window: true }, 'use_sliding_window'],
    [{ rope_scaling: { type: 'dynamic', factor: 2 } }, 'dynamic'],
    [{ rope_theta: -1 }, 'rope_theta'],
    [{ eos_token_id: -5 }, 'eos_token_id'],
    [{ hidden_act: 'gelu' }, 'hidden_act'],
    [{ rope_scaling: { type: 'yarn' } }, 'wants a factor'],
    [{ rope_scaling: { type: 'yarn', factor: 0.5 } }, 'factor must lie in'],
    [{ rope_scaling: { type: 'yarn', factor: 4, beta_fast: 1, beta_slow: 2 } }, 'beta_fast >= beta_slow'],
    [{ model_type: 'qwen2_moe' }, 'num_experts'],
    [{ ...moe, num_experts_per_tok: 9 }, 'num_experts_per_tok must lie in [1, num_experts]'],
    [{ ...moe, mlp_only_layers: [0] }, 'dense layers between'],
    [moe, 'model.layers.0.mlp.gate.weight: is missing'],
    [{ quantization_config: { quant_method: 'bitsandbytes' } }, 'quantised by "bitsandbytes"'],
    [{ quantization_config: { ...gptq, bits: 8 } }, 'gptq of 8 bits'],
    [{ quantization_config: { ...gptq, desc_act: true } }, 'desc_act'],
    [{ quantization_config: { ...gptq, group_size: 100 } }, 'group_size of 100'],
    [{ quantization_config: { ...gptq, quant_method: 'awq', version: 'gemv' } }, 'awq of version "gemv"'],
    [{ quantization_config: gptq }, 'q_proj.qweight: is missing'],
  ])('that says %j is refused', async (changes, message) => {
    change(changes)
    expect(await refusal()).toContain(message)
  })

  it.each([
    [{ eos_token_id: [3, 192] }, 'eos_token_id 192 is outside the vocabulary of 192'],
    [{ temperature: -3 }, 'temperature'],
    [{ top_p: 7 }, 'top_p'],
    [{ top_k: -9 }, 'top_k'],
    [{ repetition_penalty: 0 }, 'repetition_penalty'],
  ])('with a generation_config.json of %j is refused', async (generation, message) => {
    writeFileSync(join(dir, 'generation_config.json'), JSON.stringify(generation))
    expect(await refusal()).toContain(message)
  })

  it('missing, or not JSON, is refused', async () => {
    writeFileSync(join(dir, 'config.json'), '{')
    expect(await refusal()).toContain('config.json: not valid JSON')
    rmSync(join(dir, 'config.json'))
    expect(await refusal()).toContain('config.json: cannot open')
    mkdirSync(join(dir, 'config.json'))
    expect(await refusal()).toContain('config.json: cannot read')
  })

  it('may name RoPE in the way of newer transformers', async () => {
    change({ rope_theta: undefined, rope_parameters: { rope_theta: 1e6, rope_type: 'default' } })
    expect((await readCheckpoint(dir)).config.ropeTheta).toBe(1e6)
  })
})

describe('the revision', () => {
  it('changes with weights and configuration, and not with time', async () => {
    const before = (await readCheckpoint(dir)).revision
    writeFileSync(file, original)
    expect((await readCheckpoint(dir)).revision).toBe(before)
    const other = Buffer.from(original)
    other[other.length - 1]! ^= 1
    writeFileSync(file, other)
    expect((await readCheckpoint(dir)).revision).not.toBe(before)
  })
})
