/**
 * A room as the page sees it: joined, and joined again after every break, until it is
 * left or refused.
 */

import type { Environment } from "./environment.js";
import { TidegateError } from "./errors.js";
import type {
  ClientMessage,
  Counts,
  Frame,
  Joined,
  Lane,
  ServerError,
  ServerMessage,
  WireEvent,
  WireTotal,
} from "./messages.js";
import { Numbers, type GapCause, type News } from "./numbers.js";
import type { Published } from "./outbox.js";
import { safely } from "./safely.js";
import type { Link } from "./transport.js";

/** Something that happened in the room. */
export interface RoomEvent {
  /** The publisher's, unique. */
  id: string;
  kind: string;
  user: string;
  /** Its number among all that is ordered; sampled events have none. */
  seq: number | undefined;
  /** Its number among those that must not be missed. */
  important: number | undefined;
  /** A JSON value, or a `Uint8Array` of what is not JSON. */
  payload: unknown;
  key: string | undefined;
  amount: number | undefined;
  /** When the server received it: Unix time in milliseconds, by its clock. */
  timeMs: number;
  /** How long ago that was when it came here, in milliseconds. */
  ageMs: number;
}

/** A sum that the server keeps: likes, gifts of one user. */
export interface Total {
  kind: string;
  key: string;
  /** Whose, for kinds that sum by user and key. */
  user: string | undefined;
  /** What counts. */
  sum: number;
  /** What was added, for showing that something happened; 0 says that nothing did. */
  delta: number;
}

/**
 * What a client that reads too slowly is not sent: each with all before it. Of ordered
 * events a `Gap` tells how many.
 */
export type Withheld = (typeof WITHHELD)[number];

const WITHHELD = ["nothing", "sampled", "totals", "ordered"] as const;

/** What one flush of the room brought, without what was here before. */
export interface RoomFrame {
  /** It covers these numbers; first = last + 1: none. */
  firstSeq: number;
  lastSeq: number;
  /** The room's latest important number. */
  important: number;
  /** When the server made it, and how long ago that was, in milliseconds. */
  timeMs: number;
  ageMs: number;
  events: RoomEvent[];
  totals: Total[];
  /** What the room itself left out, by kind. */
  dropped: Counts;
  online: number | undefined;
  /** What this client is not sent at present. */
  withheld: Withheld;
  lane: Lane;
}

/** The room's state when it was joined, or anew when this client had fallen behind. */
export interface RoomState {
  /** Newest event of each kind and key of which only the latest counts. */
  events: RoomEvent[];
  totals: Total[];
  /** Viewers now, and different users so far, with whether those were counted. */
  online: number;
  users: number;
  usersExact: boolean;
  epoch: number;
  seq: number;
  important: number;
  /** All that was missed since the last connection follows. */
  recovered: boolean;
  /** This client had been sent less than others: this replaces what it holds. */
  rebased: boolean;
}

/** Ordered events that will not come. */
export interface Gap {
  firstSeq: number;
  lastSeq: number;
  /** How many of each kind, where the server said so. */
  dropped: Counts;
  cause: GapCause;
}

/** Important events that did not come when they should. */
export interface Missed {
  from: number;
  to: number;
  /** The server no longer has them; otherwise they are being asked for. */
  gone: boolean;
}

/** What a page wants to hear of a room. All are optional. */
export interface RoomHandlers {
  /**
   * Brings a token: at the first join, and again when the server refuses the last one.
   * A plain string cannot be renewed.
   */
  token: string | (() => string | Promise<string>);
  /** Each event once: important ones in order of `important`, others of `seq`. */
  onEvent?(event: RoomEvent, room: Room): void;
  /** Sums that changed; `replace`: all there are, forget those you hold. */
  onTotals?(totals: Total[], replace: boolean, room: Room): void;
  /** Joined, or rebased: replaces what you hold of the room. */
  onState?(state: RoomState, room: Room): void;
  /** A whole frame, before its events and totals are told one by one. */
  onFrame?(frame: RoomFrame, room: Room): void;
  /** This client is slow and is sent less from here on, or more again. */
  onWithheld?(withheld: Withheld, room: Room): void;
  onGap?(gap: Gap, room: Room): void;
  onOnline?(online: number, room: Room): void;
  onMissed?(missed: Missed, room: Room): void;
  /** Refusals and failures about this room; after a `fatal` one it is over. */
  onError?(error: TidegateError, room: Room): void;
}

const HANDLERS = [
  "onEvent",
  "onTotals",
  "onState",
  "onFrame",
  "onWithheld",
  "onGap",
  "onOnline",
  "onMissed",
  "onError",
] as const;

/** The same, none of which throws. */
function guarded(handlers: RoomHandlers): RoomHandlers {
  const safe: RoomHandlers = { token: handlers.token };
  for (const name of HANDLERS) {
    if (handlers[name] === undefined) continue;
    safe[name] = (...told: unknown[]) => safely(() => (handlers[name] as (...told: unknown[]) => void)(...told));
  }
  return safe;
}

/** Where a room stands. */
export type RoomPhase = "waiting" | "joining" | "joined" | "left" | "refused";

/** What is said about a room. */
export type RoomMessage = Extract<ServerMessage, { name: "joined" | "frame" | "gap" | "missed" | "error" }>;

/** What a room needs of its client. */
export interface Host {
  readonly environment: Environment;
  link(): Link | undefined;
  /** How old that was at `now`, as far as the server's clock is known. */
  ageOf(timeMs: number, now: number): number;
  stamped(timeMs: number, now: number): void;
  answered(ms: number, now: number): void;
  entered(room: Room): void;
  over(room: Room, code: string, reason: string): void;
  publish(room: Room, body: ClientMessage & { name: "publish" }): Promise<Published>;
  /** The connection is of no use for so long. */
  renew(reason: string, afterMs: number): void;
  report(error: TidegateError): void;
}

/** Important frames that may come before the `joined` that they belong to. */
const MOST_EARLY = 64;
/** When to ask again for a token that could not be had: bound of a random wait. */
const TOKEN_AGAIN_MS = 5_000;
const JOIN_AGAIN_MS = 2_000;
/** A token that is refused so soon after it was brought will be refused again. */
const FRESH_MS = 10_000;

const toTotal = ({ kind, key, user, sum, delta }: WireTotal): Total => ({
  kind,
  key,
  user,
  sum,
  delta: delta ?? 0,
});

export class Room {
  /** Where it stands. */
  phase: RoomPhase = "waiting";
  /** @internal */
  readonly numbers: Numbers;
  private readonly handlers: RoomHandlers;
  private token: string | undefined;
  private asking = false;
  /** The token came after one was refused, and when. */
  private renewed = false;
  private fetchedAt = 0;
  private early: [Frame, number][] = [];
  private withheld: Withheld = "nothing";
  private joinSent = 0;
  private timer: unknown;
  private armedFor: number | undefined;
  private again: unknown;
  private published = 0;

  /** @internal */
  constructor(
    readonly name: string,
    handlers: RoomHandlers,
    private readonly host: Host,
  ) {
    this.handlers = guarded(handlers);
    this.numbers = new Numbers(name, host.environment.random);
    if (typeof handlers.token === "string") this.token = handlers.token;
  }

  /**
   * Publishes an event as this viewer. Resolves when the server accepted it; over a
   * break it is sent again with the same id, so it takes place once.
   *
   * @param payload any JSON value, or a `Uint8Array`.
   * @throws Rejected with the server's code and, where it gave one, `retryAfterMs`.
   */
  publish(
    kind: string,
    payload?: unknown,
    { key, amount, id = this.newId() }: { key?: string; amount?: number; id?: string } = {},
  ): Promise<Published> {
    const body = { room: this.name, id, kind, payload: payload ?? null, ...(key !== undefined && { key }) };
    const message = { ...body, ...(amount !== undefined && { amount }) };
    return this.host.publish(this, { name: "publish", body: message });
  }

  private newId(): string {
    const { random } = this.host.environment;
    const part = (): string => Math.floor(random() * 2 ** 53).toString(36);
    this.published += 1;
    return `${part()}${part()}-${this.published.toString(36)}`;
  }

  /** Leaves. Nothing more is told of the room. */
  leave(): void {
    if (this.phase === "left" || this.phase === "refused") return;
    const link = this.host.link();
    if (this.phase === "joined") {
      for (const message of this.numbers.farewell()) link?.send(message);
    }
    if (this.phase !== "waiting") link?.send({ name: "leave", body: { room: this.name } });
    this.finish("left", "left", "the room was left");
  }

  /** Where it stands in the room's numbers; `undefined` before the first join. */
  get position(): { epoch: number; seq: number; important: number } | undefined {
    return this.numbers.position;
  }

  /** @internal There is a connection. */
  opened(link: Link, slot: number): void {
    this.numbers.connected(link.split, slot);
    this.join();
  }

  /** @internal There is none any more. */
  broken(): void {
    this.rest();
    this.withheld = "nothing";
    if (this.phase === "joining" || this.phase === "joined") this.phase = "waiting";
  }

  /** @internal The client has stopped for good. */
  stopped(code: string, reason: string): void {
    const detail = { room: this.name, fatal: true };
    this.handlers.onError?.(new TidegateError(code, reason, detail), this);
    this.finish("refused", code, reason);
  }

  /** @internal Asks for the token while the connection is being made. */
  prepare(): void {
    if (this.token === undefined) this.fetchToken();
  }

  private rest(): void {
    const { environment } = this.host;
    environment.clearTimer(this.timer);
    environment.clearTimer(this.again);
    this.armedFor = undefined;
    this.early = [];
  }

  private finish(phase: "left" | "refused", code: string, reason: string): void {
    this.phase = phase;
    this.rest();
    this.host.over(this, code, reason);
  }

  private join(): void {
    const link = this.host.link();
    if (link === undefined || this.phase !== "waiting") return;
    if (this.token === undefined) return this.fetchToken();
    const resume = this.numbers.position;
    const body = { room: this.name, token: this.token, acks: true };
    this.joinSent = this.host.environment.now();
    this.phase = "joining";
    link.send({ name: "join", body: resume ? { ...body, resume } : body });
  }

  private joinLater(bound: number): void {
    const { environment } = this.host;
    environment.clearTimer(this.again);
    this.again = environment.setTimer(() => this.join(), bound);
  }

  private fetchToken(): void {
    const { token } = this.handlers;
    if (this.asking || typeof token === "string") return;
    this.asking = true;
    Promise.resolve()
      .then(token)
      .then(
        (brought) => {
          this.asking = false;
          this.token = brought;
          this.fetchedAt = this.host.environment.now();
          this.join();
        },
        (failure: unknown) => {
          this.asking = false;
          if (this.phase !== "waiting") return;
          const reason = failure instanceof Error ? failure.message : String(failure);
          const detail = { temporary: true, room: this.name };
          this.fail(new TidegateError("token_unavailable", reason, detail));
          this.joinLater(this.host.environment.random() * TOKEN_AGAIN_MS);
        },
      );
  }

  /** @internal A message about this room. */
  message(message: RoomMessage, lane: Lane): void {
    const now = this.host.environment.now();
    const inside = this.phase === "joined";
    switch (message.name) {
      case "joined":
        this.joined(message.body, now);
        break;
      case "frame":
        this.frame(message.body, lane, now);
        break;
      case "error":
        this.error(message.body, now);
        break;
      case "gap":
        if (inside) this.tell(this.numbers.gap(message.body));
        break;
      case "missed": {
        const { from, to } = message.body;
        const missing = inside && this.numbers.missed(message.body, now);
        if (missing) this.handlers.onMissed?.({ from, to, gone: false }, this);
      }
    }
    this.arm();
  }

  private joined(body: Joined, now: number): void {
    if (this.phase === "joining") this.host.answered(now - this.joinSent, now);
    else if (this.phase !== "joined") return;
    this.phase = "joined";
    this.renewed = false;
    const news = this.numbers.joined(body, now);
    const totals = body.totals.map(toTotal);
    this.handlers.onState?.(
      {
        events: body.state.map((event) => this.toEvent(event, now)),
        totals,
        online: body.online,
        users: body.users ?? 0,
        usersExact: body.users_exact ?? false,
        epoch: body.epoch,
        seq: body.seq,
        important: body.important,
        recovered: body.recovered,
        rebased: body.rebased ?? false,
      },
      this,
    );
    this.handlers.onTotals?.(totals, true, this);
    this.tell(news);
    this.host.entered(this);
    const { early } = this;
    this.early = [];
    for (const [frame, came] of early) this.frame(frame, "important", came);
  }

  private frame(frame: Frame, lane: Lane, now: number): void {
    if (this.phase === "joining" && lane === "important" && this.early.length < MOST_EARLY) {
      // Beyond the bound it is pulled, as anything else that did not come.
      this.early.push([frame, now]);
    }
    if (this.phase !== "joined") return;
    this.host.stamped(frame.time_ms, now);
    this.hold(frame, lane);
    const news = this.numbers.frame(frame, lane, now);
    if (news === undefined) return this.host.renew("another numbering than was joined", 0);
    const events = news.events.map((event) => this.toEvent(event, now));
    const totals = news.totals.map(toTotal);
    if (this.handlers.onFrame) {
      const { first_seq: firstSeq, last_seq: lastSeq, important, time_ms: timeMs, dropped = {} } = frame;
      const ageMs = this.host.ageOf(timeMs, now);
      const { online } = news;
      const { withheld } = this;
      this.handlers.onFrame(
        { firstSeq, lastSeq, important, timeMs, ageMs, events, totals, dropped, online, withheld, lane },
        this,
      );
    }
    this.tell(news, events, totals);
  }

  /**
   * Hears what is withheld. Frames without numbers that say nothing of it say nothing:
   * answers and repetitions are whole for everybody.
   */
  private hold({ first_seq: first, last_seq: last, withheld: level = 0 }: Frame, lane: Lane): void {
    if (lane !== "control" || (level === 0 && first > last)) return;
    const withheld = WITHHELD[level] ?? "ordered";
    if (withheld === this.withheld) return;
    this.withheld = withheld;
    this.handlers.onWithheld?.(withheld, this);
  }

  private tell(news: News, events: RoomEvent[] = [], totals: Total[] = []): void {
    const { handlers } = this;
    if (news.gap && handlers.onGap) {
      const { first_seq: firstSeq, last_seq: lastSeq, dropped, cause } = news.gap;
      handlers.onGap({ firstSeq, lastSeq, dropped, cause }, this);
    }
    if (news.lost) handlers.onMissed?.({ ...news.lost, gone: true }, this);
    for (const event of events) handlers.onEvent?.(event, this);
    if (totals.length > 0) handlers.onTotals?.(totals, false, this);
    if (news.online !== undefined) handlers.onOnline?.(news.online, this);
  }

  private toEvent(event: WireEvent, now: number): RoomEvent {
    const { id, kind, user, seq, important, payload, key, amount, time_ms: timeMs } = event;
    return { id, kind, user, seq, important, payload, key, amount, timeMs, ageMs: this.host.ageOf(timeMs, now) };
  }

  private fail(error: TidegateError): void {
    this.handlers.onError?.(error, this);
    this.host.report(error);
  }

  private error(body: ServerError, now: number): void {
    const { code, reason, temporary, retry_after_ms: retryAfterMs } = body;
    if (code === "pull_limited") return this.numbers.pullLimited(retryAfterMs ?? 1_000, now);
    if (code === "history_gone") this.numbers.historyGone();
    const refused = this.phase === "joining" && code !== "history_gone";
    const renewable = refused && code.startsWith("token_") && typeof this.handlers.token !== "string";
    // One that waited for a connection may have expired meanwhile; a fresh one is bad.
    if (renewable && !(this.renewed && now - this.fetchedAt < FRESH_MS)) {
      this.renewed = true;
      this.phase = "waiting";
      this.token = undefined;
      return this.fetchToken();
    }
    // The server looks at the token first.
    if (refused) this.renewed = false;
    const fatal = refused && !temporary;
    this.fail(new TidegateError(code, reason, { temporary, fatal, room: this.name, retryAfterMs }));
    if (fatal) return this.finish("refused", code, reason);
    if (refused) {
      this.phase = "waiting";
      this.joinLater(retryAfterMs ?? this.host.environment.random() * JOIN_AGAIN_MS);
      if (retryAfterMs !== undefined) this.host.renew(`${code}: ${reason}`, retryAfterMs);
    }
  }

  /**
   * Says what is due, and sets one timer for all that is not. What is due is not left
   * to a timer: a busy page runs those behind its messages, a hidden one rarely.
   */
  private arm(): void {
    const { environment } = this.host;
    if (this.phase === "joined") {
      const link = this.host.link();
      for (const message of this.numbers.due(environment.now())) link?.send(message);
    }
    const deadline = this.phase === "joined" ? this.numbers.deadline : undefined;
    if (deadline === this.armedFor) return;
    environment.clearTimer(this.timer);
    this.armedFor = deadline;
    if (deadline === undefined) return;
    this.timer = environment.setTimer(() => {
      this.armedFor = undefined;
      this.arm();
    }, Math.max(0, deadline - environment.now()));
  }
}
