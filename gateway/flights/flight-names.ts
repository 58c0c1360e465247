/**
 * Which object holds a flight. A tenant has a fixed few, so that they stay warm: a new object for each miss would add
 * its creation to it. A generation's id names its object, so that it is found again without a directory.
 */
import type { Prompt } from '../chat/prompt.ts'

export const flight_objects = 8

/** Of a generation that runs in the gateway itself, for one caller. */
const direct = 'd'

export const flightsOf = (env: Env, tenantId: string, shard: number) =>
  env.FLIGHT.getByName(`${tenantId}/${shard}`)

/** Identical prompts come to the same object. */
export const shardOfPrompt = ({ tokenIds, sampling }: Prompt) => fnv1a([...tokenIds, sampling.seed ?? 0])
export const shardOfText = (text: string) => fnv1a([...new TextEncoder().encode(text)])

function fnv1a(numbers: number[]): number {
  let hash = 0x811c9dc5
  for (const number of numbers) hash = Math.imul(hash ^ number, 0x01000193)
  return (hash >>> 8) % flight_objects
}

/** `gen_`, one character for its object, 32 hex. @param shard null: it runs without one. */
export const generationId = (shard: number | null) =>
  `gen_${shard ?? direct}${crypto.randomUUID().replaceAll('-', '')}`

/** undefined: no generation has such an id. */
export function shardOf(id: string): number | null | undefined {
  const at = /^gen_([0-7d])[0-9a-f]{32}$/.exec(id)?.[1]
  if (at === undefined) return undefined
  return at === direct ? null : Number(at)
}

/** How the backend knows it: another tenant's caller who learns an id cannot cancel by it. */
export const wireId = (tenantId: string, id: string) => `${id}.${tenantId}`
