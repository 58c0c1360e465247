/** What `within` gives for work that takes longer. */
export const late = Symbol('late')

/** What the work gives, or `late` after so long: it goes on then, unheard. Throws what it throws. */
export async function within<T>(work: Promise<T>, ms: number): Promise<T | typeof late> {
  let timer: number | null = null
  const over = new Promise<typeof late>((resolve) => {
    timer = setTimeout(() => resolve(late), ms)
  })
  try {
    return await Promise.race([work, over])
  } finally {
    clearTimeout(timer)
  }
}
