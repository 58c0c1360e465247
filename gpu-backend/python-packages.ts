/** Tools that come as Python packages, into a folder that git ignores; no environment of the machine is touched. */
import { spawnSync } from 'node:child_process'
import { rmSync } from 'node:fs'

/** Throws Error with pip's own words. @param packages with exact versions @param args of pip */
export function bringPackages(folder: string, packages: string[], args: string[] = []): void {
  rmSync(folder, { recursive: true, force: true })
  const pip = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--root-user-action=ignore']
  const { status, stderr, error } = spawnSync('python3', [...pip, ...args, '--target', folder, ...packages], {
    encoding: 'utf8',
  })
  if (status === 0) return
  rmSync(folder, { recursive: true, force: true })
  throw new Error(
    `${error?.message ?? stderr}\npython3 with pip is wanted (packages python3 python3-pip), and a network`,
  )
}
