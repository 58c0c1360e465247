/** `npm run bench -- SUITE [--json FILE]`: runs one suite, prints its table, writes its JSON. */
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { arch, cpus, platform, totalmem } from 'node:os'
import { Command } from 'commander'
import { endWithReader } from '../../gateway/local/end-with-reader.ts'

export interface BenchResult {
  name: string
  value: number
  unit: string
  /** What it was measured against in the same run. */
  peer?: string
  /** Higher is better, always. */
  ratio?: number
  /** What the ratio (or, without one, the value) should reach. */
  goal?: number
}

export interface BenchOptions {
  peer?: string
  quick: boolean
  /** These parts alone, where the suite has some. */
  only?: string[]
  /** Tells on stderr what is being done. */
  say: (what: string) => void
}

export interface Suite {
  run(options: BenchOptions): Promise<BenchResult[]>
}

const here = import.meta.dirname
const suites = readdirSync(here)
  .filter((file) => file.endsWith('.ts') && file !== 'main.ts' && !file.startsWith('_'))
  .map((file) => file.slice(0, -3))

function commit(): string {
  try {
    const dirty = execFileSync('git', ['status', '--porcelain'], { cwd: here, encoding: 'utf8' }) !== ''
    const head = execFileSync('git', ['rev-parse', '--short=12', 'HEAD'], {
      cwd: here,
      encoding: 'utf8',
    }).trim()
    return dirty ? `${head}-dirty` : head
  } catch {
    return 'unknown'
  }
}

const machine = () => ({
  cpu: cpus()[0]?.model ?? 'unknown',
  cores: cpus().length,
  memory_gib: Math.round(totalmem() / 2 ** 30),
  os: `${platform()} ${arch()}`,
  node: process.version,
})

const digits = (value: number) =>
  value >= 1000
    ? Math.round(value).toLocaleString('en')
    : value >= 100
      ? value.toFixed(0)
      : value.toPrecision(3)

function table(results: BenchResult[]): string {
  const rows = results.map((r) => [
    r.name,
    `${digits(r.value)} ${r.unit}`,
    r.ratio === undefined ? '' : `${r.ratio.toFixed(2)}x`,
    r.peer ?? '',
    r.goal === undefined ? '' : `${(r.ratio ?? r.value) >= r.goal ? 'ok' : 'below'} ${r.goal}`,
  ])
  const all = [['', 'value', 'ratio', 'against', 'goal'], ...rows]
  const widths = [0, 1, 2, 3, 4].map((column) => Math.max(...all.map((row) => row[column]?.length ?? 0)))
  return all
    .map((row) =>
      row
        .map((cell, i) => (i === 1 || i === 2 ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

const program = new Command('bench')
  .description('Measure one part of qwen2-edge on this machine.')
  .argument('<suite>', suites.join(' | '))
  .option('--json <file>', 'write {suite, commit, machine, results} to this file')
  .option('--peer <name>', 'also measure this peer in the same run, where the suite has one')
  .option('--limit <minutes>', 'end it by force after this long', Number, 20)
  .option('--only <parts>', 'only these parts of the suite, separated by commas')
  .option('--quick', 'fewer and shorter runs: a look, not a figure to publish', false)
  .action(
    async (
      suite: string,
      options: { json?: string; peer?: string; quick: boolean; limit: number; only?: string },
    ) => {
      if (!existsSync(`${here}/${suite}.ts`) || !suites.includes(suite)) {
        program.error(`no suite '${suite}'; there are: ${suites.join(', ')}`)
      }
      // Before minutes of measuring, not after them.
      if (options.json) writeFileSync(options.json, '', { flag: 'a' })
      setTimeout(() => {
        process.stderr.write(`not done after ${options.limit} minutes\n`)
        process.exit(1)
      }, options.limit * 60_000).unref()
      const module = (await import(`./${suite}.ts`)) as Suite
      const results = await module.run({
        quick: options.quick,
        say: (what) => process.stderr.write(`... ${what}\n`),
        ...(options.peer ? { peer: options.peer } : {}),
        ...(options.only ? { only: options.only.split(',') } : {}),
      })
      process.stdout.write(`${table(results)}\n`)
      const report = { suite, commit: commit(), machine: machine(), results }
      if (options.json) writeFileSync(options.json, JSON.stringify(report, null, 2) + '\n')
    },
  )

endWithReader()
await program.parseAsync()
