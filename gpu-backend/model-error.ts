/** A model that cannot be had; the message is one line for whoever started the program. */
export class ModelError extends Error {
  override readonly name = 'ModelError'
}
