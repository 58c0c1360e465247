/**
 * `npm run build:cuda`: compiles the engine for NVIDIA GPUs into native/build-cuda, on a machine with or without one.
 *
 * Needs CUDA 13's nvcc (CUDACXX, then PATH); where there is none, brings NVIDIA's Python packages of it into
 * native/build-cuda/toolkit, which git ignores. Prints registers and spills of every kernel and target, and ends with
 * status 1 unless each kernel compiled for each target, as PTX too, without a warning and without spilling a register.
 * With `--tests` it compiles the device's tests and benchmark, too.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { bringPackages } from './python-packages.ts'
import { parsePtxas, spilled, uncompiled, type KernelReport } from './ptxas.ts'

const source = join(import.meta.dirname, 'native')
const build = join(source, 'build-cuda')
const toolkit = join(build, 'toolkit')
const objects = join(build, 'ops/cuda/CMakeFiles/qe_kernels.dir')
const targets = ['sm_80', 'sm_90a'] as const

/** NVIDIA's compiler, as it comes apart on the Python package index. */
const packages = [
  'nvidia-cuda-nvcc==13.5.37',
  'nvidia-cuda-crt==13.5.37',
  'nvidia-cuda-runtime==13.5.37',
  'nvidia-nvvm==13.5.37',
  'nvidia-cuda-cccl==13.3.5.0.6',
]

class BuildError extends Error {}

function run(program: string, args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 2 ** 28 })
  if (error !== undefined) throw new BuildError(`${program}: ${error.message}`)
  if (status !== 0) throw new BuildError(`${stdout}${stderr}\n${program} ${args.join(' ')} failed`)
  return stdout + stderr
}

const isRecent = (nvcc: string): boolean => {
  const { stdout } = spawnSync(nvcc, ['--version'], { encoding: 'utf8' })
  return Number(/release (\d+)\./.exec(stdout ?? '')?.[1] ?? 0) >= 13
}

function findNvcc(): string {
  const installed = [process.env['CUDACXX'], 'nvcc', '/usr/local/cuda/bin/nvcc']
  const found = installed.find((nvcc) => nvcc !== undefined && nvcc !== '' && isRecent(nvcc))
  if (found !== undefined) return found
  const brought = join(toolkit, 'nvidia/cu13/bin/nvcc')
  if (!isRecent(brought)) {
    process.stderr.write('cuda: no nvcc of CUDA 13 here; bringing it from its Python packages (130 MB) ...\n')
    bringPackages(toolkit, packages, ['--no-deps'])
  }
  return brought
}

function compile(nvcc: string): KernelReport[] {
  const ninja = spawnSync('ninja', ['--version']).status === 0 ? ['-G', 'Ninja'] : []
  const cache = join(build, 'CMakeCache.txt')
  if (existsSync(cache) && !readFileSync(cache, 'utf8').includes(`=${nvcc}\n`)) rmSync(cache)
  const type = ['-DCMAKE_BUILD_TYPE=Release', '-DQE_CUDA=ON', `-DCMAKE_CUDA_COMPILER=${nvcc}`]
  run('cmake', ['-S', source, '-B', build, ...ninja, ...type])
  // Every time: what ptxas says comes with the compilation alone.
  rmSync(objects, { recursive: true, force: true })
  const jobs = String(availableParallelism())
  const report = run('cmake', ['--build', build, '--target', 'qe_kernels', '--parallel', jobs])
  run('cmake', ['--build', build, '--parallel', jobs])
  // What gpu-check builds on a machine with a GPU.
  if (process.argv.includes('--tests'))
    run('cmake', ['--build', build, '--parallel', jobs, '--target', 'qe_cuda_tests', 'qe_gpu_bench'])
  return parsePtxas(report)
}

/** The PTX lies in the objects as text, uncompressed. */
function entriesInPtx(): Set<string> {
  const names = new Set<string>()
  for (const file of readdirSync(objects, { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.o'),
  ))
    for (const [, name] of readFileSync(join(objects, file), 'latin1').matchAll(/\.entry ([A-Za-z0-9_$]+)/g))
      names.add(name ?? '')
  return names
}

try {
  const started = performance.now()
  mkdirSync(build, { recursive: true })
  const nvcc = findNvcc()
  const kernels = compile(nvcc)
  const names = kernels.map(({ name, target, registers, shared, spilledBytes }) => ({
    kernel: name,
    target,
    registers,
    'shared bytes': shared,
    'spilled bytes': spilledBytes,
  }))
  console.table(names)
  writeFileSync(join(build, 'kernels.json'), JSON.stringify(kernels, null, 1))
  const problems = [...uncompiled(kernels, targets, entriesInPtx()), ...spilled(kernels)]
  if (problems.length > 0) throw new BuildError(problems.join('\n'))
  const size = (statSync(join(build, 'qwen2_edge.node')).size / 1e6).toFixed(1)
  const took = ((performance.now() - started) / 1000).toFixed(0)
  const count = new Set(kernels.map(({ entry }) => entry)).size
  console.log(
    `cuda: ${count} kernels for ${targets.join(', ')} and PTX, none spills; addon of ${size} MB; ${took} s`,
  )
} catch (error) {
  process.stderr.write(`${error instanceof BuildError ? error.message : String(error)}\n`)
  process.exitCode = 1
}
