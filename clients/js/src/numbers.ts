/**
 * What a client keeps of a room, and what it says in return: a machine without I/O.
 *
 * It keeps two numbers, as the server does (docs/delivery.md). `seq` says where the
 * ordered stream ends. Of the important events none may be missing: they are given out
 * in order of their number, each once, and what comes beyond a hole is held until the
 * hole is filled, by what is on its way or by a pull.
 *
 * Over a split transport (docs/protocol.md) important events have a stream of their
 * own. Nothing orders it against the rest, so a number that is named before its event
 * has come is waited for, numbers that a frame skips are no loss, and what came by
 * datagram is told old from new by its time. On a bad line an important event may come
 * by datagram as well; what comes second is known by its number.
 *
 * Calls: `connected` for every connection, `joined` when it is in, then `frame`, `gap`,
 * `missed`, `pullLimited` and `historyGone` as messages come, and `due` when the time
 * of `deadline` has come. What `due` returns is to be sent. Times are milliseconds.
 */

import type {
  AckAsked,
  ClientMessage,
  Frame,
  Joined,
  Lane,
  Position,
  Span,
  WireEvent,
  WireGap,
  WireTotal,
} from "./messages.js";

/** Important events that one `pull` asks for: the server brings no more. */
const PULL_EVENTS = 200;
/** Important events held beyond a hole. What comes past that is pulled again. */
const MOST_HELD = 1_024;
/** Hashes kept for a digest, which covers so many at most. */
const MOST_HASHES = 1_000;
/** What a client says when it leaves covers so many. */
const FAREWELL = 100;
/** Kinds and keys whose newest time is kept, on a split transport. */
const MOST_TIMES = 4_096;
/** An event that is named may be on its way on another stream for so long. */
const ON_ITS_WAY_MS = 1_000;
/** What a join says does not follow is pulled within this: many come back at once. */
const MISSED_WITHIN_MS = 1_000;
/** An unanswered pull is repeated after this, then after twice as long, and so on. */
const PULL_AGAIN_MS = 2_000;
const MOST_PULL_AGAIN_MS = 30_000;

/** Why numbers are missing: the server said so, it did not, or the client was away. */
export type GapCause = "told" | "skipped" | "away";

/** What a message brought that was not here before. */
export interface News {
  events: WireEvent[];
  totals: WireTotal[];
  online: number | undefined;
  gap: (WireGap & { cause: GapCause }) | undefined;
  /** Important events that the server no longer has. */
  lost: Span | undefined;
}

/** What went by. */
export interface Tally {
  /** Events that came again and were dropped by their number. */
  duplicates: number;
  /** Important events that came before one with a smaller number. */
  held: number;
  pulls: number;
  acks: number;
  /** Datagrams that came after a newer one. */
  stale: number;
}

/** 32-bit FNV-1a of the UTF-8 bytes of `number:id`. */
export function digestHash(number: number, id: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(`${number}:${id}`)) {
    hash = Math.imul(hash ^ byte, 0x0100_0193);
  }
  return hash >>> 0;
}

export class Numbers {
  readonly tally: Tally = { duplicates: 0, held: 0, pulls: 0, acks: 0, stale: 0 };
  private at: Position | undefined;
  private split = false;
  private slot = 0;
  /** The room's last important number that was heard of. */
  private newest = 0;
  private readonly held = new Map<number, WireEvent>();
  /** Of the last important events given out, without a hole. */
  private hashes: number[] = [];
  private readonly times = new Map<string, number>();
  private onlineAt = 0;
  private ack: { upTo: number; at: number } | undefined;
  private digest: { from: number; at: number } | undefined;
  private pullAt: number | undefined;
  /** What was asked for and has not come. */
  private pulled: Span | undefined;
  private tries = 0;
  /** The answer to the pull begins with what is left of it. */
  private gone = false;

  constructor(
    private readonly room: string,
    private readonly random: () => number,
  ) {}

  /** Where to resume; `undefined` before the first join. */
  get position(): Position | undefined {
    return this.at && { ...this.at };
  }

  /** Whether every important event that was heard of was given out. */
  get complete(): boolean {
    return this.at !== undefined && this.at.important >= this.newest;
  }

  /** There is a new connection; `slot` is its `ack_slot`. */
  connected(split: boolean, slot: number): void {
    this.split = split;
    this.slot = slot;
    this.forgetAsked();
    this.ack = undefined;
    this.digest = undefined;
  }

  /** In the room, or given its state anew (`rebased`). */
  joined(body: Joined, now: number): News {
    const news = this.nothing();
    const before = this.at;
    const { epoch, seq, important } = body;
    this.forgetAsked();
    this.times.clear();
    this.onlineAt = 0;
    if (before?.epoch === epoch) {
      if (!body.recovered) this.moved(before, body, news);
      this.newest = Math.max(this.newest, important);
    } else {
      // A numbering that began after the one known here is new from its first event;
      // a room seen for the first time begins now.
      const later = before !== undefined && before.epoch < epoch;
      this.at = { epoch, seq, important: later ? 0 : important };
      this.newest = important;
      this.held.clear();
      this.hashes = [];
      if (later && important > 0) this.pullAt = now + this.random() * MISSED_WITHIN_MS;
    }
    if (body.missed) this.pullAt = now + this.random() * MISSED_WITHIN_MS;
    // What was missed follows by itself. Should it not, the pull does no harm.
    else if (!this.complete) this.pullAt ??= now + ON_ITS_WAY_MS * (1 + this.random());
    news.online = body.online;
    return news;
  }

  private moved(at: Position, body: Joined, news: News): void {
    if (!body.rebased && body.seq > at.seq) news.gap = this.skipped(at.seq, body.seq, "away");
    // On one connection numbers never go back; a server that died may have lost some.
    at.seq = body.rebased ? Math.max(at.seq, body.seq) : body.seq;
  }

  /** A frame came; `undefined` if it is of another numbering than what was joined. */
  frame(frame: Frame, lane: Lane, now: number): News | undefined {
    const { at } = this;
    if (at === undefined || frame.epoch !== at.epoch) {
      // A datagram of a while ago may be.
      return lane === "datagram" ? this.nothing() : undefined;
    }
    const news = this.nothing();
    const before = { ...at };
    const numbered = frame.first_seq <= frame.last_seq;
    if (numbered) {
      if (!this.split && frame.first_seq > at.seq + 1) {
        news.gap = this.skipped(at.seq, frame.first_seq - 1, "skipped");
      }
      at.seq = Math.max(at.seq, frame.last_seq);
    }
    this.newest = Math.max(this.newest, frame.important);
    const beside = lane === "control" && !numbered;
    if (beside && this.gone) this.giveUp(frame, news);
    const { duplicates } = this.tally;
    for (const event of frame.events) this.event(event, lane, frame.time_ms, before.seq, news);
    this.release(news.events);
    // The second of an event and its copy asks for what the first has asked for. What
    // comes again on the control stream does so for want of an answer.
    const known = this.tally.duplicates - duplicates;
    const copy = lane !== "control" && known > 0 && known === frame.events.length;
    for (const total of frame.totals) {
      const key = `t${total.kind}\n${total.user ?? ""}\n${total.key}`;
      if (this.fresh(key, frame.time_ms)) news.totals.push(total);
    }
    if (frame.online !== undefined && !(this.split && frame.time_ms < this.onlineAt)) {
      this.onlineAt = frame.time_ms;
      news.online = frame.online;
    }
    if (frame.ack && !copy) this.asked(frame, frame.ack, now);
    this.holes(at.important > before.important, beside, now);
    return news;
  }

  private event(event: WireEvent, lane: Lane, time: number, seq: number, news: News): void {
    if (event.important !== undefined) {
      this.important(event, event.important, news.events);
    } else if (event.seq !== undefined) {
      if (event.seq > seq) news.events.push(event);
      else this.tally.duplicates += 1;
    } else if (lane !== "datagram" || this.fresh(`e${event.kind}\n${event.key ?? ""}`, time)) {
      news.events.push(event);
    }
  }

  private important(event: WireEvent, number: number, out: WireEvent[]): void {
    const at = this.at!;
    if (number <= at.important || this.held.has(number)) {
      this.tally.duplicates += 1;
    } else if (number === at.important + 1) {
      this.give(event, number, out);
      this.release(out);
    } else if (this.held.size < MOST_HELD) {
      this.tally.held += 1;
      this.held.set(number, event);
    }
  }

  private give(event: WireEvent, number: number, out: WireEvent[]): void {
    this.at!.important = number;
    this.hashes.push(digestHash(number, event.id));
    if (this.hashes.length > MOST_HASHES) this.hashes.shift();
    out.push(event);
  }

  private release(out: WireEvent[]): void {
    for (;;) {
      const number = this.at!.important + 1;
      const event = this.held.get(number);
      if (event === undefined) return;
      this.held.delete(number);
      this.give(event, number, out);
    }
  }

  /** What the server has no more is not waited for. */
  private giveUp(frame: Frame, news: News): void {
    const at = this.at!;
    const numbers = frame.events.map((event) => event.important ?? 0).filter((n) => n > at.important);
    // Totals without events are said to a slow viewer, and answer no pull.
    if (numbers.length === 0 && frame.totals.length > 0) return;
    const upTo = numbers.length > 0 ? Math.min(...numbers) - 1 : (this.pulled?.to ?? 0);
    this.gone = false;
    if (upTo <= at.important) return;
    news.lost = { from: at.important + 1, to: upTo };
    for (const number of [...this.held.keys()].sort((a, b) => a - b)) {
      if (number > upTo) break;
      this.give(this.held.get(number)!, number, news.events);
      this.held.delete(number);
    }
    at.important = upTo;
    this.hashes = [];
  }

  /** Whether this is not older than what came of the same sort; only asked when split. */
  private fresh(key: string, time: number): boolean {
    if (!this.split) return true;
    const newest = this.times.get(key) ?? 0;
    if (time < newest) {
      this.tally.stale += 1;
      return false;
    }
    this.times.delete(key);
    this.times.set(key, time);
    if (this.times.size > MOST_TIMES) this.times.delete(this.times.keys().next().value!);
    return true;
  }

  private asked(frame: Frame, { one_in, within_ms, digest_from }: AckAsked, now: number): void {
    if (this.slot >= 65_536 / Math.max(1, one_in)) return;
    const at = now + this.random() * within_ms;
    this.ack = {
      upTo: Math.max(frame.important, this.ack?.upTo ?? 0),
      at: Math.min(at, this.ack?.at ?? Infinity),
    };
    if (digest_from !== undefined) this.digest ??= { from: digest_from, at };
  }

  private holes(progress: boolean, beside: boolean, now: number): void {
    if (this.complete) return this.forgetAsked();
    const answered = this.pulled !== undefined && beside && progress;
    if (answered || (this.pulled && this.at!.important >= this.pulled.to)) {
      // The rest of a long hole.
      this.forgetAsked();
      this.pullAt = now;
    } else if (this.pulled === undefined && (this.pullAt === undefined || (progress && this.split))) {
      this.pullAt = Math.max(this.pullAt ?? 0, now + (this.split ? ON_ITS_WAY_MS : 0));
    }
  }

  /** What only this viewer lost. */
  gap(body: WireGap): News {
    const news = this.nothing();
    news.gap = { ...body, cause: "told" };
    if (this.at) this.at.seq = Math.max(this.at.seq, body.last_seq);
    return news;
  }

  /** The server sent these again and heard nothing. Returns whether they are missing. */
  missed({ to, within_ms }: Span & { within_ms: number }, now: number): boolean {
    if (this.at === undefined) return false;
    const at = now + this.random() * within_ms;
    if (to <= this.at.important) {
      // They are here, only the word of it was lost.
      this.ack = { upTo: to, at };
      return false;
    }
    this.newest = Math.max(this.newest, to);
    this.forgetAsked();
    this.pullAt = at;
    return true;
  }

  /** More is pulled than the server brings: again when it says. */
  pullLimited(afterMs: number, now: number): void {
    this.forgetAsked();
    if (!this.complete) this.pullAt = now + afterMs;
  }

  /** Some of what was asked for is no longer held; the rest follows. */
  historyGone(): void {
    this.gone = this.pulled !== undefined;
  }

  /** When `due` has something to do; `undefined` for never. */
  get deadline(): number | undefined {
    const ack = this.ack && this.at && this.at.important >= this.ack.upTo ? this.ack.at : undefined;
    const times = [ack, this.digest?.at, this.pullAt].filter((time) => time !== undefined);
    return times.length > 0 ? Math.min(...times) : undefined;
  }

  /** What is to be said now. */
  due(now: number): ClientMessage[] {
    const said: ClientMessage[] = [];
    const { at, room } = this;
    if (at === undefined) return said;
    if (this.ack && this.ack.at <= now && at.important >= this.ack.upTo) {
      // Across a hole it waits; the server sends again, or tells to pull, meanwhile.
      this.ack = undefined;
      this.tally.acks += 1;
      said.push({ name: "ack", body: { room, important: at.important } });
    }
    if (this.digest && this.digest.at <= now) {
      said.push(...this.compare(this.digest.from));
      this.digest = undefined;
    }
    if (this.pullAt !== undefined && this.pullAt <= now) {
      this.pullAt = undefined;
      if (!this.complete) said.push(this.pull(at.important + 1, now));
    }
    return said;
  }

  private pull(from: number, now: number): ClientMessage {
    const held = Math.min(Infinity, ...this.held.keys());
    const to = Math.max(from, Math.min(this.newest, held - 1, from + PULL_EVENTS - 1));
    const wait = Math.min(MOST_PULL_AGAIN_MS, PULL_AGAIN_MS * 2 ** this.tries);
    this.pulled = { from, to };
    this.pullAt = now + wait * (1 + this.random());
    this.tries += 1;
    this.tally.pulls += 1;
    return { name: "pull", body: { room: this.room, from, to } };
  }

  /** What to say before leaving. */
  farewell(): ClientMessage[] {
    return this.at ? this.compare(this.at.important - FAREWELL + 1) : [];
  }

  /** What has come since `from`, but not before this client came. */
  private compare(from: number): ClientMessage[] {
    const to = this.at!.important;
    const first = Math.max(from, to - this.hashes.length + 1);
    const hashes = this.hashes.slice(this.hashes.length - (to - first + 1));
    if (hashes.length === 0 || first > to) return [];
    const xor = hashes.reduce((sum, hash) => (sum ^ hash) >>> 0, 0);
    const body = { room: this.room, from: first, to, count: hashes.length, xor };
    return [{ name: "digest", body }];
  }

  private forgetAsked(): void {
    this.pulled = undefined;
    this.pullAt = undefined;
    this.tries = 0;
    this.gone = false;
  }

  private skipped(from: number, to: number, cause: GapCause): News["gap"] {
    return { room: this.room, first_seq: from + 1, last_seq: to, dropped: {}, cause };
  }

  private nothing(): News {
    return { events: [], totals: [], online: undefined, gap: undefined, lost: undefined };
  }
}
