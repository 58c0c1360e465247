import OpenAI from 'openai'
import { afterAll, beforeAll } from 'vitest'
import { startStack, type Stack } from './stack.ts'

export interface FileStack extends Stack {
  /** The official client, that tries nothing twice. */
  openai: OpenAI
}

/** One stack for all tests of a file; it is there once they run. */
export function stackOfFile(env: Record<string, string> = {}): FileStack {
  const stack = {} as FileStack
  beforeAll(async () => {
    const started = await startStack(env)
    const openai = new OpenAI({ baseURL: `${started.gateway}/v1`, apiKey: started.key, maxRetries: 0 })
    Object.assign(stack, started, { openai })
  })
  afterAll(async () => (stack as Partial<FileStack>).stop?.())
  return stack
}
