/** What `ptxas -v` says of each kernel, and what of it a build must not accept. */
export interface KernelReport {
  /** The mangled name. */
  entry: string
  /** The name a person reads, with its template arguments as they are mangled. */
  name: string
  target: string
  registers: number
  /** Bytes of static shared memory. */
  shared: number
  spilledBytes: number
}

export function parsePtxas(log: string): KernelReport[] {
  const kernels: KernelReport[] = []
  let entry: { entry: string; target: string } | null = null
  let spilledBytes = 0
  for (const line of log.split('\n')) {
    const compiling = /Compiling entry function '([^']+)' for '([^']+)'/.exec(line)
    if (compiling) {
      entry = { entry: compiling[1] ?? '', target: compiling[2] ?? '' }
      spilledBytes = 0
    }
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line)
    if (spills) spilledBytes += Number(spills[1]) + Number(spills[2])
    const used = /Used (\d+) registers/.exec(line)
    if (used && entry !== null) {
      const shared = Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0)
      kernels.push({
        ...entry,
        name: readable(entry.entry),
        registers: Number(used[1]),
        shared,
        spilledBytes,
      })
      entry = null
    }
  }
  return kernels.toSorted((a, b) => a.name.localeCompare(b.name) || a.target.localeCompare(b.target))
}

/** `_ZN2qe4cuda...11gemm_kernelILj4EEEv...` -> `gemm_kernel<4>`: a mangled name has its length before it. */
function readable(entry: string): string {
  const end = entry.indexOf('_kernel') + '_kernel'.length
  let length = '_kernel'.length
  do length++
  while (
    length < end &&
    !(entry.slice(0, end - length).endsWith(String(length)) && /[a-z]/.test(entry[end - length] ?? ''))
  )
  if (length >= end) return entry
  const arguments_ = /^I(.*?)EE?v/.exec(entry.slice(end))?.[1] ?? ''
  const parts = [...arguments_.matchAll(/L[jb](\d+)|\d+(Bf16|Half)|^(f)/g)]
  const names = parts.map(([, number, type, float]) => number ?? type ?? (float === undefined ? '' : 'float'))
  return entry.slice(end - length, end) + (names.length > 0 ? `<${names.join(', ')}>` : '')
}

export const spilled = (kernels: KernelReport[]): string[] =>
  kernels
    .filter(({ spilledBytes }) => spilledBytes > 0)
    .map(({ name, target, spilledBytes }) => `${name} spills ${spilledBytes} bytes for ${target}`)

export function uncompiled(
  kernels: KernelReport[],
  targets: readonly string[],
  ptx: ReadonlySet<string>,
): string[] {
  if (kernels.length === 0) return ['no kernel was compiled']
  const byName = Map.groupBy(kernels, ({ entry }) => entry)
  return [...byName].flatMap(([entry, reports]) => [
    ...targets
      .filter((target) => !reports.some((report) => report.target === target))
      .map((target) => `${entry} was not compiled for ${target}`),
    ...(ptx.has(entry) ? [] : [`${entry} is not there as PTX`]),
  ])
}
