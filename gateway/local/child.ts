/**
 * Child processes that never outlive this one. Each leads a process group of its own, so what it spawned (compilers,
 * workerd) ends with it, and holds an IPC channel, whose end tells it that this process is gone, however it went.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { root, StartError } from './settings.ts'

const stop_ms_max = 1000
const backoff_ms_first = 250
/** Short enough that even what keeps dying is started again within two seconds. */
const backoff_ms_max = 1_500
/** Whoever lived this long gets its first restart without delay again. */
const steady_ms = 10_000

export interface Program {
  name: string
  script: string
  args?: string[]
  env?: Record<string, string>
}

export type Phase = 'starting' | 'ready' | 'stopping'

const running = new Set<ChildProcess>()

function launch({ script, args = [], env = {} }: Program, output: 'inherit' | 'pipe'): ChildProcess {
  const child = spawn(process.execPath, [join(root, script), ...args], {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ['ignore', output === 'inherit' ? 'ignore' : 'pipe', output, 'ipc'],
    detached: true,
  })
  running.add(child)
  child.once('exit', () => {
    killGroup(child)
    running.delete(child)
  })
  return child
}

/** What is left of the group after its leader, such as the workerd of a killed host. */
function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    // Nobody is left.
  }
}

/** Runs a program to its end, its messages on our stderr; throws StartError when it fails, having said why itself. */
export async function runStep(program: Program): Promise<void> {
  const child = launch(program, 'inherit')
  const [code] = (await once(child, 'exit')) as [number | null]
  if (code !== 0) throw new StartError(`${program.name} failed`)
}

/**
 * Keeps a program running. The promise rejects with StartError when it ends by itself with an error before everything
 * was ready once (it has said why); any other end is followed by a restart, at once after a steady run, else more and
 * more slowly.
 */
export async function keepRunning(
  program: Program,
  say: (line: string) => void,
  phase: () => Phase,
): Promise<never> {
  let delay_ms = 0
  for (;;) {
    const started = performance.now()
    const child = launch(program, 'pipe')
    prefixLines(child, program.name)
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null]
    if (phase() === 'stopping') await new Promise<never>(() => undefined)
    const lived_ms = performance.now() - started
    if (phase() === 'starting' && code !== null && code !== 0)
      throw new StartError(`the ${program.name} did not start`)
    if (lived_ms >= steady_ms) delay_ms = 0
    say(`the ${program.name} died (${signal ?? `exit ${code}`}); starting it again`)
    await sleep(delay_ms)
    delay_ms = Math.min(backoff_ms_max, delay_ms === 0 ? backoff_ms_first : delay_ms * 2)
  }
}

function prefixLines(child: ChildProcess, name: string): void {
  for (const stream of [child.stdout, child.stderr]) {
    if (stream === null) continue
    createInterface({ input: stream }).on('line', (line) => {
      if (line.trim() !== '') process.stderr.write(`${name.padEnd(7)} | ${line}\n`)
    })
  }
}

/** Ends every child and all they started. */
export async function stopAll(): Promise<void> {
  const children = [...running]
  const gone = Promise.all(children.map((child) => once(child, 'exit')))
  for (const child of children) if (child.connected) child.disconnect()
  await Promise.race([gone, sleep(stop_ms_max)])
  for (const child of children) killGroup(child)
  await gone
}
