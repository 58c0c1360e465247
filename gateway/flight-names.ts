/**
 * Which object holds a flight. A tenant has a fixed few, so that they stay warm: a new object for each miss would add
 * its creation to it. A generation's id names its object, so that it is found again without a directory.
 */
export const flight_objects = 8

/** Of a generation that runs in the gateway itself, for one caller. */
const direct = 'd'

export const flightsOf = (env: Env, tenantId: string, shard: number) =>
  env.FLIGHT.getByName(`${tenantId}/${shard}`)

export const shardOfHash = (hash: string) => Number.parseInt(hash.slice(0, 4), 16) % flight_objects
export const anyShard = () => Math.floor(Math.random() * flight_objects)

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
