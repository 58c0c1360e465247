/** Formats as patterns: every match is valid, not everything valid matches (leap days, quoted mail names, long hosts). */
const date =
  '\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))'
const time = '(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:0\\d|1[0-3]):[0-5]\\d)'
const byte = '(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)'
// Short, since each step of a bounded repetition costs the compiler a look at the whole vocabulary.
const label = '[a-z0-9]{1,12}(?:-[a-z0-9]{1,12})?'
const host = `${label}(?:\\.${label}){0,2}`

export const formats: Readonly<Record<string, string>> = {
  date,
  time,
  'date-time': `${date}T${time}`,
  duration: 'P(?:\\d{1,3}W|\\d{1,3}D|T\\d{1,4}[HMS]|\\d{1,3}DT\\d{1,4}[HMS])',
  uuid: '[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}',
  ipv4: `${byte}(?:\\.${byte}){3}`,
  ipv6: '[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){7}',
  hostname: host,
  email: `[a-z0-9]{1,16}(?:[._-][a-z0-9]{1,16})?@${host}\\.[a-z]{2,6}`,
  uri: `https?://${host}\\.[a-z]{2,6}(?:/[A-Za-z0-9._~-]+)*/?(?:\\?[A-Za-z0-9=&_-]+)?`,
}
