/** The byte-level alphabet: a printable character for each byte, as in GPT-2's `bytes_to_unicode`. */
export const byteCharacters: readonly string[] = makeAlphabet()

const byteOf = new Map(byteCharacters.map((character, byte) => [character, byte]))

/** The bytes that a byte-level token string stands for; undefined where a character is not of the alphabet. */
export function bytesOfTokenString(token: string): Uint8Array | undefined {
  const bytes: number[] = []
  for (const character of token) {
    const byte = byteOf.get(character)
    if (byte === undefined) return undefined
    bytes.push(byte)
  }
  return Uint8Array.from(bytes)
}

/** Printable Latin-1 stands for itself; the others, in order, are U+0100 and up. */
function makeAlphabet(): string[] {
  let next = 0x100
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
    return String.fromCharCode(printable ? byte : next++)
  })
}
