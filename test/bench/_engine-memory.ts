/** A process of its own: opens the engine, fills its KV memory, prints the MB it holds beyond weights and KV. */
import { readFileSync } from 'node:fs'
import { openEngine } from '../../gpu-backend/engine.ts'
import { ask } from './_engine-load.ts'

const [, , modelDir = '', weights] = process.argv
const kv_mb = 100
const engine = await openEngine({
  modelDir,
  device: 'cpu',
  speculate: false,
  kvMemoryMb: kv_mb,
  ...(weights === 'int8' ? { weights } : {}),
})
const { blocksTotal, blockSize, parameters, weightBytes } = engine.model
await ask(engine, blocksTotal * blockSize - 16, 1)
await Promise.all(Array.from({ length: 8 }, () => ask(engine, 16, 8)))
const held = (Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024) / 1e6
const ofWeights = weights === 'int8' ? parameters * (1 + 4 / 128) : weightBytes
process.stdout.write(String(held - ofWeights / 1e6 - kv_mb))
await engine.close()
