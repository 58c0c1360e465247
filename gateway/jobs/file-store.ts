/** Files in R2, streamed both ways: 8 MB parts, all alike but the last, as R2 wants them. */
export interface StoredFile {
  id: string
  object: 'file'
  bytes: number
  /** Unix seconds. */
  created_at: number
  filename: string
  purpose: string
}

const part_bytes = 8 * 1024 * 1024

export const fileKey = (tenantId: string, id: string) => `${tenantId}/${id}`
export const newFileId = () => `file-${crypto.randomUUID().replaceAll('-', '')}`

/** @returns its size; what was written is dropped when the source throws. */
export async function writeFile(
  bucket: R2Bucket,
  key: string,
  source: AsyncIterable<Uint8Array>,
  customMetadata: Record<string, string>,
): Promise<number> {
  const upload = await bucket.createMultipartUpload(key, { customMetadata })
  try {
    const parts: R2UploadedPart[] = []
    let held = new Uint8Array(part_bytes)
    let [used, bytes] = [0, 0]
    for await (const piece of source) {
      bytes += piece.length
      for (let at = 0; at < piece.length;) {
        const taken = piece.subarray(at, at + part_bytes - used)
        held.set(taken, used)
        used += taken.length
        at += taken.length
        if (used < part_bytes) continue
        parts.push(await upload.uploadPart(parts.length + 1, held))
        held = new Uint8Array(part_bytes)
        used = 0
      }
    }
    if (used > 0 || parts.length === 0)
      parts.push(await upload.uploadPart(parts.length + 1, held.subarray(0, used)))
    await upload.complete(parts)
    return bytes
  } catch (cause) {
    await upload.abort()
    throw cause
  }
}

export async function eraseFiles(bucket: R2Bucket, tenantId: string): Promise<void> {
  for (;;) {
    const { objects } = await bucket.list({ prefix: `${tenantId}/` })
    if (objects.length === 0) return
    await bucket.delete(objects.map(({ key }) => key))
  }
}

/** The lines of a stream of text, each with where the next one begins. */
export async function* readLines(
  body: ReadableStream<Uint8Array>,
  line_bytes_max: number,
): AsyncGenerator<{ text: string; bytes: number }> {
  let held = new Uint8Array()
  const decoder = new TextDecoder()
  for await (const piece of body) {
    const both = new Uint8Array(held.length + piece.length)
    both.set(held)
    both.set(piece, held.length)
    held = both
    let from = 0
    for (let end = held.indexOf(10); end >= 0; end = held.indexOf(10, from)) {
      yield { text: decoder.decode(held.subarray(from, end)), bytes: end + 1 - from }
      from = end + 1
    }
    held = held.slice(from)
    if (held.length > line_bytes_max) throw new Error(`a line is longer than ${line_bytes_max} bytes`)
  }
  if (held.length > 0) yield { text: decoder.decode(held), bytes: held.length }
}
