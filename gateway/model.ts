/** The model this gateway was built for; `npm run build:model` writes both files from a checkpoint folder. */
import card from './model/card.json'
import tokenizerBytes from './model/tokenizer.bin'
import type { ModelCard } from '../src/protocol.ts'
import { openTokenizer } from '../src/tokenizer/open.ts'

export const model: ModelCard = card
export const tokenizer = openTokenizer(tokenizerBytes, model.tokenizer)
