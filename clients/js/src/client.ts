/** The client: one connection, the rooms on it, and what is common to them. */

import type { BackoffOptions } from "./backoff.js";
import { ServerClock } from "./clock.js";
import { Connection, type State, type StateDetail } from "./connection.js";
import { surroundings, type Environment } from "./environment.js";
import { Rejected, TidegateError } from "./errors.js";
import type { Lane, PublishMessage, ServerMessage, ServerMessages } from "./messages.js";
import { Outbox, type OutboxOptions, type Published } from "./outbox.js";
import type { RaceOptions } from "./race.js";
import { Room, type Host, type RoomHandlers, type RoomMessage } from "./room.js";
import { safely } from "./safely.js";
import { baseOf, type Closing, type Link, type TransportName } from "./transport.js";

/** How to connect. All but `url` has a default. */
export interface Options {
  /** `https://host`, `http://host`, `wss://host` or `ws://host`. Default: the page's own. */
  url?: string;
  /** In the order in which they are tried. Default: WebTransport, then WebSocket. */
  transports?: readonly TransportName[];
  /** Address for WebTransport, where it is not `https://host/v1/wt`. */
  webtransportUrl?: string;
  /**
   * SHA-256 hashes of certificates to trust for WebTransport besides those that the
   * browser trusts: for development. Asked for before every try.
   */
  certificateHashes?: readonly BufferSource[] | (() => Promise<readonly BufferSource[]>);
  /** Default: 300 ms head start, 10 s in all. */
  race?: Partial<RaceOptions>;
  /** Default: 500 ms at first, 15 s at most. */
  backoff?: Partial<BackoffOptions>;
  /** A connection that held for so long starts the backoff anew. Default: 10 s. */
  stableMs?: number;
  /** A hidden page waits up to so much longer before it reconnects. Default: 30 s. */
  lazyMs?: number;
  /** Default: 100 events, 30 s, 15 a second, 30 at once. */
  publish?: Partial<OutboxOptions>;
  /** For tests, and for places that are no page. */
  environment?: Partial<Environment>;
}

/** What a client tells, by name. */
export interface ClientEvents {
  /** What it is doing; `detail.until` says when the next try is due. */
  state: [state: State, detail: { reason: string; inMs: number | undefined }];
  /** Connected, over this transport. */
  open: [transport: TransportName, session: string];
  /** The connection ended; `returns`: another one will be made. */
  close: [closing: Closing & { returns: boolean }, transport: TransportName];
  /** Another transport than before is in use. */
  transport: [transport: TransportName];
  /** A transport failed, or was late, while connecting. */
  failed: [transport: TransportName, closing: Closing];
  /** Every message of the server as it came, before it is judged. */
  message: [message: ServerMessage, detail: { lane: Lane; size: number; transport: TransportName }];
  /** Every failure, also those told to rooms. */
  error: [error: TidegateError];
}

type Heard<K extends keyof ClientEvents> = (...told: ClientEvents[K]) => void;

/** What went by since the client was made. */
export interface Stats {
  state: State;
  transport: TransportName | undefined;
  connections: number;
  /** Tries at a transport that failed or came late. */
  failures: number;
  messages: number;
  /** Bytes, or characters of JSON, before compression. */
  size: number;
  duplicates: number;
  held: number;
  pulls: number;
  acks: number;
  stale: number;
  /** Shortest round trip seen lately, in milliseconds. */
  rttMs: number | undefined;
  /** The server's Unix time now, as far as known. */
  serverTimeMs: number | undefined;
}

const TALLIES = ["duplicates", "held", "pulls", "acks", "stale"] as const;

export class Client {
  private readonly environment: Environment;
  private readonly host: Host;
  private readonly rooms = new Map<string, Room>();
  private readonly listeners = new Map<keyof ClientEvents, Set<Heard<never>>>();
  private readonly connection: Connection;
  private readonly outbox: Outbox;
  private readonly clock = new ServerClock();
  private state: State = "idle";
  private transport: TransportName | undefined;
  private slot = 0;
  private closed: string | undefined;
  private count = { connections: 0, failures: 0, messages: 0, size: 0 };
  private past = { duplicates: 0, held: 0, pulls: 0, acks: 0, stale: 0 };

  /** @internal Use `connect`. */
  constructor(options: Options) {
    const environment = { ...surroundings(), ...options.environment };
    this.environment = environment;
    const url = options.url ?? globalThis.location?.origin;
    if (url === undefined) throw new TypeError("outside of a page, say where the server is: url");
    const { certificateHashes: hashes, webtransportUrl: webtransport } = options;
    const base = baseOf(url);
    this.connection = new Connection(
      environment,
      {
        address: {
          base,
          webtransport,
          hashes: typeof hashes === "function" || hashes === undefined ? hashes : async () => hashes,
        },
        transports: options.transports ?? ["webtransport", "websocket"],
        race: { headStartMs: 300, timeoutMs: 10_000, ...options.race },
        backoff: { firstMs: 500, mostMs: 15_000, ...options.backoff },
        stableMs: options.stableMs ?? 10_000,
        lazyMs: options.lazyMs ?? 30_000,
      },
      {
        state: (state, detail) => this.changed(state, detail),
        opened: (link, welcome) => this.opened(link, welcome),
        message: (message, lane, size, transport) => this.message(message, lane, size, transport),
        closed: (closing, transport, returns) => this.broken(closing, transport, returns),
        failed: (transport, closing) => {
          this.count.failures += 1;
          this.emit("failed", transport, closing);
        },
        unreachable: (failure) => this.report(failure),
      },
    );
    this.outbox = new Outbox(
      environment,
      { most: 100, timeoutMs: 30_000, perSecond: 15, burst: 30, ...options.publish },
      (message) => this.connection.send(message),
      (ms) => this.clock.answered(ms, environment.now()),
    );
    this.host = this.hosting();
  }

  /**
   * Joins a room and stays in it until `leave`. The first room opens the connection;
   * when the last one is left it is closed.
   *
   * @throws Error if the room is joined already, or the client is closed.
   */
  join(name: string, handlers: RoomHandlers): Room {
    if (this.closed !== undefined) throw new TidegateError("closed", this.closed, { room: name });
    if (this.rooms.has(name)) throw new TidegateError("already_joined", "this client is in the room", { room: name });
    const room = new Room(name, handlers, this.host);
    this.rooms.set(name, room);
    room.prepare();
    const { link } = this.connection;
    if (link) room.opened(link, this.slot);
    else this.connection.want();
    return room;
  }

  /** Hears of something; returns what ends that. */
  on<K extends keyof ClientEvents>(name: K, heard: Heard<K>): () => void {
    const set = this.listeners.get(name) ?? new Set();
    this.listeners.set(name, set);
    set.add(heard);
    return () => set.delete(heard);
  }

  /** Leaves all rooms and ends the connection, for good. */
  close(): void {
    if (this.closed !== undefined) return;
    for (const room of [...this.rooms.values()]) room.leave();
    this.closed = "the client was closed";
    this.connection.stop(this.closed);
    this.outbox.close();
  }

  /** What went by, and how things stand. */
  get stats(): Stats {
    const sum = { ...this.past };
    for (const { numbers } of this.rooms.values()) {
      for (const key of TALLIES) sum[key] += numbers.tally[key];
    }
    return {
      ...this.count,
      ...sum,
      state: this.state,
      transport: this.transport,
      rttMs: this.clock.rttMs,
      serverTimeMs: this.clock.serverTime(this.environment.now()),
    };
  }

  private emit<K extends keyof ClientEvents>(name: K, ...told: ClientEvents[K]): void {
    for (const heard of this.listeners.get(name) ?? []) safely(() => (heard as Heard<K>)(...told));
  }

  private changed(state: State, { reason, until }: StateDetail): void {
    this.state = state;
    const inMs = until === undefined ? undefined : Math.max(0, until - this.environment.now());
    this.emit("state", state, { reason, inMs });
  }

  private opened(link: Link, { session, ack_slot: slot }: ServerMessages["welcome"]): void {
    this.slot = slot ?? 0;
    this.count.connections += 1;
    const other = this.transport !== link.transport;
    this.transport = link.transport;
    if (other) this.emit("transport", link.transport);
    this.emit("open", link.transport, session);
    for (const room of [...this.rooms.values()]) room.opened(link, this.slot);
  }

  private broken(closing: Closing, transport: TransportName, returns: boolean): void {
    this.outbox.broken();
    for (const room of this.rooms.values()) room.broken();
    this.emit("close", { ...closing, returns }, transport);
    if (!returns) this.refused(closing);
  }

  private refused({ code, reason }: Closing): void {
    this.closed = `refused with ${code}: ${reason}`;
    const failure = new TidegateError("refused", `${reason || "the server"} (${code})`, { fatal: true });
    for (const room of [...this.rooms.values()]) room.stopped(failure.code, failure.reason);
    this.report(failure);
  }

  private message(message: ServerMessage, lane: Lane, size: number, transport: TransportName): void {
    this.count.messages += 1;
    this.count.size += size;
    this.emit("message", message, { lane, size, transport });
    switch (message.name) {
      case "accepted":
        return this.outbox.accepted(message.body);
      case "rejected":
        return this.outbox.rejected(message.body);
      case "error":
      case "joined":
      case "frame":
      case "gap":
      case "missed":
        this.aboutRoom(message, lane);
    }
  }

  private aboutRoom(message: RoomMessage, lane: Lane): void {
    const { room } = message.body;
    if (room === undefined) {
      if (message.name !== "error") return;
      const { code, reason, temporary, retry_after_ms: retryAfterMs } = message.body;
      return this.report(new TidegateError(code, reason, { temporary, retryAfterMs }));
    }
    try {
      sane(message);
    } catch (failure) {
      const reason = failure instanceof Error ? failure.message : String(failure);
      this.report(new TidegateError("bad_server_message", reason, { temporary: true }));
      return this.connection.renew(reason);
    }
    this.rooms.get(room)?.message(message, lane);
  }

  /** What rooms need. */
  private hosting(): Host {
    const { clock, environment, outbox } = this;
    return {
      environment,
      link: () => this.connection.link,
      ageOf: (timeMs, now) => Math.max(0, (clock.serverTime(now) ?? now) - timeMs),
      stamped: (timeMs, now) => clock.stamped(timeMs, now),
      answered: (ms, now) => clock.answered(ms, now),
      entered: (room) => outbox.opened(room.name),
      over: (room, code, reason) => this.over(room, code, reason),
      publish: (room, { body }) => this.publish(room, body),
      renew: (reason, afterMs) => this.renew(reason, afterMs),
      report: (error) => this.report(error),
    };
  }

  private over(room: Room, code: string, reason: string): void {
    if (this.rooms.get(room.name) !== room) return;
    this.rooms.delete(room.name);
    for (const key of TALLIES) this.past[key] += room.numbers.tally[key];
    this.outbox.dropped(room.name, code, reason);
    if (this.rooms.size === 0) this.connection.rest();
  }

  private publish(room: Room, body: PublishMessage): Promise<Published> {
    if (this.rooms.get(room.name) === room) return this.outbox.add(body);
    const code = room.phase === "left" ? "left" : "refused";
    const detail = { room: room.name };
    return Promise.reject(new Rejected(code, "this client is not in the room", body.id, detail));
  }

  /** A refusal for now: other rooms on the connection must not suffer for it. */
  private renew(reason: string, afterMs: number): void {
    const joined = [...this.rooms.values()].some(({ phase }) => phase === "joined");
    if (afterMs === 0 || !joined) this.connection.renew(reason, afterMs);
  }

  private report(error: TidegateError): void {
    this.emit("error", error);
  }
}

/**
 * What a room keeps must be numbers that a double holds, and lists.
 *
 * @throws RangeError for a message that has others.
 */
function sane({ name, body }: RoomMessage): void {
  const numbers: unknown[] = [];
  if (name === "gap") numbers.push(body.first_seq, body.last_seq);
  if (name === "missed") numbers.push(body.from, body.to);
  if (name === "frame") numbers.push(body.first_seq, body.last_seq);
  if (name === "joined") numbers.push(body.seq);
  if (name === "joined" || name === "frame") {
    numbers.push(body.epoch, body.important);
    const events = name === "joined" ? body.state : body.events;
    if (!Array.isArray(events) || !Array.isArray(body.totals)) throw new RangeError(`${name} without its lists`);
    for (const { seq, important } of events) numbers.push(seq ?? 0, important ?? 0);
  }
  for (const number of numbers) {
    if (!Number.isSafeInteger(number) || (number as number) < 0) {
      throw new RangeError(`${name} has ${String(number)} where a number below 2^53 belongs`);
    }
  }
}

/** Makes a client. Nothing is connected before a room is joined. */
export function connect(options: string | Options = {}): Client {
  return new Client(typeof options === "string" ? { url: options } : options);
}
