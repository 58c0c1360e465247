import * as fc from 'fast-check'
import { expect, it } from 'vitest'
import { FairQueue } from '../../gpu-backend/fair-queue.ts'

type Item = [owner: string, place: number]
const pushes = fc
  .array(fc.constantFrom('a', 'b', 'c', 'd'), { maxLength: 60 })
  .map((owners) => owners.map((owner, place): Item => [owner, place]))

it('keeps the order of each owner, and while two have something left neither is two turns ahead', () => {
  fc.assert(
    fc.property(pushes, (items) => {
      const queue = new FairQueue<Item>(100, 100)
      for (const item of items) expect(queue.push(item[0], item)).toBeNull()
      const left = Map.groupBy(items, ([owner]) => owner)
      const turns = new Map([...left.keys()].map((owner) => [owner, 0]))
      for (let size = items.length; size > 0; size--) {
        expect(queue.size).toBe(size)
        const item = queue.shift()!
        expect(item).toBe(left.get(item[0])?.shift())
        turns.set(item[0], turns.get(item[0])! + 1)
        const waiting = [...turns].filter(([owner]) => left.get(owner)!.length > 0).map(([, count]) => count)
        if (waiting.length > 0) expect(Math.max(...waiting) - Math.min(...waiting)).toBeLessThanOrEqual(1)
      }
      expect(queue.shift()).toBeUndefined()
    }),
  )
})

it('is bounded in all and by owner, and has room again when something left', () => {
  const queue = new FairQueue<number>(3, 2)
  expect([queue.push('a', 1), queue.push('a', 2), queue.push('a', 3)]).toEqual([null, null, 'owner'])
  expect([queue.push('b', 4), queue.push('b', 5)]).toEqual([null, 'queue'])
  expect(queue.remove((item) => item % 2 === 0)).toEqual([2, 4])
  expect(queue.size).toBe(1)
  expect([queue.push('b', 6), queue.shift(), queue.shift(), queue.shift()]).toEqual([null, 1, 6, undefined])
})
