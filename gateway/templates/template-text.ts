/**
 * `{{name}}` in prompt texts. A text is cut into spans once; a variable's value is put between them as it is, so a
 * `{{` inside a value is nothing but text. `{{a.b.0}}` goes into objects and lists.
 */
import { ApiError } from '../../src/errors.ts'

export type Span = { literal: string } | { path: string[] }

const name = /^[A-Za-z_]\w*(?:\.\w+)*$/
const depth_max = 16

/** @param param where the text stands, for the error. */
export function parseText(text: string, param: string): Span[] {
  const spans: Span[] = []
  let at = 0
  for (;;) {
    const open = text.indexOf('{{', at)
    if (open < 0) break
    const close = text.indexOf('}}', open)
    const inside = close < 0 ? '' : text.slice(open + 2, close).trim()
    if (!name.test(inside) || inside.split('.').length > depth_max) {
      throw new ApiError(
        'invalid_value',
        `'${param}' has '${text.slice(open, open + 40)}': a variable is written {{name}} or {{name.part}}.`,
        { param },
      )
    }
    if (open > at) spans.push({ literal: text.slice(at, open) })
    spans.push({ path: inside.split('.') })
    at = close + 2
  }
  if (at < text.length) spans.push({ literal: text.slice(at) })
  return spans
}

export interface Filled {
  text: string
  /** The text before the first variable. */
  literal: string
  hasVariable: boolean
}

/** @param valueOf the text of a variable; throws where there is none. */
export function fill(spans: readonly Span[], valueOf: (path: readonly string[]) => string): Filled {
  const filled: Filled = { text: '', literal: '', hasVariable: false }
  for (const span of spans) {
    if ('path' in span) {
      filled.hasVariable = true
      filled.text += valueOf(span.path)
    } else {
      filled.text += span.literal
      if (!filled.hasVariable) filled.literal += span.literal
    }
  }
  return filled
}

/** undefined: there is no such part. Only own properties: a path cannot reach a prototype. */
export function lookUp(value: unknown, path: readonly string[]): unknown {
  let part = value
  for (const key of path) {
    if (typeof part !== 'object' || part === null || !Object.hasOwn(part, key)) return undefined
    part = (part as Record<string, unknown>)[key]
  }
  return part
}

export const asText = (value: unknown): string => (typeof value === 'string' ? value : JSON.stringify(value))
