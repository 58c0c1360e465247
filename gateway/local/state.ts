/**
 * The state folder: secrets made once, and a lock, because two workerd processes that open the same Durable Objects
 * would damage them. The lock names its holder; one whose holder is gone is taken over.
 */
import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { makeKey } from '../../src/keys.ts'
import { StartError, type Settings } from './settings.ts'

export interface Secrets {
  BACKEND_SECRET: string
  KEY_PEPPER: string
  ADMIN_TOKEN: string
  DEV_KEY: string
}

export function readSecrets({ stateDir, devKey, adminToken }: Settings): Secrets {
  const path = join(stateDir, 'secrets.json')
  const kept = readObject(path)
  const text = (name: keyof Secrets, make: () => string): string => {
    const value = kept[name]
    return typeof value === 'string' && value !== '' ? value : make()
  }
  const random = () => randomBytes(32).toString('base64url')
  const secrets: Secrets = {
    BACKEND_SECRET: text('BACKEND_SECRET', random),
    KEY_PEPPER: text('KEY_PEPPER', random),
    ADMIN_TOKEN: text('ADMIN_TOKEN', random),
    DEV_KEY: text('DEV_KEY', () => makeKey('dev')),
  }
  writeFileSync(path, `${JSON.stringify(secrets, null, 2)}\n`, { mode: 0o600 })
  return {
    ...secrets,
    ADMIN_TOKEN: adminToken ?? secrets.ADMIN_TOKEN,
    DEV_KEY: devKey ?? secrets.DEV_KEY,
  }
}

function readObject(path: string): Record<string, unknown> {
  try {
    return { ...(JSON.parse(readFileSync(path, 'utf8')) as object) }
  } catch {
    return {}
  }
}

/** Throws StartError when another `npm start` uses the folder; gives back how to let go. */
export function lockState(stateDir: string): () => void {
  mkdirSync(stateDir, { recursive: true })
  const path = join(stateDir, 'lock')
  for (;;) {
    try {
      writeFileSync(path, String(process.pid), { flag: 'wx' })
      return () => rmSync(path, { force: true })
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error
    }
    const holder = Number(readFileSync(path, 'utf8'))
    if (isSupervisor(holder))
      throw new StartError(
        `${stateDir} is in use by process ${holder}: stop that one, or set QWEN_EDGE_STATE to another folder`,
      )
    rmSync(path, { force: true })
  }
}

/** A pid may belong to another program by now; where the system shows what runs, that decides. */
function isSupervisor(pid: number): boolean {
  if (!Number.isInteger(pid) || pid <= 0 || pid === process.pid) return false
  try {
    process.kill(pid, 0)
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'EPERM')) return false
  }
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('gateway/local/main')
  } catch {
    return process.platform !== 'linux'
  }
}
