/** As much of a Dockerfile as ours use, read and carried out in folders that stand for the stages' roots. */
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { basename, join, relative } from 'node:path'

export interface Stage {
  /** Stands for `/`. */
  root: string
  /** Inside the image. */
  workdir: string
  env: Record<string, string>
  user: string
  healthcheck: string[]
  command: string[]
}

type Instruction = [name: string, rest: string]

export function instructions(file: string): Instruction[] {
  const text = readFileSync(file, 'utf8')
    .replace(/^#.*\n/gm, '')
    .replace(/\\\n\s*/g, ' ')
  return [...text.matchAll(/^([A-Z]+) (.+)$/gm)].map(([, name = '', rest = '']) => [name, rest])
}

/** What only an image has or needs: packages of its system, its users, its place for models. */
const system = /^(apt-get|rm -rf \/var\/lib\/apt|useradd|install -d)\b/

/**
 * Carries out all stages. @param context the folder that COPY copies from @param ignored paths in it that it must not see
 * @returns the last stage. Throws Error for a step that fails, or that it does not know.
 */
export function carryOut(steps: Instruction[], context: string, ignored: RegExp, folder: string): Stage {
  const stages = new Map<string, Stage>()
  let stage: Stage | undefined
  for (const [name, rest] of steps) {
    if (name === 'FROM') {
      const [image = '', , alias = `stage ${stages.size}`] = rest.split(' ')
      const root = join(folder, alias)
      mkdirSync(root, { recursive: true })
      say(`FROM ${image}: skipped, this machine stands for it`)
      stage = { root, workdir: '/', env: {}, user: '0', healthcheck: [], command: [] }
      stages.set(alias, stage)
      continue
    }
    if (stage === undefined) throw new Error(`${name} before FROM`)
    say(`${name} ${rest}`)
    switch (name) {
      case 'WORKDIR':
        stage.workdir = rest
        mkdirSync(join(stage.root, rest), { recursive: true })
        break
      case 'ENV':
        for (const [, key = '', value = ''] of rest.matchAll(/(\w+)=(\S+)/g)) stage.env[key] = value
        break
      case 'COPY':
        copy(rest, stage, stages, context, ignored)
        break
      case 'RUN':
        for (const command of rest.split(' && ')) run(command, stage)
        break
      case 'USER':
        stage.user = rest
        break
      case 'HEALTHCHECK':
        stage.healthcheck = JSON.parse(rest.slice(rest.indexOf('CMD') + 4)) as string[]
        break
      case 'CMD':
        stage.command = JSON.parse(rest) as string[]
        break
      case 'VOLUME':
      case 'EXPOSE':
        break
      default:
        throw new Error(`${name} is not known here`)
    }
  }
  if (stage === undefined) throw new Error('no FROM')
  return stage
}

function copy(
  rest: string,
  stage: Stage,
  stages: Map<string, Stage>,
  context: string,
  ignored: RegExp,
): void {
  const [, from, list = ''] = /^(?:--from=(\S+) )?(.+)$/.exec(rest) ?? []
  const paths = list.split(' ')
  const to = paths.pop() ?? ''
  const source = from === undefined ? context : stages.get(from)?.root
  if (source === undefined) return say(`  skipped: ${from ?? ''} is an image`)
  const target = to.startsWith('/') ? join(stage.root, to) : join(stage.root, stage.workdir, to)
  for (const path of paths.flatMap((each) => matching(source, each))) {
    const into = paths.length > 1 || to.endsWith('/') || path.includes('*') || list.includes('*')
    cpSync(join(source, path), into ? join(target, basename(path)) : target, {
      recursive: true,
      filter: (file) => from !== undefined || !ignored.test(relative(context, file)),
    })
  }
}

/** A path of COPY whose last part may be `*.something`. */
function matching(source: string, path: string): string[] {
  const [, folder = '', ending] = /^(.*\/)?\*(\.\w+)$/.exec(path) ?? []
  if (ending !== undefined)
    return readdirSync(join(source, folder))
      .filter((name) => name.endsWith(ending))
      .map((name) => join(folder, name))
  if (!existsSync(join(source, path))) throw new Error(`COPY: there is no ${path}`)
  return [path]
}

function run(command: string, stage: Stage): void {
  if (system.test(command)) return say(`  skipped: ${command}`)
  const { status } = spawnSync('sh', ['-c', command], {
    cwd: join(stage.root, stage.workdir),
    env: { ...process.env, ...stage.env },
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  if (status !== 0) throw new Error(`RUN ${command}: status ${status}`)
}

export const say = (line: string): void => console.log(line)

export const removeFolder = (folder: string): void => rmSync(folder, { recursive: true, force: true })
