/** The build script over a small project of its own: it builds what changed, once, and explains what it lacks. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, it } from 'vitest'

const root = mkdtempSync(join(tmpdir(), 'qwen-edge-build-'))
afterAll(() => rmSync(root, { recursive: true }))
const backend = join(root, 'gpu-backend')
const addon = join(backend, 'native/build/qwen2_edge.node')
for (const name of ['build-native.ts', 'exclusive.ts', 'parent.ts'])
  cpSync(join(import.meta.dirname, '../../gpu-backend', name), join(backend, name))
mkdirSync(join(backend, 'native'))
writeFileSync(join(root, 'package.json'), '{"type":"module"}')

const script = join(backend, 'build-native.ts')
writeFileSync(
  join(backend, 'native/CMakeLists.txt'),
  'cmake_minimum_required(VERSION 3.20)\nproject(x NONE)\n' +
    'add_custom_target(addon ALL COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/make.sh)\n',
)
const source = (shell: string) => writeFileSync(join(backend, 'native/make.sh'), shell)
const writes = (text: string) => `echo ${text} >> ${addon}`
const build = (env: Record<string, string> = {}) =>
  spawnSync(process.execPath, [script], { encoding: 'utf8', env: { ...process.env, ...env } })

it('builds the first time, then only what changed', () => {
  source(writes('one'))
  const first = build()
  expect(first.stderr).toMatch(/^native engine: building .*\nnative engine: built in [\d.]+ s\n$/)
  expect(first.status).toBe(0)

  expect(build()).toMatchObject({ status: 0, stdout: '', stderr: '' })
  expect(readFileSync(addon, 'utf8')).toBe('one\n')

  source(writes('two'))
  expect(build().status).toBe(0)
  expect(readFileSync(addon, 'utf8')).toBe('one\ntwo\n')
})

it('builds once when two ask for it at the same time', async () => {
  source(`sleep 0.5; ${writes('three')}`)
  const children = [1, 2].map(() => spawn(process.execPath, [script], { stdio: 'ignore' }))
  expect(await Promise.all(children.map((child) => once(child, 'exit')))).toEqual([
    [0, null],
    [0, null],
  ])
  expect(readFileSync(addon, 'utf8').match(/three/g)).toHaveLength(1)
})

it('shows the log of a build that failed, and tries again the next time', () => {
  source('echo the reason; exit 3')
  for (let i = 0; i < 2; i++) {
    const failed = build()
    expect(failed.status).toBe(1)
    expect(failed.stderr).toContain('the reason')
  }
})

it.each([
  ['nothing at all', [], /C\+\+20 compiler \(package g\+\+\), CMake 3\.20 .*, Ninja or make/],
  ['a compiler alone', ['c++', 'g++', 'as', 'ld'], /needs CMake 3\.20 or later \(package cmake\), Ninja/],
  ['no compiler', ['cmake', 'ninja'], /needs a C\+\+20 compiler \(package g\+\+\)\. /],
])('on a machine with %s it names the package in one line', (_, tools, message) => {
  source(writes('never'))
  const path = mkdtempSync(join(root, 'path-'))
  for (const tool of tools) {
    const found = spawnSync('which', [tool], { encoding: 'utf8' }).stdout.trim()
    if (found !== '') symlinkSync(found, join(path, tool))
  }
  const { status, stderr } = build({ PATH: path, CXX: '' })
  expect(status).toBe(1)
  expect(stderr.trim().split('\n')).toHaveLength(1)
  expect(stderr).toMatch(message)
  expect(stderr).toContain('apt-get install g++ cmake ninja-build')
})
