/**
 * Tool calls in the Hermes form that Qwen2 is trained on:
 *
 *     <tool_call>
 *     {"name": "get_weather", "arguments": {"city": "Paris"}}
 *     </tool_call>
 *
 * Optional calls leave the text free until `<tool_call>`; from there on name and arguments are those of a tool.
 */
import * as z from 'zod/mini'
import { choice, GrammarError, literal, repeat, sequence, type Expr, type Grammar } from './ebnf.ts'
import { schemaGrammar } from './json-schema.ts'
import { depth_max, isShallow } from './schema.ts'

export const call_begin = '<tool_call>'
export const call_end = '</tool_call>'

/** Any JSON; whether it is a schema that can be served shows when it is converted. */
export const SchemaLike = z.custom(isShallow, `nests deeper than ${depth_max} levels`)

export const ToolSpec = z.object({
  name: z.string().check(z.regex(/^[\w-]{1,64}$/)),
  /** JSON Schema of the arguments. */
  parameters: SchemaLike,
  strict: z.boolean(),
})
export type ToolSpec = z.infer<typeof ToolSpec>

export function toolCalls(
  grammar: Grammar,
  { tools, optional, parallel }: { tools: ToolSpec[]; optional: boolean; parallel: boolean },
): Expr {
  const calls = tools.map(({ name, parameters, strict }) => {
    const values = argumentsOf(grammar, name, parameters, strict)
    return sequence(literal(`{"name": "${name}", "arguments": `), values, literal('}'))
  })
  const inside = sequence(literal('\n'), choice(...calls), literal(`\n${call_end}`))
  if (optional) {
    const name = grammar.reserve('call')
    grammar.rules.set(name, inside)
    return { type: 'dispatch', triggers: [{ text: call_begin, rule: name }], again: parallel }
  }
  const call = grammar.add('call', sequence(literal(call_begin), inside))
  return parallel ? sequence(call, repeat(sequence(literal('\n'), call), 0, null)) : call
}

function argumentsOf(grammar: Grammar, name: string, parameters: unknown, strict: boolean): Expr {
  try {
    return grammar.add(name, schemaGrammar(grammar, parameters, strict))
  } catch (cause) {
    if (cause instanceof GrammarError) throw new GrammarError(`the parameters of '${name}': ${cause.message}`)
    throw cause
  }
}
