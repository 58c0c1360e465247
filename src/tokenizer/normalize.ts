/**
 * NFC in linear time.
 *
 * V8 puts a run of combining marks in order by insertion: 100,000 marks in a row cost 2 s. Runs of up to MARKS_MAX marks are
 * normalised as the reference does. A longer run (no language has one) is cut every MARKS_MAX marks and each
 * piece normalised alone: the result is still canonically equivalent to the input, only its marks are ordered piece by piece.
 * Only characters of \p{M} can have a combining class (Unicode's stability policy), so nothing else needs counting.
 */
import { classOf, MARK } from './characters.ts'

export const MARKS_MAX = 256
/** Below it every string is in NFC already. */
const FIRST_MARK = 0x300

/** Well-formed text in NFC; lone surrogates become U+FFFD. */
export function normalize(text: string): string {
  if (isPlain(text)) return text
  const formed = text.toWellFormed()
  const cuts = longRunCuts(formed)
  if (cuts.length === 0) return formed.normalize('NFC')
  const pieces: string[] = []
  let from = 0
  for (const cut of cuts) {
    pieces.push(formed.slice(from, cut).normalize('NFC'))
    from = cut
  }
  pieces.push(formed.slice(from).normalize('NFC'))
  return pieces.join('')
}

function isPlain(text: string): boolean {
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) >= FIRST_MARK) return false
  return true
}

function longRunCuts(text: string): number[] {
  const cuts: number[] = []
  let marks = 0
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i)
    if (unit < FIRST_MARK) {
      marks = 0
      continue
    }
    const astral = unit >= 0xd800 && unit < 0xdc00
    if (classOf(astral ? (text.codePointAt(i) ?? unit) : unit) !== MARK) marks = 0
    else if (++marks > MARKS_MAX) {
      cuts.push(i)
      marks = 1
    }
    if (astral) i++
  }
  return cuts
}
