/** What differs between two versions, leaf by leaf, each with its path as errors write it: `messages[0].content`. */
export interface Difference {
  path: string
  /** Absent on one side: it was added or removed. */
  before?: unknown
  after?: unknown
}

export function differences(before: unknown, after: unknown, path = ''): Difference[] {
  if (isTree(before) && isTree(after) && Array.isArray(before) === Array.isArray(after)) {
    const keys = new Set([...Object.keys(before), ...Object.keys(after)])
    return [...keys].flatMap((key) =>
      differences(
        before[key],
        after[key],
        Array.isArray(before) ? `${path}[${key}]` : path === '' ? key : `${path}.${key}`,
      ),
    )
  }
  if (JSON.stringify(before) === JSON.stringify(after)) return []
  return [
    {
      path,
      ...(before === undefined ? {} : { before }),
      ...(after === undefined ? {} : { after }),
    },
  ]
}

const isTree = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null
