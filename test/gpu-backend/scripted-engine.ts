/** An engine without a model, for what the real one cannot be made to do: fail, fall silent, outrun its reader. */
import type { Engine, EngineEvent, EngineRequest } from '../../gpu-backend/engine.ts'

export interface Run {
  request: EngineRequest
  emitted: number
  over: boolean
  emit(event: EngineEvent): void
  tokens(...ids: number[]): void
  finish(reason: 'stop' | 'length' | 'cancelled' | 'deadline'): void
}

/** One token a millisecond, counting from 1, to max_tokens. */
export function counting(run: Run): void {
  const timer = setInterval(() => {
    if (!run.over) run.tokens(run.emitted + 1)
    if (run.emitted === run.request.sampling.max_tokens) run.finish('length')
    if (run.over) clearInterval(timer)
  }, 1)
}

export interface ScriptedEngine extends Engine {
  runs: Run[]
  cancels: number
}

export function scriptedEngine(script: (run: Run) => void = counting, contextLength = 8192): ScriptedEngine {
  const runs: Run[] = []
  const running = () => runs.filter(({ over }) => !over).length
  const engine = {
    runs,
    cancels: 0,
    model: { contextLength, vocabSize: 2304 },
    submit(request: EngineRequest, onEvent: (event: EngineEvent) => void): number {
      const run: Run = {
        request,
        emitted: 0,
        over: false,
        emit(event) {
          if (run.over) return
          if (event.type !== 'tokens') run.over = true
          onEvent(event)
        },
        tokens(...tokenIds) {
          run.emitted += tokenIds.length
          run.emit({ type: 'tokens', tokenIds })
        },
        finish: (reason) =>
          run.emit({
            type: 'finish',
            reason,
            usage: { prompt: request.tokenIds.length, cached: 0, completion: run.emitted },
            timing: { queue_ms: 1, prefill_ms: 2, decode_ms: 3 },
          }),
      }
      script(run)
      return runs.push(run) - 1
    },
    cancel(handle: number) {
      engine.cancels++
      setImmediate(() => runs[handle]?.finish('cancelled'))
    },
    stats: () => ({
      running: running(),
      waiting: 0,
      blocksUsed: running(),
      blocksTotal: 8,
      prefixQueries: 0,
      prefixHits: 0,
      preemptions: 0,
      draftedTokens: 0,
      acceptedTokens: 0,
      steps: 0,
      stepsAhead: 0,
    }),
    tenants: () => [],
    constrain: async () => ({ first: null, accept: () => undefined, close: () => undefined }),
    sleep: async () => undefined,
    wake: async () => undefined,
    checkIntegrity: () => undefined,
    close: async () => undefined,
  }
  return engine as unknown as ScriptedEngine
}
