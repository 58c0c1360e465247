/**
 * The C++ tests (test/gpu-backend/native), built beside the addon and run. By hand, with a name's part to choose:
 *   cmake --build gpu-backend/native/build --target qe_tests && gpu-backend/native/build/qe_tests scheduler
 * `qe_tests soak` runs the random interleavings of 10,000 steps that are left out otherwise.
 * Under sanitizers, from gpu-backend/native: cmake --preset asan-ubsan && cmake --build --preset asan-ubsan (or tsan).
 */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { beforeAll, expect, it } from 'vitest'

const build = join(import.meta.dirname, '../../gpu-backend/native/build')
const run = promisify(execFile)

let report: string[]
beforeAll(async () => {
  await run('cmake', ['--build', build, '--target', 'qe_tests']).catch((error: { stdout: string }) => {
    throw new Error(error.stdout)
  })
  const { stdout } = await run(join(build, 'qe_tests'), []).catch((failed: { stdout: string }) => failed)
  report = stdout.trim().split('\n')
}, 400_000)

it('every native test passes', () => {
  expect(report.filter((line) => !line.startsWith('ok '))).toEqual([
    expect.stringMatching(/^\d\d+ passed, 0 failed$/),
  ])
})
