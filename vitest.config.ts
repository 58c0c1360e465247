import { cloudflareTest } from '@cloudflare/vitest-plugin'
import { Response } from 'miniflare'
import { defineConfig } from 'vitest/config'

// wrangler takes the secrets that wrangler.toml requires from the environment.
Object.assign(process.env, {
  KEY_PEPPER: 'test-pepper',
  BACKEND_SECRET: 'test-secret',
  ADMIN_TOKEN: 'test-admin-token',
})

export default defineConfig({
  test: {
    reporters: ['default', './test/closing-line.ts'],
    projects: [
      {
        test: {
          name: 'node',
          include: ['test/{src,gateway,gpu-backend}/**/*.test.ts', 'test/*.test.ts'],
          exclude: ['**/*.workerd.test.ts'],
          testTimeout: 30_000,
        },
      },
      {
        plugins: [
          cloudflareTest({
            wrangler: { configPath: './wrangler.toml' },
            // What needs a backend is tested end to end; here whatever leaves the worker finds none.
            miniflare: { outboundService: () => new Response('no backend here', { status: 502 }) },
          }),
        ],
        test: { name: 'workerd', include: ['test/gateway/**/*.workerd.test.ts'], testTimeout: 30_000 },
      },
      {
        test: {
          name: 'e2e',
          include: ['test/e2e/**/*.test.ts'],
          testTimeout: 60_000,
          hookTimeout: 240_000,
          fileParallelism: false,
        },
      },
    ],
  },
})
