import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { unstable_readConfig } from 'wrangler'
import { describe, expect, it } from 'vitest'

const read = (env?: string) =>
  unstable_readConfig({ config: 'wrangler.toml', ...(env ? { env } : {}) }, { hideWarnings: true })

/** Bindings are not inherited: what development has and production lacks fails only once it is deployed. */
describe('wrangler.toml', () => {
  const [development, production] = [read(), read('production')]

  it('binds in production everything that it binds in development', () => {
    const names = (config: typeof development) => ({
      vars: Object.keys(config.vars),
      secrets: config.secrets?.required,
      kv: config.kv_namespaces.map((kv: { binding: string }) => kv.binding),
      r2: config.r2_buckets.map((bucket: { binding: string }) => bucket.binding),
      objects: config.durable_objects.bindings.map((object: { name: string; class_name: string }) => [
        object.name,
        object.class_name,
      ]),
    })
    expect(names(production)).toEqual(names(development))
  })

  it('keeps what is for development alone out of production', () => {
    expect(production.vars).toMatchObject({ ENVIRONMENT: 'production', DEV_KEY: '' })
    expect(production.workers_dev).toBe(false)
  })

  it('lets a client that goes away stop its generation', () => {
    expect(production.compatibility_flags).toEqual(
      expect.arrayContaining(['enable_request_signal', 'request_signal_passthrough']),
    )
  })

  it.each(['', 'production'])(
    'publishes, as far as a dry run goes: --env "%s"',
    { timeout: 120_000 },
    (env) => {
      const out = mkdtempSync(join(tmpdir(), 'qwen-edge-deploy-'))
      const { status, stdout, stderr } = spawnSync(
        'wrangler',
        ['deploy', '--dry-run', '--env', env, '--outdir', out],
        {
          encoding: 'utf8',
          env: { ...process.env, WRANGLER_SEND_METRICS: 'false' },
        },
      )
      rmSync(out, { recursive: true })
      expect(stderr).not.toContain('ERROR')
      expect([status, stdout]).toEqual([0, expect.stringMatching(/Total Upload: .* gzip: [\d.]+ KiB/)])
    },
  )
})
