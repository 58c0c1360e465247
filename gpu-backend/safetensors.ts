/**
 * Reads the header of a safetensors file: 8 bytes of length, that much JSON, then the tensors' bytes.
 * Trusts nothing: the length is capped, every number is checked for what it is; whether ranges fit the file, the dtype
 * and each other is the native side's to check, where the file is mapped. Source: huggingface/safetensors, "Format".
 */
import { open } from 'node:fs/promises'
import type { TensorEntry } from './native-addon.ts'

/** One clear line: which file, which tensor, what is wrong. */
export class CheckpointError extends Error {
  override name = 'CheckpointError'
}

/** The largest Qwen2 header (57B-A14B, 5,500 tensors) is below 1 MB. */
const header_bytes_max = 16 * 1024 * 1024

const isWhole = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0

/** @param file the index the entries carry */
export async function readHeader(path: string, file: number): Promise<TensorEntry[]> {
  const text = await readHeaderText(path)
  let header: unknown
  try {
    header = JSON.parse(text)
  } catch {
    throw new CheckpointError(`${path}: the header is not valid JSON`)
  }
  if (typeof header !== 'object' || header === null || Array.isArray(header))
    throw new CheckpointError(`${path}: the header is not an object`)
  const start = 8 + Buffer.byteLength(text)
  return Object.entries(header)
    .filter(([name]) => name !== '__metadata__')
    .map(([name, value]) => toEntry(path, file, start, name, value))
}

async function readHeaderText(path: string): Promise<string> {
  const handle = await open(path).catch((error: NodeJS.ErrnoException) => {
    throw new CheckpointError(`${path}: cannot open: ${error.code}`)
  })
  try {
    const { size } = await handle.stat()
    const prefix = Buffer.alloc(8)
    const { bytesRead } = await handle.read(prefix, 0, 8, 0).catch(() => ({ bytesRead: 0 }))
    if (bytesRead < 8) throw new CheckpointError(`${path}: too short for a safetensors file (${size} bytes)`)
    const length = prefix.readBigUInt64LE()
    if (length > header_bytes_max)
      throw new CheckpointError(
        `${path}: claims a header of ${length} bytes; ${header_bytes_max} is the limit`,
      )
    if (length > size - 8)
      throw new CheckpointError(
        `${path}: claims a header of ${length} bytes in a file of ${size} (truncated?)`,
      )
    const text = Buffer.alloc(Number(length))
    const read = await handle.read(text, 0, text.length, 8)
    if (read.bytesRead < text.length) throw new CheckpointError(`${path}: truncated inside its header`)
    const decoded = text.toString('utf8')
    if (Buffer.byteLength(decoded) !== text.length)
      throw new CheckpointError(`${path}: the header is not UTF-8`)
    return decoded
  } finally {
    await handle.close()
  }
}

function toEntry(path: string, file: number, start: number, name: string, value: unknown): TensorEntry {
  const shown = JSON.stringify(name.slice(0, 200)).slice(1, -1)
  const refuse = (what: string) => new CheckpointError(`${path}: tensor ${shown}: ${what}`)
  if (shown !== name.slice(0, 200)) throw refuse('has a name with characters that no tensor has')
  if (typeof value !== 'object' || value === null) throw refuse('is not an object')
  const { dtype, shape, data_offsets } = value as Record<string, unknown>
  if (typeof dtype !== 'string' || dtype.length > 32) throw refuse('has no dtype')
  if (!Array.isArray(shape) || shape.length > 8 || !shape.every(isWhole))
    throw refuse('has a shape that is not a short list of whole numbers')
  if (!Array.isArray(data_offsets) || data_offsets.length !== 2 || !data_offsets.every(isWhole))
    throw refuse('has data_offsets that are not two whole numbers')
  const [begin, end] = data_offsets as [number, number]
  if (![start + begin, start + end].every(isWhole)) throw refuse('has data_offsets beyond any file')
  return { name, dtype, shape, file, begin: start + begin, end: start + end }
}
