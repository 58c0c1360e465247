/**
 * Loaded before the backend: gives it an addon whose engine fails as one on a lost GPU does (failing-addon.ts). That the
 * engine does so is proven in native/cuda_emulation_faults_test.cpp.
 */
import { registerHooks } from 'node:module'
import { pathToFileURL } from 'node:url'
import { join } from 'node:path'

const real = pathToFileURL(join(import.meta.dirname, '../../gpu-backend/native-addon.ts')).href

registerHooks({
  resolve(specifier, context, next) {
    const found = next(specifier, context)
    const own = context.parentURL === import.meta.url || context.parentURL?.endsWith('failing-addon.ts')
    return found.url === real && own !== true
      ? { ...found, url: new URL('failing-addon.ts', import.meta.url).href }
      : found
  },
})
