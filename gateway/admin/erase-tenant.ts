/**
 * Removes what a deleted tenant has left in every store. Each step finds what is still there, so it may be cut off
 * anywhere and begun again. What stays: the audit log and the counts of usage, the operator's own books, without a text of
 * the tenant's; and copies of answers in the data centres' caches, which nobody can ask for any more and which lapse.
 */
import { eraseResults } from '../cache/result-store.ts'
import { flight_objects, flightsOf } from '../flights/flight-names.ts'
import { hookOf } from '../hooks/hook.ts'
import { batchesOf } from '../jobs/file-routes.ts'
import { eraseFiles } from '../jobs/file-store.ts'
import { jobsOf } from '../jobs/job-routes.ts'
import { forgetKey } from '../keys/identify.ts'
import { templatesOf } from '../templates/template-use.ts'

const hooks_per_page = 100

export async function eraseTenant(env: Env, tenantId: string, keyHashes: string[]): Promise<void> {
  for (const hash of keyHashes) await forgetKey(env, hash)
  const jobs = jobsOf(env, tenantId)
  for (let hooks = await jobs.hooks('', hooks_per_page); hooks.length > 0;) {
    for (const id of hooks) {
      await hookOf(env, id).remove()
      await jobs.removeHook(id)
    }
    hooks = await jobs.hooks('', hooks_per_page)
  }
  await jobs.erase()
  await batchesOf(env, tenantId).erase()
  await eraseFiles(env.FILES, tenantId)
  await templatesOf(env, tenantId, '').erase()
  for (let shard = 0; shard < flight_objects; shard++) await flightsOf(env, tenantId, shard).erase()
  await eraseResults(env, tenantId)
  await env.REGISTRY.getByName('registry').remove(tenantId)
}
