/**
 * Qwen2's pre-tokenizer: where the next word ends. BPE never merges across words.
 *
 * This is the pattern below by hand, one branch for each alternative in its order, so that no run is scanned more than three
 * times and nothing is allocated. Text must be well formed.
 *
 * (?i:) folds ASCII letters only.
 */
import { classOf, latin, LETTER, NEWLINE, NUMBER, SPACE } from './characters.ts'

export const QWEN2_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

const APOSTROPHE = 0x27
const BLANK = 0x20

/** The end of the word that begins at `start`; `start < text.length`. */
export function wordEnd(text: string, start: number): number {
  const first = text.charCodeAt(start)
  if (first === APOSTROPHE) {
    const end = contractionEnd(text, start)
    if (end > 0) return end
  }
  const kind = classAt(text, start)
  if (kind === LETTER) return lettersEnd(text, start)
  const next = start + widthAt(text, start)
  if (kind === NUMBER) return next
  if (kind !== NEWLINE && next < text.length && classAt(text, next) === LETTER) return lettersEnd(text, next)
  if (kind < SPACE || kind > NEWLINE) return othersEnd(text, next)
  if (first === BLANK && next < text.length && isOther(classAt(text, next))) return othersEnd(text, next)
  return spacesEnd(text, start)
}

const isOther = (kind: number): boolean => kind === 0 || kind > NEWLINE

function widthAt(text: string, i: number): number {
  const unit = text.charCodeAt(i)
  return unit >= 0xd800 && unit < 0xdc00 ? 2 : 1
}

function classAt(text: string, i: number): number {
  const unit = text.charCodeAt(i)
  if (unit < 256) return latin[unit] as number
  return classOf(unit >= 0xd800 && unit < 0xdc00 ? (text.codePointAt(i) ?? unit) : unit)
}

/** `(?i:'s|'t|'re|'ve|'m|'ll|'d)`; 0 where it does not match. */
function contractionEnd(text: string, start: number): number {
  switch (lower(text, start + 1)) {
    case 0x73: // s
    case 0x74: // t
    case 0x6d: // m
    case 0x64: // d
      return start + 2
    case 0x72: // re
    case 0x76: // ve
      return lower(text, start + 2) === 0x65 ? start + 3 : 0
    case 0x6c: // ll
      return lower(text, start + 2) === 0x6c ? start + 3 : 0
    default:
      return 0
  }
}

/** Only A-Z and a-z give a lower-case letter; past the end (NaN) gives 32. */
const lower = (text: string, i: number): number => text.charCodeAt(i) | 32

function lettersEnd(text: string, from: number): number {
  let i = from
  while (i < text.length && classAt(text, i) === LETTER) i += widthAt(text, i)
  return i
}

/** `[^\s\p{L}\p{N}]*[\r\n]*` */
function othersEnd(text: string, from: number): number {
  let i = from
  while (i < text.length && isOther(classAt(text, i))) i += widthAt(text, i)
  while (i < text.length && classAt(text, i) === NEWLINE) i++
  return i
}

/** `\s*[\r\n]+|\s+(?!\S)|\s+`: up to the run's last newline; else all but the last space, which goes with the next word. */
function spacesEnd(text: string, start: number): number {
  let end = start
  let newlineEnd = 0
  for (; end < text.length; end++) {
    const kind = classAt(text, end)
    if (kind === NEWLINE) newlineEnd = end + 1
    else if (kind !== SPACE) break
  }
  if (newlineEnd > 0) return newlineEnd
  return end === text.length || end === start + 1 ? end : end - 1
}
