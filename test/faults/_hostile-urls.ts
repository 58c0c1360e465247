/** 200 ways to ask for a callback to where none may go; each would reach the canary's port if it were called. */
const loopback =
  '127.0.0.1 127.1 127.0.1 127.0.0.2 127.255.255.254 2130706433 017700000001 0x7f000001 0x7f.0.0.1 0177.0.0.1 0177.1 0x7f.1 127.0.0.1. 0 0.0.0.0 localhost. LOCALHOST localhost a.localhost'
const inside =
  '10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.257 0xc0a80101 3232235777 169.254.169.254 0xa9fea9fe 2852039166 0251.0376.0251.0376 100.64.0.1 100.127.255.254 100.100.100.200 198.18.0.1 198.19.255.255 192.0.0.1 192.0.2.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255'
const six =
  '[::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:10.0.0.1] [::ffff:169.254.169.254] [::127.0.0.1] [::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1] [64:ff9b::a9fe:a9fe] [64:ff9b:1::7f00:1] [2002:7f00:1::] [2002:a9fe:a9fe::] [2002:a00:1::] [2001:0:7f00:1::] [2001:db8::1] [fe80::1] [fe80::a9fe:a9fe] [fc00::1] [fd00:ec2::254] [fec0::1] [ff02::1] [100::1] [3fff::1] [5f00::1]'
const names =
  'metadata metadata.google.internal instance-data.internal printer.local router.lan nas.home intranet.corp kubernetes.default.svc.cluster.local host.docker.internal gateway.home.arpa a.test a.invalid a.onion'

export function hostileUrls(port: number): string[] {
  const hosts = [loopback, inside, six, names].flatMap((list) => list.split(' '))
  const written = hosts.flatMap((host) => [`https://${host}:${port}/`, `https://${host}/`])
  const odd = [
    `https://user:pass@127.0.0.1:${port}/`,
    `https://hooks.acme.io@127.0.0.1:${port}/`,
    `https://127.0.0.1:${port}@localhost/`,
    `https://127。0。0。1:${port}/`,
    `https://①②⑦.⓪.⓪.①:${port}/`,
    `https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:${port}/`,
    `https://127.0.0.1:${port}\\@hooks.acme.io/`,
    `https://%31%32%37.0.0.1:${port}/`,
    `http://127.0.0.1/`,
    `http://localhost/`,
    `http://2130706433:${port}/`,
    `http://0x7f000001:${port}/`,
    `http://127.1:${port}/`,
    `http://0:${port}/`,
    `http://[::ffff:127.0.0.1]:${port}/`,
    `http://user@127.0.0.1:${port}/`,
    `http://127.0.0.2:${port}/`,
    `http://10.0.0.1:${port}/`,
    `http://hooks.acme.io/`,
    `http:127.0.0.1:${port}/`,
    `http:\\\\127.0.0.1:${port}/`,
    `HTTP://127.0.0.1:${port}/`,
    `ftp://127.0.0.1:${port}/`,
    `gopher://127.0.0.1:${port}/`,
    `file:///etc/passwd`,
    `data:text/plain,x`,
    `javascript:fetch('http://127.0.0.1:${port}')`,
    `ws://127.0.0.1:${port}/`,
    `//127.0.0.1:${port}/`,
    `127.0.0.1:${port}`,
    `unix:/var/run/docker.sock`,
    ``,
    `https://`,
    `https:///127.0.0.1:${port}/`,
    `https://[fe80::1%25eth0]:${port}/`,
    `https://[::1%25lo]:${port}/`,
    `https://xn--localhost-:${port}/`,
    `https://ｌｏｃａｌｈｏｓｔ:${port}/`,
  ]
  return [...written, ...odd]
}
