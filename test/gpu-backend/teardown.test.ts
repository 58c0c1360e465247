import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

it('a thread may end while its engine computes, is closed or is opened, and the process goes on', async () => {
  const threads = join(import.meta.dirname, 'teardown-threads.ts')
  await expect(promisify(execFile)(process.execPath, [threads])).resolves.toEqual({ stdout: '', stderr: '' })
}, 60_000)
