/** A program that a supervisor spawned with an IPC channel ends, with all it started, when that channel does. */
export function endWithParent(signal: 'SIGKILL' | 'SIGTERM' = 'SIGKILL'): void {
  if (!process.channel) return
  process.once('disconnect', () => {
    try {
      process.kill(-process.pid, signal)
    } catch {
      process.kill(process.pid, signal)
    }
  })
  // Listening for the end must not keep a program alive that is done.
  process.channel.unref()
}
