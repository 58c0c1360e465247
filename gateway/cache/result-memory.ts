/**
 * Answers that this isolate has seen lately: the first place to look, since even the Cache API costs more than all the
 * rest of a hit. Least recently used go first. In characters of JSON, of which one takes some 5 bytes here.
 */
import type { Entry } from './result-store.ts'

const chars_max = 4 * 1024 * 1024
const entry_chars_max = 128 * 1024

interface Kept {
  entry: Entry
  chars: number
  /** KV has it, or is getting it. */
  far: boolean
}

const kept = new Map<string, Kept>()
let chars = 0

export function recall(key: string): Kept | null {
  const found = kept.get(key)
  if (found === undefined) return null
  kept.delete(key)
  if (Date.now() >= found.entry.stored_at + found.entry.ttl_s * 1000) {
    chars -= found.chars
    return null
  }
  kept.set(key, found)
  return found
}

/** @param length of the entry as JSON. */
export function remember(key: string, entry: Entry, length: number, far: boolean): void {
  forget(key)
  if (length > entry_chars_max) return
  kept.set(key, { entry, chars: length, far })
  chars += length
  for (const oldest of kept.keys()) {
    if (chars <= chars_max) break
    forget(oldest)
  }
}

function forget(key: string): void {
  chars -= kept.get(key)?.chars ?? 0
  kept.delete(key)
}
