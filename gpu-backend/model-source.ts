/**
 * What MODEL names, as a checkpoint folder on this disk: `tiny` (shipped with the repository), a folder, or a model of
 * the Hugging Face hub (`Qwen/Qwen2-0.5B-Instruct`, optionally `@revision`), fetched on first use.
 * As a program it prints the folder on stdout and everything else on stderr.
 */
import { existsSync, statSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { ModelError } from './model-error.ts'

export interface ModelSource {
  /** The API's model id. */
  id: string
  /** The checkpoint folder. */
  dir: string
}

const shipped = ['tiny']
const hubId = /^([\w.-]+\/[\w.-]+)(?:@([\w./-]+))?$/

/** The API's id of what MODEL names, known before it is fetched. */
export function modelId(model: string): string {
  if (shipped.includes(model) || !isFolder(model)) return hubId.exec(model)?.[1] ?? model
  return basename(resolve(model))
}

const isFolder = (path: string): boolean => statSync(path, { throwIfNoEntry: false })?.isDirectory() === true

export async function resolveModel(
  model: string,
  env: NodeJS.ProcessEnv = process.env,
): Promise<ModelSource> {
  const id = modelId(model)
  if (shipped.includes(model)) return checked(id, join(import.meta.dirname, 'models', model))
  if (isFolder(model)) return checked(id, resolve(model))
  const hub = hubId.exec(model)
  if (hub === null || model.split(/[/@]/).some((part) => /^\.*$/.test(part)))
    throw new ModelError(
      `MODEL=${model} is no folder here, and neither 'tiny' nor a hub id such as Qwen/Qwen2-0.5B-Instruct`,
    )
  const root = env['MODELS_DIR'] ?? join(import.meta.dirname, '../.qwen-edge/models')
  // The hub library is loaded by whoever fetches, not by every start.
  const { fetchModel } = await import('./model-download.ts')
  return checked(id, await fetchModel({ id, revision: hub[2] ?? 'main', dir: join(root, model), env }))
}

function checked(id: string, dir: string): ModelSource {
  if (!existsSync(join(dir, 'config.json')))
    throw new ModelError(`${dir} is no checkpoint folder: it has no config.json`)
  return { id, dir }
}

if (import.meta.main) {
  try {
    const { dir } = await resolveModel(process.argv[2] ?? process.env['MODEL'] ?? 'tiny')
    process.stdout.write(`${dir}\n`)
  } catch (error) {
    process.stderr.write(`${error instanceof ModelError ? error.message : String(error)}\n`)
    process.exitCode = 1
  }
}
