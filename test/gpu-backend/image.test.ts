/** gpu-backend/Dockerfile installs no development dependencies and copies folders by name. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { isBuiltin } from 'node:module'
import { join } from 'node:path'
import { expect, it } from 'vitest'

const root = join(import.meta.dirname, '../..')
const sources = [
  ...readdirSync(join(root, 'gpu-backend'))
    .filter((name) => name.endsWith('.ts') && !name.endsWith('.d.ts'))
    .map((name) => join('gpu-backend', name)),
  ...readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => join('src', name)),
]

it('finds every package that the backend imports among the dependencies', () => {
  const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>
  }
  const imported = new Set<string>()
  for (const source of sources)
    for (const [, name] of readFileSync(join(root, source), 'utf8').matchAll(
      /(?:from|import)[ (]'((?:@[\w-]+\/)?\w[\w.-]*)[^']*'/g,
    ))
      if (name !== undefined && name !== 'node') imported.add(name)
  expect(imported.size).toBeGreaterThan(4)
  expect([...imported].filter((name) => !isBuiltin(name) && !(name in dependencies))).toEqual([])
})

it('copies what exists', () => {
  const dockerfile = readFileSync(join(root, 'gpu-backend/Dockerfile'), 'utf8')
  const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(([, list]) =>
    list!.split(' '),
  )
  expect(copied.length).toBeGreaterThan(4)
  for (const path of copied) expect(existsSync(join(root, path.replace('/*.ts', '')))).toBe(true)
})
