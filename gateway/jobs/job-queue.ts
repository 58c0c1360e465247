/**
 * Which jobs may start. Those that come first do, but for keys that a limit holds back, and but for suspects: a job that was
 * under way more than once when its object died may be why, so it runs alone, to be told from its neighbours.
 */
import type { JobRow } from './job.ts'

export const running_max = 8
/** From this many interruptions on a job is a suspect; with as many as `interrupted_max` it is not run again. */
const suspect_min = 2
export const interrupted_max = 5

export interface Queue {
  now: number
  running: string[]
  /** Keys that a limit holds. */
  held: string[]
  suspects: ReadonlySet<string>
}

/** What was under way when the object died is queued again. @returns the suspects */
export function requeue(sql: SqlStorage): Set<string> {
  sql.exec("UPDATE jobs SET status = 'queued', interrupted = interrupted + 1 WHERE status = 'in_progress'")
  const suspects = "SELECT id FROM jobs WHERE status = 'queued' AND interrupted >= ?"
  return new Set(
    sql
      .exec<{ id: string }>(suspects, suspect_min)
      .toArray()
      .map(({ id }) => id),
  )
}

/**
 * Marks those that may start as under way.
 * `+ready_at`: by the index over seq, so that the first few are found without sorting all that wait.
 */
export function takeNext(sql: SqlStorage, { now, running, held, suspects }: Queue): JobRow[] {
  if (running.length >= running_max || running.some((id) => suspects.has(id))) return []
  const heldKeys = JSON.stringify(held)
  const ready = `status = 'queued' AND +ready_at <= ?1
    AND caller ->> '$.keyId' NOT IN (SELECT value FROM json_each(?2))`
  const first = `SELECT id FROM jobs WHERE id IN (SELECT value FROM json_each(?3)) AND ${ready} ORDER BY seq LIMIT 1`
  const [suspect] =
    suspects.size === 0
      ? []
      : sql.exec<{ id: string }>(first, now, heldKeys, JSON.stringify([...suspects])).toArray()
  // It waits for the others to end, and they for it.
  if (suspect !== undefined && running.length > 0) return []
  return sql
    .exec<JobRow>(
      `UPDATE jobs SET status = 'in_progress', attempt = attempt + 1, started_at = coalesce(started_at, ?1)
       WHERE seq IN (SELECT seq FROM jobs WHERE ${ready} AND id = coalesce(?3, id) ORDER BY seq LIMIT ?4) RETURNING *`,
      now,
      heldKeys,
      suspect?.id ?? null,
      running_max - running.length,
    )
    .toArray()
}
