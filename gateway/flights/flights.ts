/**
 * One of a tenant's eight objects: the flights whose prompts hash onto it. Identical cacheable requests share one
 * flight while it runs and for a few seconds after, since those who missed the cache before the answer was kept are
 * still on their way. An object that restarts takes up what may be resumed, from prompt and emitted tokens.
 */
import { DurableObject } from 'cloudflare:workers'
import { ApiError } from '../../src/errors.ts'
import type { TokenUsage } from '../../src/protocol.ts'
import * as backend from '../chat/backend.ts'
import type { CachePolicy, PolicyChange } from '../cache/cache-policy.ts'
import { PolicyBook } from '../cache/policy-book.ts'
import type { FlightRequest } from './flight-client.ts'
import { wireId } from './flight-names.ts'
import { Flight } from './flight.ts'
import { backendIsBack, continuable, wasLost } from './going-on.ts'
import { FlightStore, type StoredFlight, type TicketRecord } from './flight-store.ts'
import { isFinishDelta, type Delta } from '../chat/answers.ts'
import { startGeneration, type Generation } from '../chat/generation.ts'
import { takeOver } from '../limits/admission.ts'
import { Recorder, storeFar } from '../cache/result-store.ts'

/** How long a finished flight still serves identical requests, and a resumed one stays in memory. */
const linger_ms = 10_000
const write_ms = 250
/** Nobody waits for a claim longer than this to be forgotten after its time. */
const expiry_slack_ms = 60_000

interface Live {
  id: string
  flight: Flight
  request: FlightRequest
  /** Lines in storage. */
  written: number
  /** More than its starter wanted it, or may want it elsewhere: its answer goes to KV. */
  wanted: boolean
  /** Under which the backend knows this attempt: one that an earlier object began may still be under way there. */
  wire: string
  /** Resolves once its starter's limits let it pass, or it failed. */
  admitted: Promise<Admitted>
  /** Milliseconds since the epoch; null: it runs. */
  ended_ms: number | null
}

export interface Cancelled {
  /** `completed`: there was nothing left to stop. */
  status: 'cancelled' | 'completed'
  /** null: others go on with it. */
  usage: TokenUsage | null
}

type Admitted = Pick<Generation, 'headers' | 'capped'>
const hasFailed = ({ flight }: Live): boolean => flight.state === 'failed'
const free: Admitted = { headers: {}, capped: false }
const deltasOf = (flight: Flight) => flight.linesFrom(0).map((line) => JSON.parse(line) as Delta)
const wireOf = ({ caller }: FlightRequest, id: string) =>
  `${wireId(caller.tenantId, id)}.${crypto.randomUUID().slice(0, 8)}`

export class Flights extends DurableObject<Env> {
  #store: FlightStore
  /** Object 0 holds the tenant's. */
  #policies: PolicyBook
  readonly #byKey = new Map<string, Live>()
  readonly #byTicket = new Map<string, Live>()

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env)
    this.#store = new FlightStore(ctx.storage)
    this.#policies = this.#openPolicies()
  }

  #openPolicies = () => new PolicyBook(this.ctx.storage.kv, this.env, (time) => this.#alarmAt(time))

  /** Everything, and what runs is stopped: its tenant was deleted. */
  async erase(): Promise<void> {
    for (const { flight } of this.#byTicket.values())
      for (const ticket of flight.tickets.values()) flight.cancel(ticket)
    await this.ctx.storage.deleteAlarm()
    await this.ctx.storage.deleteAll()
    this.#store = new FlightStore(this.ctx.storage)
    this.#policies = this.#openPolicies()
    this.#byKey.clear()
    this.#byTicket.clear()
  }

  override async fetch(request: Request): Promise<Response> {
    const { pathname, searchParams } = new URL(request.url)
    if (pathname === '/open') return this.#open(await request.json<FlightRequest>())
    return this.#attach(searchParams.get('id') ?? '')
  }

  /** Running flights and their readers; for tests and faults. */
  stats(): { flights: number; readers: number } {
    const running = new Set([...this.#byTicket.values()].filter(({ flight }) => flight.state === 'running'))
    let readers = 0
    for (const { flight } of running) for (const ticket of flight.tickets.values()) readers += ticket.readers
    return { flights: running.size, readers }
  }

  /**
   * Joins the flight of the same ticket or key, or starts one. What its starter's limits refuse or cut short is not
   * shared: a follower may have others. No await stands between finding nothing and starting, so a crowd starts one.
   */
  async #open(request: FlightRequest): Promise<Response> {
    const { ticket, key, resumable, expires } = request
    let known = this.#find(ticket.id)
    const ofKey = () => (key === null ? undefined : this.#byKey.get(key))
    for (let other = ofKey(); known === undefined && other !== undefined; other = ofKey()) {
      if (hasFailed(other) || Date.now() - (other.ended_ms ?? Date.now()) > request.oldest_ms) break
      const { capped } = await other.admitted
      if (capped && ofKey() === other) break
      if (!capped && !hasFailed(other)) known = other
    }
    const joined = known !== undefined
    const live = known ?? this.#start(request)
    this.#byTicket.set(ticket.id, live)
    if (joined) live.wanted = true
    if (resumable && joined) this.#persist(live, ticket, expires)
    const own = live.flight.ticket(ticket.id, resumable)
    own.cancelled = false
    const body = live.flight.read(own)
    const { headers, capped } = joined ? free : await live.admitted
    return new Response(body, {
      headers: {
        'x-flight': joined ? 'joined' : 'started',
        'x-flight-headers': JSON.stringify(headers),
        ...(capped ? { 'x-flight-capped': 'yes' } : {}),
      },
    })
  }

  #attach(id: string): Response {
    const live = this.#find(id)
    const record = this.#store.find(id)?.record
    if (live === undefined || record === undefined) return new Response(null, { status: 404 })
    return new Response(live.flight.read(live.flight.ticket(id, true)), {
      headers: { 'x-ticket': JSON.stringify(record), 'x-flight': live.flight.state },
    })
  }

  /** null: nothing is known of it, or it failed. */
  async cancel(id: string): Promise<Cancelled | null> {
    const live = this.#live(id)
    if (live === undefined) return this.#cancelStored(id)
    const { flight, wire } = live
    const ticket = flight.tickets.get(id)
    if (ticket === undefined) return null
    if (flight.state === 'done') return { status: 'completed', usage: flight.usage() }
    flight.cancel(ticket)
    const isStopped = flight.signal.aborted
    const usage = isStopped ? await backend.cancel(this.env, wire).catch(() => null) : null
    return { status: 'cancelled', usage }
  }

  /** What was interrupted is not taken up in order to be stopped. */
  #cancelStored(id: string): Cancelled | null {
    const stored = this.#store.find(id)?.flight
    if (stored === undefined) return null
    if (stored.done) return { status: 'completed', usage: this.#restore(stored).flight.usage() }
    this.#store.dropTicket(id, stored.id)
    return { status: 'cancelled', usage: null }
  }

  claim(
    key: string,
    body: string,
    generation: string,
    expires: number,
  ): { body: string; generation: string } {
    const claimed = this.#store.claim(key, body, generation, Date.now(), expires)
    this.#expireLater(expires)
    return claimed
  }

  /** In memory, and not failed, under any of its tickets. */
  #live(ticketId: string): Live | undefined {
    const live = this.#byTicket.get(ticketId)
    return live !== undefined && live.flight.state !== 'failed' ? live : undefined
  }

  /** In memory, or from storage: finished, or taken up again. */
  #find(ticketId: string): Live | undefined {
    const live = this.#live(ticketId)
    if (live !== undefined) return live
    const stored = this.#store.find(ticketId)?.flight
    if (stored === undefined) return undefined
    return this.#restore(stored)
  }

  #restore(stored: StoredFlight): Live {
    const { id, request } = stored
    const flight = this.#flight(request.key, stored.lines)
    const tickets = [id, ...this.#store.tickets(id)]
    for (const ticket of tickets) flight.ticket(ticket, true)
    if (stored.done) flight.finish()
    const live = stored.done ? this.#landed(id, flight, request) : this.#launch(id, flight, request)
    if (!stored.done) {
      if (stored.wire !== null) this.ctx.waitUntil(takeOver(this.env, request, stored.wire))
      this.#store.attempt(id, live.wire)
    }
    for (const ticket of tickets) this.#byTicket.set(ticket, live)
    return live
  }

  #landed(id: string, flight: Flight, request: FlightRequest): Live {
    const admitted = Promise.resolve(free)
    const ended_ms = Date.now()
    const live = { id, flight, request, written: flight.length, wanted: true, wire: '', admitted, ended_ms }
    this.#forgetLater(live)
    return live
  }

  #start(request: FlightRequest): Live {
    const { ticket, expires } = request
    const flight = this.#flight(request.key, request.lines)
    const live = this.#launch(ticket.id, flight, request)
    if (request.resumable) this.#persist(live, ticket, expires)
    return live
  }

  #flight = (key: string | null, lines: string[]) =>
    new Flight(key, lines, (ticket) => this.#byTicket.delete(ticket))

  #persist(live: Live, ticket: TicketRecord, expires: number): void {
    const { id, flight, request } = live
    if (this.#store.find(id) === null) {
      this.#store.begin(id, { ...request, lines: [] }, live.wire, expires)
      this.#store.append(id, 0, flight.linesFrom(0))
      live.written = flight.length
      if (flight.state === 'done') this.#store.done(id)
      this.#store.addTicket(id, { ...request.ticket, id }, expires)
    }
    this.#store.addTicket(id, ticket, expires)
    this.#expireLater(expires)
  }

  #launch(id: string, flight: Flight, request: FlightRequest): Live {
    const admitted = Promise.withResolvers<Admitted>()
    const live: Live = {
      id,
      flight,
      request,
      written: flight.length,
      wanted: request.resumable,
      wire: wireOf(request, id),
      admitted: admitted.promise,
      ended_ms: null,
    }
    if (flight.key !== null) this.#byKey.set(flight.key, live)
    this.ctx.waitUntil(this.#run(live, admitted.resolve))
    return live
  }

  async #run(live: Live, admitted: (by: Admitted) => void): Promise<void> {
    const { flight } = live
    const recorder = new Recorder()
    recorder.push(deltasOf(flight))
    const stopWriting = this.#writeAtIntervals(live)
    try {
      await this.#attempt(live, recorder, admitted).catch(async (cause: unknown) => {
        if (!(await this.#mayGoOn(live, cause))) throw cause
        await this.#attempt(live, recorder, admitted)
      })
    } catch (cause) {
      flight.fail(
        cause instanceof ApiError
          ? cause
          : new ApiError('internal_error', 'The answer broke off.', { cause }),
      )
    } finally {
      admitted(free)
      live.ended_ms = Date.now()
      stopWriting()
      this.#forgetLater(live)
    }
  }

  /** Generates it, or the rest of it. */
  async #attempt(live: Live, recorder: Recorder, admitted: (by: Admitted) => void): Promise<void> {
    const { flight, request, wire } = live
    const { caller, prompt, key, ttl_s } = request
    const before = deltasOf(flight)
    const emitted = continuable(prompt, before)
    let repeated = before.length - emitted.length
    const { deltas, headers, capped } = await startGeneration(prompt, {
      env: this.env,
      requestId: wire,
      caller,
      signal: flight.signal,
      defer: (work) => this.ctx.waitUntil(work),
      emitted,
    })
    admitted({ headers, capped })
    for await (const all of deltas) {
      const batch = all.slice(repeated)
      repeated -= all.length - batch.length
      recorder.push(batch)
      if (flight.state === 'running') flight.push(batch)
      const entry = batch.some(isFinishDelta) ? recorder.entry(ttl_s) : null
      if (key === null || entry === null) continue
      if (entry.finish.cut_short) this.#unshare(live)
      else if (live.wanted) this.ctx.waitUntil(storeFar(this.env, key, entry))
    }
  }

  /** What was begun and may be resumed outlives its backend too: a second attempt, under a name of its own, goes on. */
  async #mayGoOn(live: Live, cause: unknown): Promise<boolean> {
    const { id, flight, request } = live
    const isBegun = flight.length > 0 && this.#isStored(flight)
    if (!isBegun || !wasLost(cause) || !(await backendIsBack(this.env, flight.signal))) return false
    live.wire = wireOf(request, id)
    this.#store.attempt(id, live.wire)
    return true
  }

  /** @returns to be called at the end: writes the rest, or forgets what failed. */
  #writeAtIntervals(live: Live): () => void {
    const { id, flight } = live
    const write = () => {
      if (!this.#isStored(flight)) return
      this.#store.append(id, live.written, flight.linesFrom(live.written))
      live.written = flight.length
    }
    const timer = setInterval(() => {
      if (flight.state === 'running') write()
    }, write_ms)
    return () => {
      clearInterval(timer)
      if (!this.#isStored(flight)) return
      if (flight.state === 'failed') return this.#store.forget(id)
      write()
      this.#store.done(id)
    }
  }

  #isStored = (flight: Flight) => [...flight.tickets.values()].some(({ resumable }) => resumable)

  #forgetLater(live: Live): void {
    if (live.flight.state === 'failed') this.#unshare(live)
    setTimeout(() => {
      this.#unshare(live)
      for (const [id, known] of this.#byTicket) if (known === live) this.#byTicket.delete(id)
    }, linger_ms)
  }

  #unshare(live: Live): void {
    const { key } = live.flight
    if (key !== null && this.#byKey.get(key) === live) this.#byKey.delete(key)
  }

  #expireLater(expires: number): void {
    this.ctx.waitUntil(this.#alarmAt(expires + expiry_slack_ms))
  }

  async #alarmAt(time: number): Promise<void> {
    const alarm = await this.ctx.storage.getAlarm()
    if (alarm === null || alarm > time) await this.ctx.storage.setAlarm(time)
  }

  override async alarm(): Promise<void> {
    const expiry = this.#store.expire(Date.now())
    if (expiry !== null) await this.#alarmAt(expiry + expiry_slack_ms)
    const unpublished = await this.#policies.publishDue()
    if (unpublished !== null) await this.#alarmAt(unpublished)
  }

  async changePolicy(tenantId: string, change: PolicyChange): Promise<CachePolicy | 'full' | 'late'> {
    return this.#policies.change(tenantId, change)
  }
}
