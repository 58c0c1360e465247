/**
 * `tools`, `tool_choice` and `parallel_tool_calls`: what they ask of the prompt and of the answer. Calls are always
 * held to the tools' parameters, to all of a `strict` one's, to what a grammar can say of another's. With `auto` the
 * answer is free until it begins a call; `required` and a named function are constrained from the first token.
 * https://platform.openai.com/docs/guides/function-calling
 */
import * as z from 'zod/mini'
import { ApiError } from '../../src/errors.ts'
import type { ChatTool } from '../../src/chat-template.ts'
import type { GrammarSpec, JsonGrammar } from '../../src/grammar/grammar.ts'
import { isShallow } from '../../src/grammar/schema.ts'

const tools_max = 128

const nullish = <T extends z.core.SomeType>(schema: T) => z.optional(z.nullable(schema))

const Name = z.string().check(z.regex(/^[\w-]{1,64}$/, 'must have 1 to 64 letters, digits, _ and -'))
const Parameters = z.record(z.string(), z.unknown()).check(z.refine(isShallow, 'nests deeper than 64 levels'))

const Tool = z.object({
  type: z.literal('function', 'must be "function": no other tools are served'),
  function: z.object({
    name: Name,
    description: nullish(z.string()),
    parameters: nullish(Parameters),
    strict: nullish(z.boolean()),
  }),
})

const choices = ['none', 'auto', 'required'] as const

/** Fields of a chat request's body. */
export const toolFields = {
  tools: nullish(z.array(Tool).check(z.maxLength(tools_max))),
  tool_choice: nullish(
    z.union(
      [z.enum(choices), z.object({ type: z.literal('function'), function: z.object({ name: Name }) })],
      {
        error: 'must be "none", "auto", "required" or {type: "function", function: {name}}',
      },
    ),
  ),
  parallel_tool_calls: nullish(z.boolean()),
}

const Fields = z.object(toolFields)

export interface ToolUse {
  /** As the prompt shows them. */
  tools: ChatTool[]
  /** null: the answer is text. */
  grammar: GrammarSpec | null
}

/** @param format what an answer that is no call must be; null: any text. */
export function useTools(
  { tools: given, tool_choice: choice, parallel_tool_calls: parallel }: z.infer<typeof Fields>,
  format: JsonGrammar | null,
): ToolUse {
  const tools = given ?? []
  if (tools.length === 0) {
    if (choice !== undefined && choice !== null && choice !== 'none' && choice !== 'auto')
      throw needsTools('tool_choice')
    if (parallel !== undefined && parallel !== null) throw needsTools('parallel_tool_calls')
    return { tools: [], grammar: null }
  }
  const names = tools.map((tool) => tool.function.name)
  const twice = names.find((name, at) => names.indexOf(name) !== at)
  if (twice !== undefined)
    throw new ApiError('invalid_value', `'tools' has two functions named '${twice}'.`, { param: 'tools' })
  const named = typeof choice === 'object' && choice !== null ? choice.function.name : null
  if (named !== null && !names.includes(named))
    throw new ApiError('invalid_value', `'tool_choice' names '${named}', which is none of 'tools'.`, {
      param: 'tool_choice',
    })
  const shown = tools.map(asShown)
  if (choice === 'none') return { tools: shown, grammar: null }
  const grammar: GrammarSpec = {
    type: 'tool_calls',
    tools: tools
      .filter((tool) => named === null || tool.function.name === named)
      .map(({ function: { name, parameters, strict } }) => ({
        name,
        parameters: parameters ?? { type: 'object', properties: {} },
        strict: strict ?? false,
      })),
    optional: choice !== 'required' && named === null,
    parallel: named === null && (parallel ?? true),
    ...(format === null ? {} : { answer: format }),
  }
  return { tools: shown, grammar }
}

const needsTools = (param: string) =>
  new ApiError('invalid_value', `'${param}' is only allowed when 'tools' are given.`, { param })

/** In one order of keys, and without what is not for the model: equal tools are then equal tokens. */
const asShown = ({ function: { name, description, parameters } }: z.infer<typeof Tool>): ChatTool => ({
  type: 'function',
  function: {
    name,
    ...(typeof description === 'string' ? { description } : {}),
    ...(parameters ? { parameters } : {}),
  },
})
