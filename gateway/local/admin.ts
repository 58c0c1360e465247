/**
 * `npm run admin -- ...`: the admin API from the command line, of any gateway. A person reads tables; `--json` gives
 * what the API gave. The token comes from QWEN_EDGE_ADMIN_TOKEN, or is the one that `npm start` keeps on this machine.
 */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { Command, InvalidArgumentError } from 'commander'
import { endWithReader } from './end-with-reader.ts'
import { root } from './settings.ts'

type Row = Record<string, unknown>

const program = new Command('npm run admin --')
  .description('Tenants, keys, usage and the audit log of a qwen2-edge gateway.')
  .option(
    '--url <url>',
    'the gateway',
    process.env['QWEN_EDGE_URL'] ?? `http://127.0.0.1:${process.env['GATEWAY_PORT'] ?? 8787}`,
  )
  .option('--token <token>', 'admin token [QWEN_EDGE_ADMIN_TOKEN, else the one of npm start]')
  .option('--json', 'print what the API answers', false)
  .showHelpAfterError()
  .configureHelp({ showGlobalOptions: true })

const count = (text: string): number | null => {
  if (text === 'none') return null
  if (/^[1-9]\d*$/.test(text)) return Number(text)
  throw new InvalidArgumentError('a whole number from 1, or "none".')
}
const unixTime = (text: string): number => {
  const ms = Date.parse(text)
  if (Number.isNaN(ms)) throw new InvalidArgumentError('a time, such as 2027-01-31T00:00:00Z.')
  return Math.floor(ms / 1000)
}
const list = (text: string): string[] => text.split(',').map((part) => part.trim())

const limitNames = [
  'requests-per-minute',
  'tokens-per-minute',
  'concurrent',
  'tokens-per-day',
  'tokens-per-month',
]
function withLimits(command: Command): Command {
  for (const name of limitNames) command.option(`--${name} <n>`, 'at most; "none": no limit', count)
  return command
}
const camel = (name: string) => name.replaceAll(/-(\w)/g, (_, letter: string) => letter.toUpperCase())
const limitsOf = (options: Row): Row =>
  Object.fromEntries(
    limitNames.flatMap((name) => {
      const value = options[camel(name)]
      return value === undefined ? [] : [[name.replaceAll('-', '_'), value]]
    }),
  )

const tenant = program.command('tenant').description('make, list, change, suspend, delete tenants')
withLimits(tenant.command('create').argument('<name>'))
  .option('--cached-token-weight <w>', 'what a cached prompt token costs, of a token', Number)
  .action(async (name: string, options: Row) => {
    const weight = options['cachedTokenWeight']
    const more = weight === undefined ? {} : { cached_token_weight: weight }
    show(await call('POST', '/tenants', { name, limits: limitsOf(options), ...more }))
  })
tenant
  .command('list')
  .option('--cursor <cursor>', 'where the page before ended')
  .action(async ({ cursor }: Row) => show(await call('GET', `/tenants?limit=100&cursor=${text(cursor)}`)))
tenant
  .command('show')
  .argument('<id>')
  .action(async (id: string) => show(await call('GET', `/tenants/${encodeURIComponent(id)}`)))
withLimits(tenant.command('update').argument('<id>'))
  .option('--name <name>')
  .option('--model <model>', "the limits are for the tenant's use of this model")
  .action(async (id: string, options: Row) => {
    const { name, model } = options
    const limits = limitsOf(options)
    const scoped = typeof model === 'string' ? { model_limits: { [model]: limits } } : { limits }
    show(
      await call('PATCH', `/tenants/${encodeURIComponent(id)}`, {
        ...(name === undefined ? {} : { name }),
        ...scoped,
      }),
    )
  })
for (const [command, status] of [
  ['suspend', 'suspended'],
  ['resume', 'active'],
] as const) {
  tenant
    .command(command)
    .argument('<id>')
    .action(async (id: string) => show(await call('PATCH', `/tenants/${encodeURIComponent(id)}`, { status })))
}
tenant
  .command('delete')
  .argument('<id>')
  .action(async (id: string) => show(await call('DELETE', `/tenants/${encodeURIComponent(id)}`)))

const key = program.command('key').description('make, list, rotate, revoke keys; a key is shown once')
withLimits(key.command('create').argument('<tenant>').argument('<name>'))
  .option('--scopes <scopes>', 'generate,jobs,hooks,templates,read; left out: all', list)
  .option('--models <models>', 'left out: all', list)
  .option('--expires-at <time>', 'ISO 8601', unixTime)
  .action(async (id: string, name: string, options: Row) => {
    const { scopes, models, expiresAt } = options
    const more = {
      ...(scopes === undefined ? {} : { scopes }),
      ...(models === undefined ? {} : { models }),
      ...(expiresAt === undefined ? {} : { expires_at: expiresAt }),
    }
    show(
      await call('POST', `/tenants/${encodeURIComponent(id)}/keys`, {
        name,
        limits: limitsOf(options),
        ...more,
      }),
    )
  })
key
  .command('list')
  .argument('<tenant>')
  .action(async (id: string) => show(await call('GET', `/tenants/${encodeURIComponent(id)}/keys`)))
key
  .command('rotate')
  .argument('<tenant>')
  .argument('<key>', 'its id')
  .option('--grace-seconds <n>', 'how long the old one still works', Number, 0)
  .action(async (id: string, keyId: string, { graceSeconds }: Row) =>
    show(
      await call('POST', `/tenants/${encodeURIComponent(id)}/keys/${encodeURIComponent(keyId)}/rotate`, {
        grace_seconds: graceSeconds,
      }),
    ),
  )
key
  .command('revoke')
  .argument('<tenant>')
  .argument('<key>', 'its id')
  .action(async (id: string, keyId: string) =>
    show(await call('DELETE', `/tenants/${encodeURIComponent(id)}/keys/${encodeURIComponent(keyId)}`)),
  )

program
  .command('usage')
  .description('what was used, of the last 24 hours unless said otherwise')
  .option('--tenant <id>', 'of one; left out: of all')
  .option('--from <time>', 'ISO 8601 or Unix seconds')
  .option('--to <time>')
  .option('--group-by <group>', 'tenant, hour, key, model or template')
  .option('--csv', 'as CSV', false)
  .action(async ({ tenant, from, to, groupBy, csv }: Row) => {
    const query = new URLSearchParams()
    for (const [name, value] of Object.entries({ tenant, from, to, group_by: groupBy }))
      if (value !== undefined) query.set(name, text(value))
    if (csv === true) process.stdout.write(await ask('GET', `/usage?${query.toString()}&format=csv`))
    else show(await call('GET', `/usage?${query.toString()}`))
  })
program
  .command('audit')
  .description('who changed what, newest first')
  .option('--tenant <id>')
  .option('--cursor <cursor>')
  .action(async ({ tenant, cursor }: Row) => {
    const of = tenant === undefined ? '' : `&tenant=${text(tenant)}`
    show(await call('GET', `/audit?limit=100&cursor=${text(cursor)}${of}`))
  })

endWithReader()
await program.parseAsync()

/** What is wrong with the world rather than with the command line: one line, no usage text. */
function fail(why: string): never {
  process.stderr.write(`error: ${why}\n`)
  process.exit(1)
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : ''
}

function token(): string {
  const given = program.opts<{ token?: string }>().token ?? process.env['QWEN_EDGE_ADMIN_TOKEN']
  if (given !== undefined && given !== '') return given
  const path = join(resolve(root, process.env['QWEN_EDGE_STATE'] ?? '.qwen-edge'), 'secrets.json')
  try {
    return (JSON.parse(readFileSync(path, 'utf8')) as { ADMIN_TOKEN: string }).ADMIN_TOKEN
  } catch {
    return fail('Set QWEN_EDGE_ADMIN_TOKEN, or run `npm start` once, which makes one.')
  }
}

async function ask(method: string, path: string, body?: unknown): Promise<string> {
  const { url } = program.opts<{ url: string }>()
  let response: Response
  try {
    response = await fetch(`${url}/admin${path}`, {
      method,
      headers: { authorization: `Bearer ${token()}`, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
  } catch {
    return fail(`No gateway answers at ${url}: start it, or say where it is with --url.`)
  }
  const answer = await response.text()
  if (response.ok) return answer
  return fail(reason(response.status, answer))
}

/** Some other server's answer need not be ours. */
function reason(status: number, answer: string): string {
  try {
    const { error } = JSON.parse(answer) as { error: { code: string; message: string } }
    return `${error.code}: ${error.message}`
  } catch {
    return `What answers there is no gateway: ${status}.`
  }
}

async function call(method: string, path: string, body?: unknown): Promise<Row> {
  const answer = await ask(method, path, body)
  return answer === '' ? { ok: true } : (JSON.parse(answer) as Row)
}

function show(answer: Row): void {
  if (program.opts<{ json: boolean }>().json)
    return void process.stdout.write(`${JSON.stringify(answer, null, 2)}\n`)
  const rows = answer['data']
  if (!Array.isArray(rows)) {
    for (const [name, value] of Object.entries(answer))
      process.stdout.write(`${name.padEnd(20)} ${cell(value)}\n`)
    return
  }
  process.stdout.write(rows.length === 0 ? 'none\n' : table(rows as Row[]))
  const next = answer['next_cursor']
  if (typeof next === 'string') process.stdout.write(`more: --cursor ${next}\n`)
}

function table(rows: Row[]): string {
  const columns = Object.keys(rows[0] ?? {})
  const lines = [columns, ...rows.map((row) => columns.map((column) => cell(row[column])))]
  const widths = columns.map((_, at) => Math.max(...lines.map((line) => line[at]?.length ?? 0)))
  return lines
    .map(
      (line) =>
        `${line
          .map((text, at) => text.padEnd(widths[at] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('')
}

/** Limits that are not set say nothing. */
function cell(value: unknown): string {
  if (value === null || value === undefined) return '-'
  if (typeof value !== 'object') return typeof value === 'string' ? value : JSON.stringify(value)
  if (Array.isArray(value)) return value.map(cell).join(',') || '-'
  const set = Object.entries(value).filter(([, inner]) => inner !== null)
  return set.map(([name, inner]) => `${name}=${cell(inner)}`).join(' ') || '-'
}
