/** The addon, whose engine loses its device at the second request. */
import { loadAddon as load, type NativeAddon, type NativeEngine } from '../../gpu-backend/native-addon.ts'

export type * from '../../gpu-backend/native-addon.ts'

const message = 'CUDA: the step: an illegal memory access was encountered'
const failure = 2

function losing(engine: NativeEngine, wake: () => void): NativeEngine {
  const handles: number[] = []
  const records: number[] = []
  return {
    submit() {
      handles.push(handles.length + 1)
      if (handles.length === 2)
        setImmediate(() => {
          for (const handle of [...handles, 0]) records.push(failure, handle, 0)
          wake()
        })
      return handles.length
    },
    drain: () => ({ records: Float64Array.from(records.splice(0)), messages: [message] }),
    cancel() {},
    mask() {},
    keepAlive: (yes) => engine.keepAlive(yes),
    stats: () => engine.stats(),
    tenants: () => engine.tenants(),
    info: () => engine.info(),
    logits: (tokenIds, chunk) => engine.logits(tokenIds, chunk),
    checkIntegrity: () => engine.checkIntegrity(),
    close: () => engine.close(),
  }
}

export function loadAddon(): NativeAddon {
  const addon = load()
  return {
    ...addon,
    async open(options, wake) {
      return losing(await addon.open(options, wake), wake)
    },
  }
}
