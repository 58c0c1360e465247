/** Programs beside a bench. They end with it, however it ends, and with them all that they started. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const root = join(import.meta.dirname, '../..')
const start_ms_max = 20_000
const running = new Set<ChildProcess>()

process.once('exit', () => running.forEach(kill))
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => process.exit(1))

/** Starts it; it is there when its port answers. */
export async function startProgram(port: number, args: string[], cwd = root): Promise<() => Promise<void>> {
  const { child, ended } = launch(process.execPath, args, cwd)
  const end_ms = performance.now() + start_ms_max
  const what = args[0] ?? ''
  while (!(await answers(port))) {
    if (!running.has(child)) throw new Error(`${what} ended before it was ready`)
    if (performance.now() > end_ms) throw new Error(`${what} was not ready within ${start_ms_max} ms`)
    await sleep(50)
  }
  return async () => {
    kill(child)
    await ended
  }
}

/** Runs it to its end; throws where that is a failure, or does not come in time. */
export async function runProgram(
  command: string,
  args: string[],
  cwd: string,
  limit_ms: number,
): Promise<void> {
  const { child, ended } = launch(command, args, cwd)
  const timer = setTimeout(() => kill(child), limit_ms)
  const code = await ended
  clearTimeout(timer)
  if (code !== 0) throw new Error(`${command} ${args.join(' ')}: ${code ?? `not done in ${limit_ms} ms`}`)
}

/** In a process group of its own. */
function launch(command: string, args: string[], cwd: string) {
  const child = spawn(command, args, { cwd, stdio: ['ignore', 'ignore', 'inherit'], detached: true })
  running.add(child)
  const ended = once(child, 'exit').then(([code]) => {
    running.delete(child)
    return code as number | null
  })
  return { child, ended }
}

function kill(child: ChildProcess): void {
  if (child.pid === undefined) return
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    // Nobody is left.
  }
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ port, host: '127.0.0.1' })
    const done = (open: boolean) => () => {
      socket.destroy()
      resolve(open)
    }
    socket.once('connect', done(true)).once('error', done(false))
  })
}
