/**
 * Where a webhook may be sent. The rules are for the text of a URL: https, no credentials, no name or address of a
 * private, special or translated range in any notation (URL parsing has unfolded octal, hex and decimal forms before).
 * What a name resolves to is refused where the connection is made: on Cloudflare by `global_fetch_strictly_public`,
 * locally by workerd's network service, at strict sites by a proxy. Checked when given and again at every delivery.
 * Ranges: https://www.iana.org/assignments/iana-ipv6-special-registry (ipaddr.js knows them).
 */
import ipaddr from 'ipaddr.js'

const url_chars_max = 2048
/** Names that never belong to a public host (RFC 6761, RFC 6762, RFC 8375, RFC 9476). */
const private_names =
  /(^|\.)(localhost|local|internal|intranet|lan|home|corp|private|arpa|test|invalid|example|onion|alt)$/
const development_loopback = /^http:\/\/(localhost|127\.0\.0\.1|\[::1\]):\d{1,5}(\/|\?|$)/

export const isLoopback = (text: string): boolean => development_loopback.test(text)

/** Why nothing is sent there; null: it may be. */
export function refusal(text: string, environment: string): string | null {
  const url = URL.canParse(text) ? new URL(text) : null
  if (url === null || text.length > url_chars_max) return `not a URL of at most ${url_chars_max} characters`
  if (url.username !== '' || url.password !== '')
    return 'a URL with credentials is not called; use a token in the path'
  if (environment === 'development' && isLoopback(text) && url.port !== '0') return null
  if (url.protocol !== 'https:') return 'only https is called'
  const host = url.hostname.replace(/^\[|\]$/g, '').replace(/\.+$/, '')
  if (ipaddr.isValid(host)) return isPublic(ipaddr.parse(host)) ? null : `${host} is no public address`
  if (!host.includes('.') || private_names.test(host)) return `'${host}' is no public name`
  return null
}

const globalUnicast = ipaddr.IPv6.parseCIDR('2000::/3')

export function isPublic(address: ipaddr.IPv4 | ipaddr.IPv6): boolean {
  if (address.range() !== 'unicast') return false
  return address.kind() === 'ipv4' || (address as ipaddr.IPv6).match(globalUnicast)
}
