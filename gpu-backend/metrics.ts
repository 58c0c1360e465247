/**
 * Prometheus metrics under vLLM's names (https://docs.vllm.ai/en/latest/usage/metrics.html), so that dashboards,
 * autoscalers and routers made for it work here.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { Engine, TenantStats } from './engine.ts'
import type { Observer, Outcome } from './generations.ts'

const fine_s = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5]
const coarse_s = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640]
const tokens = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000]

export interface Metrics extends Observer {
  contentType: string
  text(): Promise<string>
}

export function createMetrics(model_name: string, engine: () => Engine | null): Metrics {
  const registry = new Registry()
  registry.setDefaultLabels({ model_name })
  const registers = [registry]
  const counter = (name: string, help: string) => new Counter({ name: `vllm:${name}`, help, registers })
  const histogram = (name: string, help: string, buckets: number[]) =>
    new Histogram({ name: `vllm:${name}`, help, buckets, registers })

  const promptTokens = counter('prompt_tokens_total', 'Prompt tokens of ended requests, cached ones included')
  const generationTokens = counter('generation_tokens_total', 'Tokens generated')
  const success = new Counter({
    name: 'vllm:request_success_total',
    help: 'Ended requests by reason',
    labelNames: ['finished_reason'],
    registers,
  })
  const ttft = histogram('time_to_first_token_seconds', 'From arrival to the first token', coarse_s)
  const itl = histogram('inter_token_latency_seconds', 'Between two tokens of a request', fine_s)
  const perToken = histogram(
    'request_time_per_output_token_seconds',
    'Mean between the tokens of a request',
    fine_s,
  )
  const latency = histogram('e2e_request_latency_seconds', 'From arrival to the end', coarse_s)
  const queue = histogram('request_queue_time_seconds', 'Waiting to be scheduled', coarse_s)
  const prefill = histogram('request_prefill_time_seconds', 'Prefill', coarse_s)
  const decode = histogram('request_decode_time_seconds', 'Decode', coarse_s)
  const requestPrompt = histogram('request_prompt_tokens', 'Prompt tokens of a request', tokens)
  const requestGeneration = histogram('request_generation_tokens', 'Tokens a request generated', tokens)

  const readEngine = engineMetrics(registry, engine)
  return {
    contentType: registry.contentType,
    async text() {
      readEngine()
      return registry.metrics()
    },
    firstTokens(seconds, count) {
      ttft.observe(seconds)
      generationTokens.inc(count)
      for (let i = 1; i < count; i++) itl.observe(0)
    },
    nextTokens(seconds, count) {
      generationTokens.inc(count)
      for (let i = 0; i < count; i++) itl.observe(seconds / count)
    },
    ended(outcome) {
      success.inc({ finished_reason: reason(outcome) })
      promptTokens.inc(outcome.usage.prompt)
      latency.observe(outcome.total_ms / 1000)
      requestPrompt.observe(outcome.usage.prompt)
      requestGeneration.observe(outcome.usage.completion)
      if (outcome.timing === null) return
      queue.observe(outcome.timing.queue_ms / 1000)
      prefill.observe(outcome.timing.prefill_ms / 1000)
      decode.observe(outcome.timing.decode_ms / 1000)
      const steps = outcome.usage.completion - 1
      if (steps > 0) perToken.observe(outcome.timing.decode_ms / 1000 / steps)
    },
  }
}

/** vLLM calls every request that did not come to its own end `abort`. */
const reason = ({ finish }: Outcome): string =>
  finish === 'cancelled' || finish === 'deadline' ? 'abort' : finish

/** The engine keeps its own counts; they are read when somebody asks. */
function engineMetrics(registry: Registry, engine: () => Engine | null): () => void {
  const registers = [registry]
  const gauge = (name: string, help: string) => new Gauge({ name: `vllm:${name}`, help, registers })
  const running = gauge('num_requests_running', 'Requests being computed')
  const waiting = gauge('num_requests_waiting', 'Requests waiting to be scheduled')
  const usage = gauge('kv_cache_usage_perc', 'Share of the KV blocks in use, 1 is all')
  const byTenant = tenantCounters(registers)
  const followed = [
    follow('vllm:prefix_cache_queries_total', 'Prompt tokens looked up in the prefix cache'),
    follow('vllm:prefix_cache_hits_total', 'Prompt tokens found in the prefix cache'),
    follow('vllm:num_preemptions_total', 'Requests put back to free their blocks'),
    follow('vllm:spec_decode_num_draft_tokens_total', 'Tokens guessed ahead'),
    follow('vllm:spec_decode_num_accepted_tokens_total', 'Tokens guessed ahead that were right'),
    follow('qwen2_edge:steps_total', 'Steps the engine computed'),
    follow('qwen2_edge:steps_ahead_total', 'Steps launched before the tokens of the step before were read'),
  ] as const

  /** A counter that takes over a total counted elsewhere. */
  function follow(name: string, help: string): (total: number) => void {
    const counter = new Counter({ name, help, registers })
    let seen = 0
    return (total) => {
      counter.inc(Math.max(0, total - seen))
      seen = total
    }
  }

  return () => {
    const stats = engine()?.stats()
    if (stats === undefined) return
    running.set(stats.running)
    waiting.set(stats.waiting)
    usage.set(stats.blocksTotal === 0 ? 0 : stats.blocksUsed / stats.blocksTotal)
    followed[0](stats.prefixQueries)
    followed[1](stats.prefixHits)
    followed[2](stats.preemptions)
    followed[3](stats.draftedTokens)
    followed[4](stats.acceptedTokens)
    followed[5](stats.steps)
    followed[6](stats.stepsAhead)
    byTenant(engine()?.tenants() ?? [])
  }
}

/** Ours: vLLM counts no tenants. The label is the salt the gateway sent; '' is the operator's shared text. */
function tenantCounters(registers: Registry[]): (tenants: TenantStats[]) => void {
  const counters = (['queries', 'hits', 'evictions'] as const).map((what) => {
    const name = `qwen2_edge:prefix_cache_${what}_total`
    const unit = what === 'evictions' ? 'Blocks evicted' : `Prompt tokens: ${what}`
    return {
      what,
      counter: new Counter({ name, help: `${unit}, by tenant`, labelNames: ['salt'], registers }),
    }
  })
  return (tenants) => {
    for (const { what, counter } of counters) {
      // Anew each time: the engine names the tenants that came last, and the others' series end.
      counter.reset()
      for (const { salt, ...totals } of tenants) counter.inc({ salt }, totals[what])
    }
  }
}
