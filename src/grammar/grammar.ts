/**
 * What an answer must look like, as it travels from gateway to backend in `sampling.grammar`, and as the EBNF that the
 * backend compiles. The order of a schema's properties is part of it: it is the order in which they are generated.
 */
import * as z from 'zod/mini'
import { choice, Grammar, literal, type Expr, type WrittenGrammar } from './ebnf.ts'
import { anyJson } from './json-text.ts'
import { schemaGrammar } from './json-schema.ts'
import { regexGrammar } from './regex.ts'
import { SchemaLike, ToolSpec, toolCalls } from './tool-calls.ts'

const ebnf_chars_max = 64 * 1024

const JsonObject = z.object({ type: z.literal('json_object') })
/** @property strict what a grammar cannot say is refused; else it is left to the model. */
const JsonSchema = z.object({ type: z.literal('json_schema'), schema: SchemaLike, strict: z.boolean() })
export type JsonGrammar = z.infer<typeof JsonObject> | z.infer<typeof JsonSchema>

export const GrammarSpec = z.discriminatedUnion('type', [
  JsonObject,
  JsonSchema,
  z.object({ type: z.literal('regex'), pattern: z.string() }),
  z.object({
    type: z.literal('choice'),
    choices: z.array(z.string()).check(z.minLength(1), z.maxLength(1000)),
  }),
  z.object({ type: z.literal('ebnf'), grammar: z.string().check(z.maxLength(ebnf_chars_max)) }),
  z.object({
    type: z.literal('tool_calls'),
    tools: z.array(ToolSpec).check(z.minLength(1), z.maxLength(128)),
    /** Text may come first, and need not end in a call. */
    optional: z.boolean(),
    /** More than one call in an answer. */
    parallel: z.boolean(),
    /** What an answer without a call must be. */
    answer: z.optional(z.discriminatedUnion('type', [JsonObject, JsonSchema])),
  }),
])
export type GrammarSpec = z.infer<typeof GrammarSpec>

/** By request: its check, its cache key and each of its answers want the same text. */
const known = new WeakMap<GrammarSpec, WrittenGrammar>()

/** Throws GrammarError with what cannot be served. @param spec not changed afterwards. */
export function writeGrammar(spec: GrammarSpec): WrittenGrammar {
  const written = known.get(spec) ?? write(spec)
  known.set(spec, written)
  return written
}

function write(spec: GrammarSpec): WrittenGrammar {
  if (spec.type === 'ebnf') return { text: spec.grammar, counted: Infinity }
  const grammar = new Grammar()
  return grammar.write(rootOf(grammar, spec))
}

function rootOf(grammar: Grammar, spec: Exclude<GrammarSpec, { type: 'ebnf' }>): Expr {
  switch (spec.type) {
    case 'json_object':
      return anyJson(grammar).object
    case 'json_schema':
      return schemaGrammar(grammar, spec.schema, spec.strict)
    case 'regex':
      return regexGrammar(spec.pattern, false)
    case 'choice':
      return choice(...[...new Set(spec.choices)].map(literal))
    case 'tool_calls': {
      if (!spec.optional || spec.answer === undefined) return toolCalls(grammar, spec)
      return choice(rootOf(grammar, spec.answer), toolCalls(grammar, { ...spec, optional: false }))
    }
  }
}
