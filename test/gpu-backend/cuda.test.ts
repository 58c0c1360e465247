/**
 * The CUDA kernels and the engine on them, run on the CPU under the emulation with sanitizers: the quick part of what
 * `npm run test:emulation` runs whole. And what a build for GPUs must refuse.
 */
import { execFile } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
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

describe('gpu-check, where there is no GPU', () => {
  const script = join(build, '../gpu-check')
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'gpu-check-'))
    // A sanitizer that refuses the one tool, and runs what it is given with the other.
    const sanitizer =
      '#!/bin/sh\n[ $2 = memcheck ] && { echo "Device not supported"; exit 1; }\nshift 4; exec "$@"\n'
    await writeFile(join(folder, 'compute-sanitizer'), sanitizer, { mode: 0o755 })
  })
  afterAll(() => rm(folder, { recursive: true }))

  const check = (args: string[], TESTS: string) =>
    run(script, args, {
      env: {
        ...process.env,
        PATH: `${folder}:${process.env['PATH']}`,
        DEVICE: 'emulation',
        BUILD: build,
        RESULTS: folder,
        WEIGHTS: folder,
        TESTS,
      },
    })

  it('goes through all its stages, and leaves the figures with lengths and bounds', async () => {
    const { stdout } = await check([], "cuda: the shared expert's gate")
    const stages = [...stdout.matchAll(/^\{"stage": "(.+)", "result": "(.+?)"/gm)].map(
      ([, ...found]) => found,
    )
    expect(stages).toEqual([
      ['build', 'passed'],
      ['test', 'passed'],
      ['memcheck', 'skipped: it refuses this device'],
      ['racecheck', 'passed'],
      ['bench tiny', 'passed'],
      ['transformers tiny', 'passed'],
    ])
    const left = (await readdir(folder)).filter((name) => name !== 'compute-sanitizer')
    expect(left).toEqual([expect.stringMatching(/^emulation-tiny-.*\.json$/)])
    const { rows } = JSON.parse(await readFile(join(folder, left[0]!), 'utf8')) as { rows: object[] }
    const figures = (what: string, batch: number, prompt: number, output: number) =>
      expect.objectContaining({
        what,
        engine: 'qwen2-edge',
        batch,
        prompt,
        output,
        bound: expect.any(Number),
      })
    expect(rows.slice(0, 6)).toEqual([
      figures('load', 0, 0, 0),
      figures('decode', 1, 16, 4),
      figures('decode', 2, 16, 4),
      figures('prefill', 1, 32, 1),
      figures('ttft cold', 1, 48, 1),
      figures('ttft warm', 1, 48, 1),
    ])
    // With torch: its rows; without: why not.
    expect(rows[6]).toMatchObject({ engine: 'transformers' })
  }, 300_000)

  it('fails where its tests do', async () => {
    const failed = (await check(['test'], 'no such test').catch((error: unknown) => error)) as {
      stdout: string
    }
    expect(failed).toMatchObject({ code: 1, stdout: expect.stringContaining('"test", "result": "FAILED"') })
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
