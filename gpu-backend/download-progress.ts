/** How far a download is: a bar on a terminal, a line every few seconds elsewhere. On stderr. */
import { Presets, SingleBar } from 'cli-progress'

export interface Progress {
  add(bytes: number): void
  stop(): void
}

const line_every_ms = 5000
const mib = (bytes: number): string => (bytes / 1024 ** 2).toFixed(0)

export function progressBar(label: string, total: number, present: number): Progress {
  return process.stderr.isTTY ? bar(label, total, present) : lines(label, total, present)
}

function bar(label: string, total: number, present: number): Progress {
  const started = performance.now()
  let done = present
  const bar = new SingleBar(
    {
      format: `${label} {bar} {percentage}% | {done}/{size} MiB | {speed} MiB/s | {eta_formatted} left`,
      stream: process.stderr,
      // Ctrl-C ends this process where it stands: nothing of the terminal may be left changed.
      hideCursor: false,
      linewrap: true,
      etaBuffer: 200,
    },
    Presets.shades_classic,
  )
  const shown = () => ({
    done: mib(done),
    size: mib(total),
    speed: ((done - present) / 1024 ** 2 / ((performance.now() - started) / 1000 || 1)).toFixed(1),
  })
  bar.start(total, present, shown())
  return {
    add(bytes) {
      done += bytes
      bar.update(done, shown())
    },
    stop: () => bar.stop(),
  }
}

function lines(label: string, total: number, present: number): Progress {
  let done = present
  let next = performance.now() + line_every_ms
  const write = () =>
    process.stderr.write(`${label} ${mib(done)}/${mib(total)} MiB (${Math.floor((done / total) * 100)}%)\n`)
  write()
  return {
    add(bytes) {
      done += bytes
      if (performance.now() < next) return
      next = performance.now() + line_every_ms
      write()
    },
    stop: write,
  }
}
