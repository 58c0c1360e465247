/**
 * `npm run build:native`: compiles gpu-backend/native into the addon, when its sources changed since the last time.
 * What decides is a hash of the sources, so a fresh clone, a checkout or a touched file costs nothing.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join, relative } from 'node:path'
import { exclusively } from './exclusive.ts'
import { endWithParent } from './parent.ts'

const source = join(import.meta.dirname, 'native')
const build = join(source, 'build')
const addon = join(build, 'qwen2_edge.node')
const stamp = join(build, 'sources.sha256')
const lock = join(import.meta.dirname, '../.qwen-edge/build-native.lock')
const cmake_version_min = [3, 20] as const

function sourceHash(): string {
  const hash = createHash('sha256').update(`${process.platform} ${process.arch}`)
  const files = readdirSync(source, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((file) => !/^build[^/]*\//.test(relative(source, file)))
    .toSorted()
  for (const file of files) {
    const content = readFileSync(file)
    hash.update(`\0${relative(source, file)}\0${content.length}\0`).update(content)
  }
  return hash.digest('hex')
}

const isCurrent = (hash: string): boolean =>
  existsSync(addon) && existsSync(stamp) && readFileSync(stamp, 'utf8') === hash

/** What is missing on this machine, in one line each. */
function missing(): string[] {
  const problems: string[] = []
  const compiler = process.env['CXX'] || ['c++', 'g++', 'clang++'].find(runs)
  const probe = '#include <concepts>\n#include <span>\nstatic_assert(__cplusplus >= 202002L);\n'
  if (compiler === undefined || !runs(compiler)) problems.push('a C++20 compiler (package g++)')
  else if (
    spawnSync(compiler, ['-std=c++20', '-fsyntax-only', '-x', 'c++', '-'], { input: probe }).status !== 0
  )
    problems.push(`a compiler that knows C++20: ${compiler} does not (package g++, version 11 or later)`)
  const cmake = spawnSync('cmake', ['--version'], { encoding: 'utf8' })
  const [major = 0, minor = 0] = (/(\d+)\.(\d+)/.exec(cmake.stdout ?? '') ?? []).slice(1).map(Number)
  const [wantMajor, wantMinor] = cmake_version_min
  if (major < wantMajor || (major === wantMajor && minor < wantMinor))
    problems.push(`CMake ${wantMajor}.${wantMinor} or later (package cmake)`)
  if (!runs('ninja') && !runs('make')) problems.push('Ninja or make (package ninja-build)')
  return problems
}

const runs = (program: string): boolean => spawnSync(program, ['--version'], { stdio: 'ignore' }).status === 0

class BuildError extends Error {}

/** Rejects with the whole log; a build is only worth reading when it fails. */
function run(program: string, args: string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
    const log: Buffer[] = []
    child.stdout.on('data', (chunk: Buffer) => log.push(chunk))
    child.stderr.on('data', (chunk: Buffer) => log.push(chunk))
    child.on('error', reject)
    running = child
    child.on('close', (code) => {
      running = null
      if (stopping) process.exit(1)
      if (code === 0) resolve()
      else reject(new BuildError(`${Buffer.concat(log).toString()}\n${program} ${args.join(' ')} failed`))
    })
  })
}

async function configure(): Promise<void> {
  const known = existsSync(join(build, 'CMakeCache.txt'))
  const generator = known || !runs('ninja') ? [] : ['-G', 'Ninja']
  const args = ['-S', source, '-B', build, '-DCMAKE_BUILD_TYPE=Release', ...generator]
  try {
    await run('cmake', args)
  } catch (error) {
    if (!known) throw error
    // A cache of a folder that was moved, or of a compiler that is gone, is of no use.
    rmSync(build, { recursive: true, force: true })
    await configure()
  }
}

async function buildNative(): Promise<void> {
  const hash = sourceHash()
  if (isCurrent(hash)) return
  const problems = missing()
  if (problems.length > 0)
    throw new BuildError(
      `The native engine needs ${problems.join(', ')}. On Debian or Ubuntu: apt-get install g++ cmake ninja-build`,
    )
  const started = performance.now()
  process.stderr.write(
    existsSync(addon)
      ? 'native engine: building what changed ...\n'
      : 'native engine: building (the first time takes a minute or so) ...\n',
  )
  await configure()
  await run('cmake', ['--build', build, '--parallel', String(availableParallelism())])
  if (!existsSync(addon)) throw new BuildError(`The build went through but left no ${addon}`)
  writeFileSync(stamp, hash)
  process.stderr.write(`native engine: built in ${((performance.now() - started) / 1000).toFixed(1)} s\n`)
}

let running: ChildProcess | null = null
let stopping = false
// ninja runs each compiler in a group of its own and ends them when it is told to; killed, it would leave them.
process.on('SIGTERM', () => {
  stopping = true
  if (running === null) process.exit(1)
  running.kill('SIGTERM')
})
endWithParent('SIGTERM')
try {
  if (!isCurrent(sourceHash()))
    await exclusively(lock, buildNative, (pid) =>
      process.stderr.write(`native engine: process ${pid} is building it, waiting ...\n`),
    )
} catch (error) {
  process.stderr.write(`${error instanceof BuildError ? error.message : String(error)}\n`)
  process.exitCode = 1
}
