/**
 * One process at a time: a file that names the process holding it. A holder that was killed is noticed and replaced, so
 * nobody has to delete a file by hand; a pid that was given to another program since is told apart by its start time
 * (Linux; elsewhere the pid alone decides).
 */
import { linkSync, mkdirSync, readFileSync, rmSync, unlinkSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const poll_ms = 200

/** Runs `work` while this process alone holds `file`; `onWait` is told once when another one holds it. */
export async function exclusively<T>(
  file: string,
  work: () => Promise<T>,
  onWait: (pid: number) => void,
): Promise<T> {
  let told = false
  for (let holder = take(file); holder !== null; holder = take(file)) {
    if (!told) onWait(holder)
    told = true
    await sleep(poll_ms)
  }
  try {
    return await work()
  } finally {
    rmSync(file, { force: true })
  }
}

/** null: taken; otherwise who holds it. A link either appears whole or not at all, so nobody reads half a claim. */
function take(file: string): number | null {
  mkdirSync(dirname(file), { recursive: true })
  const claim = `${file}.${process.pid}`
  writeFileSync(claim, `${process.pid} ${startTime(process.pid)}`)
  try {
    for (;;) {
      try {
        linkSync(claim, file)
        return null
      } catch (error) {
        if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error
      }
      const holder = liveHolder(file)
      if (holder !== null) return holder
      rmSync(file, { force: true })
    }
  } finally {
    unlinkSync(claim)
  }
}

function liveHolder(file: string): number | null {
  let claim: string
  try {
    claim = readFileSync(file, 'utf8')
  } catch {
    return null
  }
  const pid = Number.parseInt(claim, 10)
  if (!(pid > 0)) return null
  try {
    process.kill(pid, 0)
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'EPERM')) return null
  }
  return claim === `${pid} ${startTime(pid)}` ? pid : null
}

/** Clock ticks since boot, or empty where the system does not tell. */
function startTime(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''
  } catch {
    return ''
  }
}
