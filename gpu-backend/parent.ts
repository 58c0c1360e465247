/** A program that a supervisor spawned with an IPC channel ends, with all it started, when that channel does. */
export function endWithParent(): void {
  if (!process.channel) return
  process.once('disconnect', () => {
    try {
      process.kill(-process.pid, 'SIGKILL')
    } catch {
      process.kill(process.pid, 'SIGKILL')
    }
  })
  // Listening for the end must not keep a program alive that is done.
  process.channel.unref()
}
