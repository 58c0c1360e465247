/**
 * The CUDA kernels and the engine on them, run on the CPU under the emulation with sanitizers: the quick part of what
 * `npm run test:emulation` runs whole. And what a build for GPUs must refuse.
 */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { beforeAll, describe, expect, it } from 'vitest'
import { parsePtxas, spilled, uncompiled } from '../../gpu-backend/ptxas.ts'

const build = join(import.meta.dirname, '../../gpu-backend/native/build')
const run = promisify(execFile)

describe('the kernels, emulated', () => {
  let report: string[]
  beforeAll(async () => {
    await run('cmake', ['--build', build, '--target', 'qe_cuda_tests']).catch((error: { stdout: string }) => {
      throw new Error(error.stdout)
    })
    const tests = join(build, 'ops/cuda/qe_cuda_tests')
    const { stdout } = await run(tests, ['emulation:', 'cuda:']).catch((failed: { stdout: string }) => failed)
    report = stdout.trim().split('\n')
  }, 600_000)

  it('every kernel agrees with its reference, and every planted bug is caught', () => {
    expect(report.filter((line) => !line.startsWith('ok '))).toEqual([
      expect.stringMatching(/^\d\d passed, 0 failed$/),
    ])
  })
})

describe('the report of ptxas', () => {
  const entry = '_ZN2qe4cuda58_GLOBAL__N__f07247d_7_gemm_cu_f9e5d02a11gemm_kernelILj4EEEvNS0_13GemmArgumentsE'
  const said = (target: string, spills: number) =>
    `ptxas info    : Compiling entry function '${entry}' for '${target}'\n` +
    `    0 bytes stack frame, ${spills} bytes spill stores, ${spills} bytes spill loads\n` +
    'ptxas info    : Used 64 registers, used 1 barriers, 16 bytes smem, 400 bytes cmem[0]\n'
  const both = parsePtxas(said('sm_80', 0) + said('sm_90a', 0))

  it('is read kernel by kernel', () => {
    expect(both).toEqual(
      ['sm_80', 'sm_90a'].map((target) => ({
        entry,
        name: 'gemm_kernel<4>',
        target,
        registers: 64,
        shared: 16,
        spilledBytes: 0,
      })),
    )
  })

  it('is refused for a spill, a target that is missing, PTX that is missing, and when it is empty', () => {
    const targets = ['sm_80', 'sm_90a']
    expect([...uncompiled(both, targets, new Set([entry])), ...spilled(both)]).toEqual([])
    expect(spilled(parsePtxas(said('sm_80', 8)))).toEqual(['gemm_kernel<4> spills 16 bytes for sm_80'])
    expect(uncompiled(parsePtxas(said('sm_80', 0)), targets, new Set([entry]))).toEqual([
      `${entry} was not compiled for sm_90a`,
    ])
    expect(uncompiled(both, targets, new Set())).toEqual([`${entry} is not there as PTX`])
    expect(uncompiled([], targets, new Set())).toEqual(['no kernel was compiled'])
  })
})
