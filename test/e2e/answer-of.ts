import type OpenAI from 'openai'
import { SseParser } from '../../src/sse.ts'

interface Choice {
  content: string
  calls: { name: string; arguments: string }[]
  end: string | null
  logprobs: unknown[]
}

/** What an answer says, alike for a stream and JSON: each choice's text, calls, end and log-probabilities. */
export async function answerOf(response: Response): Promise<Choice[]> {
  const text = await response.text()
  if (!response.ok) throw new Error(`${response.status}: ${text}`)
  return response.headers.get('content-type')?.includes('event-stream') ? ofStream(text) : ofJson(text)
}

function ofJson(text: string): Choice[] {
  return (JSON.parse(text) as OpenAI.ChatCompletion).choices.map(({ message, finish_reason, logprobs }) => ({
    content: message.content ?? '',
    calls: (message.tool_calls ?? []).flatMap((call) =>
      call.type === 'function' ? [{ name: call.function.name, arguments: call.function.arguments }] : [],
    ),
    end: finish_reason,
    logprobs: logprobs?.content ?? [],
  }))
}

function ofStream(text: string): Choice[] {
  const choices: Choice[] = []
  for (const { event, data } of new SseParser().pushText(text)) {
    if (event === 'error') throw new Error(data)
    if (data === '[DONE]') continue
    for (const { index, delta, finish_reason, logprobs } of (JSON.parse(data) as OpenAI.ChatCompletionChunk)
      .choices) {
      const choice = (choices[index] ??= { content: '', calls: [], end: null, logprobs: [] })
      choice.content += delta.content ?? ''
      choice.end = finish_reason ?? choice.end
      choice.logprobs.push(...(logprobs?.content ?? []))
      for (const { index: at, function: called } of delta.tool_calls ?? []) {
        const call = (choice.calls[at] ??= { name: '', arguments: '' })
        call.name += called?.name ?? ''
        call.arguments += called?.arguments ?? ''
      }
    }
  }
  return choices
}
