import { describe, expect, it } from 'vitest'
import { refusal } from '../../src/callback-url.ts'

const refused = (url: string, environment = 'production') => refusal(url, environment) !== null

describe('a callback URL', () => {
  it.each([
    'https://hooks.acme.io/qwen?x=1',
    'https://hooks.acme.io:8443/',
    'https://8.8.8.8/',
    'https://[2606:4700:4700::1111]/',
  ])('may be public: %s', (url) => expect(refusal(url, 'production')).toBeNull())

  const special = {
    'loopback and private':
      '127.0.0.1 127.1 2130706433 0x7f000001 0177.0.0.1 0x7f.1 127.0.0.1. １２７.0.0.1 10.0.0.1 172.16.0.1 192.168.1.1 ' +
      '192.168.257 3232235777 0xc0a80101 [::1] [fc00::1]',
    'unspecified, link-local, metadata, CGNAT':
      '0.0.0.0 0 169.254.169.254 2852039166 0xa9fea9fe 100.64.0.1 100.100.100.200 [::] [fe80::1] [fd00:ec2::254]',
    'benchmarking, documentation, multicast, broadcast, reserved':
      '198.18.0.1 192.0.2.1 198.51.100.1 203.0.113.1 192.0.0.192 224.0.0.1 255.255.255.255 240.0.0.1 [ff02::1] ' +
      '[2001:db8::1] [100::1]',
    'IPv4 mapped, compatible, NAT64, local NAT64, 6to4, Teredo, translated':
      '[::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b::a9fe:a9fe] [64:ff9b:1::7f00:1] ' +
      '[2002:7f00:1::] [2002:a9fe:a9fe::1] [2001:0:7f00:1::] [::ffff:0:127.0.0.1]',
    "nobody's names in public":
      'localhost LOCALHOST localhost. a.localhost metadata metadata.google.internal printer.local nas.lan ' +
      'router.home.arpa kubernetes.default.svc.cluster.local x.test ⓛocalhost',
  }
  it.each(Object.values(special).flatMap((hosts) => hosts.split(' ')))(
    'may not be special, in any notation: %s',
    (host) => {
      expect(refused(`https://${host}/`)).toBe(true)
      expect(refused(`https://${host}:8443/`, 'development')).toBe(true)
    },
  )

  it.each([
    'http://hooks.acme.io/',
    'https://user:pass@hooks.acme.io/',
    'https://token@hooks.acme.io/',
    'ftp://hooks.acme.io/',
    'file:///etc/passwd',
    'javascript:alert(1)',
    'data:text/plain,x',
    'hooks.acme.io',
    '',
    `https://hooks.acme.io/${'x'.repeat(3000)}`,
  ])('may not be %s', (url) => expect(refused(url)).toBe(true))

  it('is http on loopback with a port in development, and only there and so', () => {
    for (const url of ['http://127.0.0.1:9000/hook', 'http://localhost:9000', 'http://[::1]:9000/']) {
      expect(refused(url, 'development')).toBe(false)
      expect(refused(url, 'production')).toBe(true)
    }
    for (const url of [
      'http://127.0.0.1/',
      'http://localhost/',
      'http://127.1:9000/',
      'http://2130706433:9000/',
      'http://user@127.0.0.1:9000/',
      'http://127.0.0.1:0/',
      'http://127.0.0.2:9000/',
      'http://10.0.0.1:9000/',
      'http://localhost.:9000/',
      'http://hooks.acme.io:9000/',
    ])
      expect([url, refused(url, 'development')]).toEqual([url, true])
  })
})
