/** Schemas that must hold together, or never may. */
import { isObject, pointed, typesOf, type Schema } from './schema.ts'

const annotations = new Set(['title', 'description', 'default', 'examples', '$comment', '$schema'])

/** Each is compared with each. */
const parts_max = 100

/** One schema that says what all of them say; null: they say a keyword differently. */
export function merged(parts: unknown[], root: unknown): Schema | null {
  const all: Schema = {}
  for (const part of parts) {
    const schema = resolved(part, root)
    if (schema === null) return null
    for (const [key, value] of Object.entries(schema)) {
      const before = all[key]
      if (before === undefined) all[key] = value
      else if (key === 'required' && Array.isArray(before) && Array.isArray(value))
        all[key] = [...new Set<unknown>([...before, ...value])]
      else if ((key === 'properties' || key === '$defs') && isObject(before) && isObject(value)) {
        const clash = Object.keys(value).some(
          (name) => Object.hasOwn(before, name) && !same(before[name], value[name]),
        )
        if (clash) return null
        all[key] = { ...before, ...value }
      } else if (!annotations.has(key) && !same(before, value)) return null
    }
  }
  // Closed in one part, but with properties of another: nothing could satisfy both as written.
  const closed = parts.some((part) => resolved(part, root)?.['additionalProperties'] === false)
  const parted = parts.filter((part) => resolved(part, root)?.['properties'] !== undefined).length > 1
  return closed && parted ? null : all
}

/** Whether no value can be valid by two of them: by type, or by a constant in a property that both require. */
export function disjoint(parts: unknown[], root: unknown): boolean {
  if (parts.length > parts_max) return false
  const schemas = parts.map((part) => resolved(part, root))
  return schemas.every((a, at) =>
    schemas.slice(at + 1).every((b) => a !== null && b !== null && apart(a, b, root)),
  )
}

function apart(a: Schema, b: Schema, root: unknown): boolean {
  const constantsA = constants(a)
  const constantsB = constants(b)
  if (constantsA !== null && constantsB !== null)
    return !constantsA.some((value) => constantsB.some((other) => same(value, other)))
  if (a['type'] !== undefined && b['type'] !== undefined) {
    const kinds = (schema: Schema) =>
      typesOf(schema, '#').map((type) => (type === 'integer' ? 'number' : type))
    if (!kinds(a).some((type) => kinds(b).includes(type))) return true
  }
  const { properties: inA, required: requiredA } = a
  const { properties: inB, required: requiredB } = b
  if (!isObject(inA) || !isObject(inB) || !Array.isArray(requiredA) || !Array.isArray(requiredB)) return false
  return Object.keys(inA).some((name) => {
    if (!Object.hasOwn(inB, name) || !requiredA.includes(name) || !requiredB.includes(name)) return false
    const [one, other] = [resolved(inA[name], root), resolved(inB[name], root)]
    return (
      one !== null &&
      other !== null &&
      constants(one) !== null &&
      constants(other) !== null &&
      apart(one, other, root)
    )
  })
}

const constants = (schema: Schema): unknown[] | null =>
  schema['const'] !== undefined ? [schema['const']] : Array.isArray(schema['enum']) ? schema['enum'] : null

const same = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b)

/** A reference that stands alone as what it points to; null: no schema of keywords. */
function resolved(part: unknown, root: unknown, hops = 8): Schema | null {
  if (!isObject(part)) return null
  const { $ref: ref, ...rest } = part
  if (ref === undefined) return part
  const beside = Object.keys(rest).some((key) => !annotations.has(key))
  return typeof ref === 'string' && !beside && hops > 0 ? resolved(pointed(root, ref), root, hops - 1) : null
}
