/**
 * `npm run rehearse:image [-- Dockerfile.cuda]`: carries out the image's build outside Docker, in a folder for each stage,
 * and starts what comes out as the image would: by its command, as its user, in a folder that this user cannot write,
 * with nothing of the repository in reach. Then its health check must pass, a generation end, and SIGTERM drain another.
 * The CUDA image must say in one line that there is no GPU, where there is none.
 *
 * What it cannot show: base images, the packages of apt, the container itself.
 */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, chownSync, mkdirSync, mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { freePort } from '../free-port.ts'
import { carryOut, instructions, removeFolder, say, type Stage } from './dockerfile.ts'

const context = join(import.meta.dirname, '../..')
const file = process.argv[2] ?? 'Dockerfile'
/** As Dockerfile.dockerignore has it, and what git ignores. */
const ignored = /(^|\/)(native\/build[^/]*|models\/[^/]*\.py|__pycache__|node_modules|[^/]*\.tsbuildinfo)$/
const secret = 'a secret of the rehearsal'

async function rehearse(stage: Stage): Promise<void> {
  const app = join(stage.root, stage.workdir)
  const models = join(stage.root, 'models')
  const port = await freePort()
  const id = Number(stage.user)
  if (!Number.isInteger(id) || id === 0)
    throw new Error(`USER ${stage.user}: a number other than 0 is wanted`)
  const isRoot = process.getuid?.() === 0
  mkdirSync(models)
  if (isRoot) chownSync(models, id, id)
  const options = {
    cwd: app,
    env: {
      PATH: process.env['PATH'],
      ...stage.env,
      MODELS_DIR: models,
      MODEL: 'tiny',
      BACKEND_HOST: '127.0.0.1',
      BACKEND_PORT: String(port),
      BACKEND_SECRET: secret,
    },
    ...(isRoot ? { uid: id, gid: id } : {}),
  }
  const [program = '', ...args] = stage.command
  const child = spawn(program, args, { ...options, stdio: ['ignore', 'inherit', 'pipe'] })
  const ended = once(child, 'exit').then(([status]) => status as number | null)
  const said = text(child.stderr)
  try {
    if (
      !(await ready(`http://127.0.0.1:${port}`, () => child.exitCode === null && child.signalCode === null))
    ) {
      if (stage.env['DEVICE'] === 'cuda' && /^DEVICE=cuda: .*\n$/.test(await said))
        return say(`no GPU here, and it says so: ${(await said).trim()}`)
      throw new Error(`it ended with status ${await ended}: ${await said}`)
    }
    const [check = '', ...rest] = stage.healthcheck
    if (spawnSync(check, rest, options).status !== 0) throw new Error('the health check fails')
    await generate(port, 20)
    const last = generate(port, 400)
    await new Promise((resolve) => setTimeout(resolve, 50))
    child.kill('SIGTERM')
    await last
    if ((await ended) !== 0) throw new Error(`SIGTERM: status ${await ended}: ${await said}`)
    say(`ready, healthy, answered as user ${stage.user}; SIGTERM waited for what ran`)
  } finally {
    child.kill('SIGKILL')
  }
}

/** Whether it came up before it ended. */
async function ready(url: string, runs: () => boolean): Promise<boolean> {
  while (runs()) {
    const answer = await fetch(`${url}/ready`).catch(() => null)
    if (answer?.ok === true) return true
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  return false
}

async function generate(port: number, max_tokens: number): Promise<void> {
  const answer = await fetch(`http://127.0.0.1:${port}/v1/generate`, {
    method: 'POST',
    headers: { authorization: `Bearer ${secret}`, 'content-type': 'application/json' },
    body: JSON.stringify({
      request_id: crypto.randomUUID(),
      model: 'tiny',
      token_ids: [1, 2, 3],
      sampling: { max_tokens, ignore_eos: true },
    }),
  })
  const events = await answer.text()
  if (!events.includes('"finish_reason":"length"'))
    throw new Error(`a generation: ${answer.status} ${events.slice(0, 300)}`)
}

const folder = mkdtempSync(join(tmpdir(), 'image-'))
try {
  chmodSync(folder, 0o755)
  await rehearse(carryOut(instructions(join(context, 'gpu-backend', file)), context, ignored, folder))
} catch (error) {
  process.stderr.write(`${file}: ${error instanceof Error ? error.message : String(error)}\n`)
  process.exitCode = 1
} finally {
  removeFolder(folder)
}
