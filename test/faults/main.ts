/** `npm run faults -- SUITE [--quick]`: breaks things on purpose on this machine and counts what that cost. */
import { readdirSync } from 'node:fs'
import { Command } from 'commander'
import { endWithReader } from '../../gateway/local/end-with-reader.ts'

export interface Finding {
  name: string
  value: number | string
  /** What it must be; absent: a figure to look at. */
  must?: number | string
}

export interface Faults {
  /** Findings are told as they come. */
  run(
    options: { quick: boolean; scale: number; only: string | undefined },
    tell: (finding: Finding) => void,
  ): Promise<void>
}

const suites = readdirSync(import.meta.dirname)
  .filter((file) => file.endsWith('.ts') && file !== 'main.ts' && !file.startsWith('_'))
  .map((file) => file.slice(0, -3))

const program = new Command('faults')
  .description('Break one part of qwen2-edge on purpose and count what is lost. Loopback only.')
  .argument('<suite>', suites.join(' | '))
  .option('--quick', 'a fiftieth of the load: a look, not a proof', false)
  .option('--scale <n>', 'this much of the load', Number)
  .option('--only <name>', 'one scenario')
  .action(async (suite: string, options: { quick: boolean; scale?: number; only?: string }) => {
    if (!suites.includes(suite)) program.error(`no suite '${suite}'; there are: ${suites.join(', ')}`)
    const faults = (await import(`./${suite}.ts`)) as Faults
    let wrong = 0
    await faults.run(
      { quick: options.quick, scale: options.scale ?? (options.quick ? 0.02 : 1), only: options.only },
      ({ name, value, must }) => {
        const ok = must === undefined || value === must
        if (!ok) wrong++
        const verdict = must === undefined ? '' : ok ? 'ok' : `WRONG, must be ${must}`
        process.stdout.write(`${name.padEnd(64)} ${String(value).padStart(12)}  ${verdict}\n`)
      },
    )
    process.stdout.write(wrong === 0 ? 'nothing lost\n' : `${wrong} wrong\n`)
    process.exitCode = wrong === 0 ? 0 : 1
  })

endWithReader()
await program.parseAsync()
