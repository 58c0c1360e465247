/**
 * Stop strings on a stream of text. Generation stops at the first place where any stop string is complete; of several that end
 * there, the longest counts. The text before it is given out, the stop string and what follows are not. That does not depend on
 * how the text was cut into increments.
 *
 * Each stop string has a Knuth-Morris-Pratt automaton, so the cost is one step a string and UTF-16 unit, whatever the strings are.
 * Held back is exactly the longest end of the text that could still begin one of them.
 */
export class StopMatcher {
  readonly #automata: readonly Automaton[]
  #held = ''
  #stop: string | undefined

  constructor(stops: readonly string[]) {
    this.#automata = stops.map(createAutomaton)
  }

  /** The text ended; nothing more will come out. */
  get matched(): boolean {
    return this.#stop !== undefined
  }

  /** Which stop string ended it. */
  get stop(): string | undefined {
    return this.#stop
  }

  /** What can be given out now. */
  push(text: string): string {
    if (this.matched) return ''
    for (let i = 0; i < text.length; i++) {
      const stop = this.#advance(text.charCodeAt(i))
      if (stop === undefined) continue
      this.#stop = stop
      const whole = this.#held + text.slice(0, i + 1)
      this.#held = ''
      return whole.slice(0, whole.length - stop.length)
    }
    const whole = this.#held + text
    const free = whole.length - this.#automata.reduce((most, { matched }) => Math.max(most, matched), 0)
    this.#held = whole.slice(free)
    return whole.slice(0, free)
  }

  /** What was held back, when the text ends without a stop string. */
  flush(): string {
    const rest = this.#held
    this.#held = ''
    for (const automaton of this.#automata) automaton.matched = 0
    return rest
  }

  /** The longest stop string that this unit completes. */
  #advance(unit: number): string | undefined {
    let longest: string | undefined
    for (const automaton of this.#automata) {
      step(automaton, unit)
      const { stop, matched } = automaton
      if (matched === stop.length && stop.length > (longest?.length ?? 0)) longest = stop
    }
    return longest
  }
}

interface Automaton {
  stop: string
  /** For n matched units: how many of them also begin the stop string, tried when unit n + 1 does not match. */
  failure: Int32Array
  matched: number
}

function createAutomaton(text: string): Automaton {
  // Generated text is well formed; so must be what is looked for in it, or a match could begin within a character.
  const stop = text.toWellFormed()
  if (stop === '') throw new RangeError('a stop string must not be empty')
  const failure = new Int32Array(stop.length + 1)
  for (let n = 2, k = 0; n <= stop.length; n++) {
    while (k > 0 && stop.charCodeAt(k) !== stop.charCodeAt(n - 1)) k = failure[k] as number
    if (stop.charCodeAt(k) === stop.charCodeAt(n - 1)) k++
    failure[n] = k
  }
  return { stop, failure, matched: 0 }
}

function step(automaton: Automaton, unit: number): void {
  const { stop, failure } = automaton
  let n = automaton.matched
  while (n > 0 && stop.charCodeAt(n) !== unit) n = failure[n] as number
  automaton.matched = stop.charCodeAt(n) === unit ? n + 1 : 0
}
