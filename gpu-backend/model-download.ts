/**
 * Fetches a checkpoint from the Hugging Face hub, only the files the engine and the gateway read.
 *
 * The list of files with sizes and hashes, at one commit, is written first (.download.json), so a download that was
 * killed goes on later: each file grows as NAME.partial, the next request asks for the rest by Range, and the hash
 * decides whether the whole is right. The hub library's own snapshotDownload starts a file over, which with gigabytes
 * of weights is no resumption; its listing and its ranged blobs are used here. A finished model needs no network.
 */
import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream, existsSync, readFileSync } from 'node:fs'
import { mkdir, rename, rm, stat, statfs, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { downloadFile, HubApiError, listFiles, modelInfo } from '@huggingface/hub'
import * as z from 'zod/mini'
import { progressBar, type Progress } from './download-progress.ts'
import { exclusively } from './exclusive.ts'
import { ModelError } from './model-error.ts'

const Manifest = z.object({
  commit: z.string(),
  files: z.array(z.object({ path: z.string(), size: z.number(), hash: z.string() })),
})
type Manifest = z.infer<typeof Manifest>
type ManifestFile = Manifest['files'][number]

const wanted =
  /^(config\.json|generation_config\.json|tokenizer[\w.]*\.json|chat_template\.\w+|vocab\.json|merges\.txt|[\w.-]+\.safetensors(\.index\.json)?)$/
const spare_disk_bytes = 256 * 1024 ** 2
/** Tries in a row that bring no byte before it gives up. */
const fruitless_tries_max = 4

export interface FetchOptions {
  id: string
  revision: string
  dir: string
  env: NodeJS.ProcessEnv
  /** Before a fruitless try is repeated; grows with each. */
  retry_ms?: number
}

interface Hub {
  repo: { type: 'model'; name: string }
  hubUrl: string
  accessToken?: string
}

export async function fetchModel(options: FetchOptions): Promise<string> {
  const { id, dir, env } = options
  if (await isComplete(dir)) return dir
  const token = env['HF_TOKEN']
  const hub: Hub = {
    repo: { type: 'model', name: id },
    hubUrl: (env['HF_ENDPOINT'] ?? 'https://huggingface.co').replace(/\/+$/, ''),
    ...(token === undefined || token === '' ? {} : { accessToken: token }),
  }
  await mkdir(dir, { recursive: true })
  try {
    await exclusively(
      join(dir, '.download.lock'),
      () => download(hub, options),
      (pid) => process.stderr.write(`model: process ${pid} is downloading ${id}, waiting ...\n`),
    )
  } catch (error) {
    throw explained(error, hub, options)
  }
  return dir
}

async function download(hub: Hub, options: FetchOptions): Promise<void> {
  const { dir, id } = options
  const manifest = readManifest(dir) ?? (await list(hub, options.revision))
  await replace(manifestFile(dir), JSON.stringify(manifest))
  const total = manifest.files.reduce((sum, file) => sum + file.size, 0)
  const have = await Promise.all(manifest.files.map((file) => bytesPresent(dir, file)))
  const present = have.reduce((sum, size) => sum + size, 0)
  await assertRoom(dir, total - present)
  const progress = progressBar(`model: ${id}`, total, present)
  try {
    for (const file of manifest.files) {
      if ((await sizeOf(join(dir, file.path))) !== file.size)
        await fetchFile(hub, manifest.commit, dir, file, progress, options.retry_ms ?? 1000)
    }
  } finally {
    progress.stop()
  }
}

async function list(hub: Hub, revision: string): Promise<Manifest> {
  const { sha } = await modelInfo({ ...hub, name: hub.repo.name, revision, additionalFields: ['sha'] })
  const files: ManifestFile[] = []
  for await (const entry of listFiles({ ...hub, revision: sha })) {
    if (entry.type === 'file' && wanted.test(entry.path))
      files.push({ path: entry.path, size: entry.size, hash: entry.lfs?.oid ?? entry.oid ?? '' })
  }
  for (const need of ['config.json', 'tokenizer.json'])
    if (!files.some((file) => file.path === need))
      throw new ModelError(`${hub.repo.name} has no ${need}: it is not a model this engine can run`)
  if (!files.some((file) => file.path.endsWith('.safetensors')))
    throw new ModelError(`${hub.repo.name} has no .safetensors weights`)
  // Small files first: what is wrong with a model shows before its gigabytes are here.
  return { commit: sha, files: files.toSorted((a, b) => a.size - b.size) }
}

async function fetchFile(
  hub: Hub,
  commit: string,
  dir: string,
  file: ManifestFile,
  progress: Progress,
  retry_ms: number,
): Promise<void> {
  const partial = join(dir, `${file.path}.partial`)
  for (let fruitless = 0; ;) {
    const before = (await sizeOf(partial)) ?? 0
    try {
      if (before < file.size) await append(hub, commit, file, partial, before, progress)
      break
    } catch (error) {
      const gained = ((await sizeOf(partial)) ?? 0) - before
      fruitless = gained > 0 ? 0 : fruitless + 1
      if (!isTransient(error) || fruitless >= fruitless_tries_max) throw error
      await sleep(retry_ms * 2 ** fruitless)
    }
  }
  if (!(await hasHash(partial, file))) {
    await rm(partial)
    throw new ModelError(`${file.path} of ${hub.repo.name} arrived damaged and was removed; run it again`)
  }
  await rename(partial, join(dir, file.path))
}

async function append(
  hub: Hub,
  commit: string,
  file: ManifestFile,
  partial: string,
  from: number,
  progress: Progress,
): Promise<void> {
  const blob = await downloadFile({ ...hub, path: file.path, revision: commit, xet: false })
  if (blob === null) throw new ModelError(`${hub.repo.name} has no ${file.path} any more`)
  if (blob.size !== file.size) throw new ModelError(`${file.path} is ${blob.size} bytes, not ${file.size}`)
  const rest = from === 0 ? blob : blob.slice(from)
  await pipeline(
    rest.stream(),
    async function* (chunks: AsyncIterable<Uint8Array>) {
      for await (const chunk of chunks) {
        progress.add(chunk.length)
        yield chunk
      }
    },
    createWriteStream(partial, { flags: 'a' }),
  )
  const size = (await sizeOf(partial)) ?? 0
  if (size < file.size) throw new TypeError(`the connection ended at ${size} of ${file.size} bytes`)
}

/** The hub gives SHA-256 for large files, git's own blob hash for the others. */
async function hasHash(path: string, file: ManifestFile): Promise<boolean> {
  if ((await sizeOf(path)) !== file.size) return false
  if (file.hash === '') return true
  const hash =
    file.hash.length === 40 ? createHash('sha1').update(`blob ${file.size}\0`) : createHash('sha256')
  await pipeline(createReadStream(path), hash)
  return hash.digest('hex') === file.hash
}

const manifestFile = (dir: string): string => join(dir, '.download.json')

function readManifest(dir: string): Manifest | null {
  if (!existsSync(manifestFile(dir))) return null
  return Manifest.parse(JSON.parse(readFileSync(manifestFile(dir), 'utf8')))
}

async function isComplete(dir: string): Promise<boolean> {
  const manifest = readManifest(dir)
  if (manifest === null) return false
  for (const file of manifest.files) if ((await sizeOf(join(dir, file.path))) !== file.size) return false
  return true
}

const sizeOf = async (path: string): Promise<number | null> => {
  try {
    return (await stat(path)).size
  } catch {
    return null
  }
}

const bytesPresent = async (dir: string, file: ManifestFile): Promise<number> =>
  (await sizeOf(join(dir, file.path))) ?? (await sizeOf(join(dir, `${file.path}.partial`))) ?? 0

async function assertRoom(dir: string, bytes: number): Promise<void> {
  const disk = await statfs(dir)
  const free = disk.bavail * disk.bsize
  if (free >= bytes + spare_disk_bytes) return
  const gib = (count: number) => (count / 1024 ** 3).toFixed(1)
  throw new ModelError(
    `${dir} has ${gib(free)} GiB free, the download needs ${gib(bytes + spare_disk_bytes)} GiB`,
  )
}

async function replace(path: string, content: string): Promise<void> {
  await writeFile(`${path}.new`, content)
  await rename(`${path}.new`, path)
}

/** WebBlob reports a failed request inside a stream as its message alone, a string. */
const isTransient = (error: unknown): boolean =>
  typeof error === 'string' ||
  (error instanceof HubApiError && (error.statusCode >= 500 || error.statusCode === 429)) ||
  (error instanceof TypeError && !error.message.includes('access token')) ||
  (error instanceof Error && 'code' in error && error.code === 'ERR_STREAM_PREMATURE_CLOSE')

function explained(error: unknown, hub: Hub, { id, revision }: FetchOptions): unknown {
  if (error instanceof ModelError) return error
  const because = (message: string) => new ModelError(message, { cause: error })
  const page = `${hub.hubUrl}/${id}`
  if (error instanceof HubApiError) {
    const { statusCode } = error
    if (statusCode === 404) return because(`No model ${id} (revision ${revision}) at ${hub.hubUrl}`)
    if (statusCode === 401 || statusCode === 403)
      return because(
        hub.accessToken === undefined
          ? `${page} does not exist, or is private or gated: check the name, or set HF_TOKEN (${statusCode})`
          : `HF_TOKEN may not read ${page}: accept the model's terms there, or use another token (${statusCode})`,
      )
    return because(
      `${hub.hubUrl} answered ${statusCode} for ${id}; try again later, it goes on where it stopped`,
    )
  }
  if (error instanceof Error && 'code' in error && error.code === 'ENOSPC')
    return because(`The disk is full; make room and run it again, it goes on where it stopped`)
  if (error instanceof TypeError && error.message.includes('access token'))
    return because(`HF_TOKEN is no hub token: one starts with 'hf_'`)
  if (isTransient(error))
    return because(
      `Cannot reach ${hub.hubUrl} for ${id} (offline?): run it again to go on, or set MODEL to a folder`,
    )
  return error
}
