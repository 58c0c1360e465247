/**
 * Makes the worker ready for its host: the bundle, and what wrangler.toml says of bindings, as wrangler itself reads
 * it, so that nothing is listed twice. A step of its own, because a host that was killed must be back within two
 * seconds, and wrangler alone takes a second to load.
 * Usage: build-worker.ts MODEL_FOLDER OUT_FOLDER
 */
import { writeFileSync, mkdirSync, copyFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { build, type Plugin } from 'esbuild'
import { unstable_getMiniflareWorkerOptions } from 'wrangler'
import { endWithParent } from './parent.ts'
import { root } from './settings.ts'

endWithParent()

const [modelDir = '', out = ''] = process.argv.slice(2)
mkdirSync(out, { recursive: true })

/** The model of this start, which need not be the one in gateway/model; binary files become data modules. */
const model: Plugin = {
  name: 'model',
  setup(build) {
    build.onResolve({ filter: /\/model\/card\.json$/ }, () => ({ path: join(modelDir, 'card.json') }))
    build.onResolve({ filter: /\.bin$/ }, ({ path }) => {
      copyFileSync(join(modelDir, basename(path)), join(out, basename(path)))
      return { path: `./${basename(path)}`, external: true }
    })
  },
}

const { workerOptions, externalWorkers, main, define } = unstable_getMiniflareWorkerOptions(
  join(root, 'wrangler.toml'),
)
await build({
  entryPoints: [main ?? join(root, 'gateway/index.ts')],
  outfile: join(out, 'index.js'),
  bundle: true,
  format: 'esm',
  target: 'es2024',
  conditions: ['workerd', 'worker', 'browser'],
  mainFields: ['browser', 'module', 'main'],
  external: ['cloudflare:*', 'node:*'],
  define,
  sourcemap: 'linked',
  logLevel: 'warning',
  plugins: [model],
})
writeFileSync(join(out, 'options.json'), JSON.stringify({ workerOptions, externalWorkers }))
