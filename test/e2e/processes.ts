/** Which processes a stack consists of, as the system sees them. */
import { execFileSync } from 'node:child_process'
import type { Stack } from './stack.ts'

export interface Process {
  pid: number
  ppid: number
  args: string
}

export const processes = (): Process[] =>
  execFileSync('ps', ['-eo', 'pid=,ppid=,stat=,args='], { encoding: 'utf8' })
    .split('\n')
    .map((line) => /^\s*(\d+)\s+(\d+)\s+(\S+)\s+(.*)$/.exec(line))
    .filter((match) => match !== null)
    .filter(([, , , stat]) => !stat!.startsWith('Z'))
    .map(([, pid, ppid, , args]) => ({ pid: Number(pid), ppid: Number(ppid), args: args! }))

export function descendants(root: number): Process[] {
  const all = processes()
  const found = all.filter(({ pid }) => pid === root)
  for (const { pid } of found) found.push(...all.filter(({ ppid }) => ppid === pid))
  return found
}

/** The one process of the stack whose command line has `what` in it. */
export const pidOf = (stack: Stack, what: string): number => {
  const matching = descendants(stack.pid).filter(({ args }) => args.includes(what))
  const [first, ...others] = matching
  if (first === undefined || others.length > 0) throw new Error(`${matching.length} processes run ${what}`)
  return first.pid
}
