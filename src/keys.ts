/**
 * API keys: `qe_<environment>_<43 characters base62 of 32 random bytes>_<6 characters base62 of a CRC-32>`.
 * The checksum tells a mistyped or foreign key from a revoked one without reading storage, and lets secret scanners
 * find leaked keys without false alarms. It protects nothing else: the 256 random bits do.
 */
const alphabet = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
const form = /^qe_([a-z0-9]{1,16})_([0-9A-Za-z]{43})_([0-9A-Za-z]{6})$/

export function makeKey(environment: string): string {
  const body = `qe_${environment}_${base62(bigint(crypto.getRandomValues(new Uint8Array(32))), 43)}`
  return `${body}_${checksum(body)}`
}

/** Whether the text has a key's form and its checksum is right. Says nothing of whether the key exists. */
export function isWellFormedKey(key: string): boolean {
  if (!form.test(key)) return false
  const cut = key.lastIndexOf('_')
  return key.slice(cut + 1) === checksum(key.slice(0, cut))
}

/** What may be shown of a key: enough to recognise it, far too little to use it. */
export const keyPrefix = (key: string): string => key.slice(0, key.indexOf('_', 3) + 7)

const checksum = (body: string): string => base62(BigInt(crc32(new TextEncoder().encode(body))), 6)

function bigint(bytes: Uint8Array): bigint {
  let value = 0n
  for (const byte of bytes) value = (value << 8n) | BigInt(byte)
  return value
}

function base62(value: bigint, length: number): string {
  let text = ''
  for (let rest = value; text.length < length; rest /= 62n) text = alphabet.charAt(Number(rest % 62n)) + text
  return text
}

/** CRC-32 as in ISO 3309 (zlib's). */
function crc32(bytes: Uint8Array): number {
  let crc = ~0
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0)
  }
  return ~crc >>> 0
}
