/** For a child of `npm start`: ends, with everything it started, when the supervisor ends or lets go of it. */
export function endWithParent(before: () => Promise<void> = async () => undefined): void {
  if (!process.channel) return
  process.once('disconnect', () => {
    const end = () => {
      try {
        process.kill(-process.pid, 'SIGKILL')
      } catch {
        process.exit(1)
      }
    }
    setTimeout(end, before_ms_max)
    before().then(end, end)
  })
  // Listening for the end must not keep a program alive that is done.
  process.channel.unref()
}

const before_ms_max = 500
