import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'

const tracked = execFileSync('git', ['ls-files', '-z'], { encoding: 'utf8' }).split('\0').filter(Boolean)
const sources = tracked.filter(
  (file) => /\.(ts|cpp|h|cu|cuh)$/.test(file) && !file.endsWith('.d.ts') && !file.startsWith('test/'),
)
const lines_max = 400

describe('the tree', () => {
  it('has no source file of two ideas: 400 lines at most', () => {
    const long = sources
      .map((file) => [file, readFileSync(file, 'utf8').split('\n').length] as const)
      .filter(([, n]) => n > lines_max)
    expect(long).toEqual([])
  })

  it('shares nothing by barrels or rooms named utils', () => {
    expect(sources.filter((file) => /(^|\/)(utils?|helpers?|common|misc)(\/|\.)/.test(file))).toEqual([])
  })

  it('leaves nothing unfinished', () => {
    const marks = /\b(TODO|FIXME|XXX)\b/
    expect(sources.filter((file) => marks.test(readFileSync(file, 'utf8')))).toEqual([])
  })

  it('runs every test that it has', () => {
    const tests = tracked.filter((file) => file.endsWith('.test.ts') && file !== 'test/tidy.test.ts')
    expect(
      tests.filter((file) => /\b(it|test|describe)\.(skip|only|todo)\b/.test(readFileSync(file, 'utf8'))),
    ).toEqual([])
  })
})

/** Each rule must fire where it is broken; a rule that never fires guards nothing. */
describe('the dependency rules fire on a planted violation', () => {
  const planted: [file: string, text: string, rule: string][] = [
    ['src/planted.ts', "import fs from 'node:fs'\nexport const x = fs\n", 'no-restricted-imports'],
    [
      'src/planted.ts',
      "import { DurableObject } from 'cloudflare:workers'\nexport const x = DurableObject\n",
      'no-restricted-imports',
    ],
    [
      'src/planted.ts',
      "import { count } from '../gateway/limits/count.ts'\nexport const x = count\n",
      'no-restricted-imports',
    ],
    [
      'gateway/planted.ts',
      "import type { Engine } from '../gpu-backend/engine.ts'\nexport type X = Engine\n",
      'no-restricted-imports',
    ],
    [
      'gpu-backend/planted.ts',
      "import { count } from '../gateway/limits/count.ts'\nexport const x = count\n",
      'no-restricted-imports',
    ],
    [
      'gateway/planted.ts',
      'const work = async (): Promise<void> => undefined\nwork()\n',
      'no-floating-promises',
    ],
    ['gateway/planted.ts', 'export const x: any = 1\n', 'no-explicit-any'],
    ['src/planted.ts', 'export const x = (list: number[]): number => list[0]!\n', 'no-non-null-assertion'],
  ]
  const files = new Set(planted.map(([file]) => file))
  afterAll(() => files.forEach((file) => rmSync(file, { force: true })))

  it.each(planted)('%s: %j', (file, text, rule) => {
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, text)
    const { stdout, status } = spawnSync('oxlint', ['--type-aware', file], { encoding: 'utf8' })
    rmSync(file)
    expect(stdout).toContain(rule)
    expect(status).not.toBe(0)
  })
})

describe('tables may get columns (gateway/schema.ts)', () => {
  const unnamed = /INSERT( OR \w+)? INTO \w+\s+(VALUES|SELECT)/
  it('so every INSERT names its own', () => {
    expect(sources.filter((file) => unnamed.test(readFileSync(file, 'utf8')))).toEqual([])
  })

  it('and the rule fires on a planted violation', () => {
    expect('INSERT OR IGNORE INTO t VALUES (?)').toMatch(unnamed)
    expect('INSERT INTO t (a) VALUES (?)').not.toMatch(unnamed)
  })
})

/** What a room of the native engine may include; std headers are free. */
const nativeRooms: Record<string, RegExp> = {
  cache: /^(base|cache)\//,
  scheduler: /^(base|cache|scheduler|sampler)\//,
  sampler: /^(base|sampler)\//,
  checkpoint: /^(base|checkpoint)\//,
  model: /^(base|checkpoint|model|ops)\//,
  engine: /^(base|cache|checkpoint|engine|model|ops|sampler|scheduler)\//,
}
const forbiddenHeader = /^(napi\.h|node_api\.h|cuda.*\.h|cublas.*\.h)$/

function wrongIncludes(room: string, text: string): string[] {
  const included = [...text.matchAll(/^#include ([<"])([^>"]+)[>"]/gm)]
  return included
    .filter(
      ([, kind, header = '']) =>
        forbiddenHeader.test(header) || (kind === '"' && !nativeRooms[room]?.test(header)),
    )
    .map(([line]) => line)
}

describe('the native engine includes in one direction', () => {
  it.each(Object.keys(nativeRooms))('%s', (room) => {
    const files = sources.filter((file) => file.startsWith(`gpu-backend/native/${room}/`))
    expect(files.length).toBeGreaterThan(0)
    expect(files.flatMap((file) => wrongIncludes(room, readFileSync(file, 'utf8')))).toEqual([])
  })

  it('and the rule fires on a planted violation', () => {
    const planted =
      '#include <vector>\n#include <napi.h>\n#include "model/qwen2.h"\n#include "cache/block_pool.h"\n'
    expect(wrongIncludes('cache', planted)).toEqual(['#include <napi.h>', '#include "model/qwen2.h"'])
  })
})
