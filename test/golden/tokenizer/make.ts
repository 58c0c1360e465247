/** Writes qwen2.json: the ids that the reference gives for each of texts.ts with Qwen2's vocabulary. */
import { writeFileSync } from 'node:fs'
import { Tokenizer } from '@huggingface/tokenizers'
import { qwen2Json } from '../../src/tokenizer/vocabularies.ts'
import { texts } from './texts.ts'

const reference = new Tokenizer({ ...qwen2Json(), added_tokens: [] }, {})
const ids = Object.entries(texts).map(([name, text]) => [name, reference.encode(text).ids] as const)
const lines = ids.map(([name, list]) => `  ${JSON.stringify(name)}: ${JSON.stringify(list)}`)
writeFileSync(new URL('qwen2.json', import.meta.url), `{\n${lines.join(',\n')}\n}\n`)
