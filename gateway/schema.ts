/**
 * The tables of an object, brought up to date when it wakes. Each step takes them one version on and runs once, in one
 * transaction with the note that it did; a step that was published never changes, a change is a new step at the end.
 * The first is CREATE ... IF NOT EXISTS, since deployments from before this note have their tables already. What a step
 * adds must do without a value, and every INSERT names its columns: so the version before still runs after a rollback.
 *
 * @param name of these tables within the object; several parts of one have their own.
 */
export function migrate(storage: DurableObjectStorage, name: string, steps: readonly string[]): void {
  const key = `schema:${name}`
  const version = storage.kv.get<number>(key) ?? 0
  if (version >= steps.length) return
  storage.transactionSync(() => {
    for (const step of steps.slice(version)) storage.sql.exec(step)
    storage.kv.put(key, steps.length)
  })
}
