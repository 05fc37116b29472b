// A server of one room, made from docs/delivery.md and docs/protocol.md without a look
// at the client: numbers, resumes, pulls, gaps, rebases, and links that stall, reorder
// their streams against each other, lose datagrams and break.
import assert from "node:assert/strict";

const RESUME_EVENTS = 20;
const PULL_EVENTS = 200;
const EPOCH = 7_000;

/** 32-bit FNV-1a, written for this test. */
function fnv(text) {
  let hash = 2166136261n;
  for (const byte of Buffer.from(text)) hash = ((hash ^ BigInt(byte)) * 16777619n) & 0xffffffffn;
  return Number(hash);
}

export class ModelServer {
  constructor(world, random, { forgets = 0 } = {}) {
    Object.assign(this, { world, random, forgets });
    this.up = true;
    this.calm = false;
    this.seq = 0;
    /** Everything that has a number; `important[n]` is important number n + 1. */
    this.important = [];
    this.talk = [];
    this.talkFloor = 0;
    /** Numbers of all that was only ordered. */
    this.talked = [];
    /** Important events up to here are no longer held. */
    this.goneTo = 0;
    this.sums = new Map();
    this.ids = new Map();
    this.links = new Set();
    this.names = 0;
    this.counts = { pulls: 0, resumes: 0, rebases: 0, gaps: 0, acks: 0, digests: 0, breaks: 0, refused: 0, gone: 0, copies: 0 };
  }

  dial(transport) {
    return (address, events) => {
      const link = new Link(this, transport, events);
      const { random } = this;
      const fails = !this.up || (!this.calm && random.odds(0.15));
      const mute = !this.calm && transport === "webtransport" && random.odds(0.1);
      if (fails) link.later(5 + random.below(200), () => link.lose(1006));
      else if (!mute) {
        this.links.add(link);
        link.slot = random.below(65_536);
        link.tell("control", "welcome", { session: "s", ping_interval_ms: 25_000, ack_slot: link.slot });
      }
      return link.client;
    };
  }

  newId() {
    this.names += 1;
    return `id-${this.names}`;
  }

  /** One flush: some events of every lane. */
  flush(card = false) {
    const { random } = this;
    const first = this.seq + 1;
    const fresh = [];
    const sampled = [];
    if (card) fresh.push(this.number({ id: this.newId(), kind: "card" }, true));
    for (let i = random.below(4); i > 0; i -= 1) {
      const id = this.newId();
      if (random.odds(0.3)) fresh.push(this.number({ id, kind: "card" }, true));
      else fresh.push(this.number({ id, kind: "chat" }, false));
    }
    if (random.odds(0.5)) sampled.push({ id: this.newId(), kind: "enter", user: "u", payload: null, time_ms: this.world.time });
    const totals = [];
    for (const key of ["a", "b"]) {
      if (!this.calm && random.odds(0.5)) continue;
      const delta = 1 + random.below(5);
      this.sums.set(key, (this.sums.get(key) ?? 0) + delta);
      totals.push({ kind: "like", key, sum: this.sums.get(key), delta });
    }
    for (const link of this.links) if (link.joined) link.frame(first, fresh, sampled, totals);
  }

  number(event, important) {
    this.seq += 1;
    const numbered = { user: "u", payload: { n: this.seq }, time_ms: this.world.time, seq: this.seq, ...event };
    if (important) {
      numbered.important = this.important.length + 1;
      this.important.push(numbered);
      if (this.forgets > 0) this.goneTo = Math.max(this.goneTo, this.important.length - this.forgets);
    } else this.talked.push(this.seq);
    this.talk.push(numbered);
    return numbered;
  }

  held(from, to) {
    return this.important.slice(Math.max(from, this.goneTo + 1) - 1, to);
  }

  receive(link, { name, body }) {
    switch (name) {
      case "join":
        return this.join(link, body);
      case "leave":
        link.joined = false;
        return link.tell("control", "left", { room: body.room });
      case "pull":
        return this.pull(link, body);
      case "publish":
        return this.publish(link, body);
      case "ack":
        this.counts.acks += 1;
        return assert.ok(body.important <= this.important.length);
      case "digest":
        return this.compare(body);
      default:
        return assert.equal(name, "pong");
    }
  }

  join(link, { token, resume }) {
    assert.equal(link.joined, false, "joined twice");
    if (!this.calm && this.random.odds(0.1)) {
      this.counts.refused += 1;
      const code = this.random.odds(0.5) ? "token_expired" : "overloaded";
      const wait = code === "overloaded" ? { temporary: true, retry_after_ms: 300 } : { temporary: false };
      // A fresh token is never refused twice in a row.
      if (code === "overloaded" || token !== this.refusedBefore) {
        this.refusedBefore = `${Number(token) + 1}`;
        return link.tell("control", "error", { code, reason: "", room: "r", ...wait });
      }
    }
    link.joined = true;
    const { seq } = this;
    const last = this.important.length;
    const known = resume !== undefined && resume.epoch === EPOCH;
    const since = known ? last - resume.important : 0;
    const recovered = known && resume.seq >= this.talkFloor && since <= RESUME_EVENTS && resume.important >= this.goneTo;
    const missed = known && !recovered && since > RESUME_EVENTS ? { from: resume.important + 1, to: last - RESUME_EVENTS } : undefined;
    if (known) this.counts.resumes += 1;
    link.tell("control", "joined", {
      room: "r", epoch: EPOCH, seq, important: last, online: 1, recovered, state: [], totals: this.totals(), ...(missed && { missed }),
    });
    if (!known) return;
    const events = recovered
      ? this.talk.filter((event) => (event.important === undefined ? event.seq > resume.seq : event.important > resume.important))
      : this.held(Math.max(resume.important, last - RESUME_EVENTS) + 1, last);
    if (recovered && (events.length > 0 || seq > resume.seq)) link.numbers(resume.seq + 1, seq, events);
    else if (events.length > 0) link.beside("control", events);
  }

  totals() {
    return [...this.sums].map(([key, sum]) => ({ kind: "like", key, sum }));
  }

  pull(link, { from, to }) {
    assert.ok(link.joined && from >= 1 && to >= from && to <= this.important.length, `pull ${from} to ${to}`);
    this.counts.pulls += 1;
    if (!this.calm && this.random.odds(0.1)) {
      return link.tell("control", "error", { code: "pull_limited", reason: "", temporary: true, room: "r", retry_after_ms: 200 });
    }
    const all = this.held(from, Math.min(to, from + PULL_EVENTS - 1));
    // A read of the log may bring less than was asked for.
    const events = this.random.odds(0.2) ? all.slice(0, Math.ceil(all.length / 2)) : all;
    if (from <= this.goneTo) {
      this.counts.gone += 1;
      link.tell("control", "error", { code: "history_gone", reason: "", temporary: false, room: "r" });
    }
    link.beside("control", events);
  }

  publish(link, { id, kind, payload }) {
    assert.ok(link.joined, "published before the join");
    if (!this.calm && !this.ids.has(id) && this.random.odds(0.05)) {
      return link.tell("control", "rejected", { id, code: "rate_limited", reason: "", retry_after_ms: 100 });
    }
    if (!this.ids.has(id)) {
      const first = this.seq + 1;
      const event = this.number({ id, kind, payload }, false);
      this.ids.set(id, event.seq);
      for (const other of this.links) if (other.joined) other.frame(first, [event], [], []);
    }
    link.tell("control", "accepted", { id, seq: this.ids.get(id) });
  }

  compare({ from, to, count, xor }) {
    this.counts.digests += 1;
    const events = this.important.slice(from - 1, to);
    assert.equal(count, events.length);
    assert.equal(xor, events.reduce((sum, { important, id }) => (sum ^ fnv(`${important}:${id}`)) >>> 0, 0));
  }

  /** Something goes wrong. */
  mischief() {
    const { random } = this;
    const link = [...this.links].at(-1);
    const sort = random.below(9);
    if (sort === 0) {
      // The process dies: talk is forgotten, numbers are not.
      this.up = false;
      this.talkFloor = this.seq;
      this.talk = [];
      for (const each of [...this.links]) each.break();
      this.world.setTimer(() => (this.up = true), random.below(3_000));
    } else if (link === undefined) return;
    else if (sort <= 3) link.break();
    else if (sort === 4) {
      link.tell("control", "goaway", { reconnect_after_ms: random.below(2_000) });
      link.leave(3000);
    } else if (!link.joined) return;
    else if (sort === 5) link.slow = random.below(1_500) + this.world.time;
    else if (sort === 6) link.rebase();
    else if (sort === 7) link.again();
    else {
      const to = this.important.length;
      if (to > 0) link.tell("control", "missed", { room: "r", from: Math.max(1, to - 3), to, within_ms: 100 });
    }
  }
}

/** One connection, both ends of it. */
class Link {
  constructor(server, transport, events) {
    Object.assign(this, { server, transport, events });
    this.split = transport === "webtransport";
    this.alive = true;
    this.joined = false;
    /** When the last message of each stream arrives. */
    this.arrives = { control: 0, important: 0, up: 0 };
    this.slow = 0;
    this.lost = undefined;
    this.client = {
      transport,
      split: this.split,
      send: (message) => {
        if (!this.alive) return this.closedAt === undefined;
        server.said?.(message);
        this.travel("up", () => server.receive(this, structuredClone(message)));
        return true;
      },
      close: () => {
        this.muted = true;
        this.gone();
      },
    };
  }

  later(ms, run) {
    this.server.world.setTimer(run, ms);
  }

  /** In order on its stream; a loss on it holds up what is behind, and nothing else. */
  travel(stream, run) {
    const { random, world, calm } = this.server;
    const delay = 5 + random.below(80) + (!calm && random.odds(0.05) ? random.below(1_800) : 0);
    this.arrives[stream] = Math.max(this.arrives[stream], world.time + delay);
    this.later(this.arrives[stream] - world.time, () => {
      if (this.alive) run();
    });
  }

  tell(lane, name, body) {
    const message = structuredClone({ name, body });
    const { random, calm } = this.server;
    const hand = () => this.events.message(message, lane, 1);
    if (lane !== "datagram") return this.travel(lane, hand);
    if (calm || !random.odds(0.2)) this.later(5 + random.below(calm ? 50 : 500), () => this.alive && hand());
  }

  frameOf(first, last, events, more = {}) {
    const { world, important } = this.server;
    return {
      room: "r", epoch: EPOCH, first_seq: first, last_seq: last, important: important.length,
      time_ms: world.time, events, totals: [], ...more,
    };
  }

  numbers(first, last, events, more) {
    this.tell("control", "frame", this.frameOf(first, last, events, more));
  }

  /** A frame that covers no numbers. */
  beside(lane, events, more) {
    const { seq } = this.server;
    this.tell(lane, "frame", this.frameOf(seq + 1, seq, events, more));
  }

  asking() {
    const { random, important } = this.server;
    if (!random.odds(0.7)) return {};
    const ack = { one_in: 1 + random.below(3), within_ms: random.below(300) };
    if (random.odds(0.3)) ack.digest_from = Math.max(1, important.length - 15);
    return { ack };
  }

  /** What the room says, as this viewer hears it. */
  frame(first, fresh, sampled, totals) {
    const { server, split } = this;
    const { random, world, calm, seq } = server;
    // One event in thirty is not sent, as if the server had a mistake: it is pulled.
    const sent = fresh.filter((event) => event.important === undefined || calm || !random.odds(0.03));
    const matters = sent.filter((event) => event.important !== undefined);
    const talk = fresh.filter((event) => event.important === undefined);
    if (this.owed) return;
    if (world.time < this.slow) {
      if (matters.length > 0) this.beside(split ? "important" : "control", matters, this.asking());
      if (fresh.length > 0) this.lost = { from: this.lost?.from ?? first, chat: (this.lost?.chat ?? 0) + talk.length, to: seq };
      return;
    }
    this.tellLost();
    const online = random.odds(0.3) ? { online: 1 + random.below(9) } : {};
    if (!split) {
      const more = { totals, ...online, ...(matters.length > 0 && this.asking()) };
      if (sent.length + sampled.length + totals.length + fresh.length > 0) this.numbers(first, seq, [...sent, ...sampled], more);
      return;
    }
    if (matters.length > 0) {
      const asking = this.asking();
      this.beside("important", matters, asking);
      if (random.odds(0.5)) {
        server.counts.copies += 1;
        this.beside("datagram", matters, asking);
      }
    }
    if (talk.length > 0 || (fresh.length > 0 && random.odds(0.5))) this.numbers(first, seq, talk);
    if (sampled.length + totals.length > 0) {
      this.beside(!calm && random.odds(0.2) ? "control" : "datagram", sampled, { totals, ...online });
    }
  }

  tellLost() {
    if (this.lost === undefined) return;
    const { from, to, chat } = this.lost;
    this.server.counts.gaps += 1;
    this.tell("control", "gap", { room: "r", first_seq: from, last_seq: to, dropped: { chat } });
    this.lost = undefined;
  }

  /** Nothing for a while, then what is owed and the state. */
  rebase() {
    const { server } = this;
    if (this.owed) return;
    this.tellLost();
    this.owed = { seq: server.seq, important: server.important.length };
    server.counts.rebases += 1;
    this.later(server.random.below(1_200), () => {
      const { owed } = this;
      if (!this.alive || owed === undefined) return;
      this.owed = undefined;
      const { seq, important } = server;
      const events = server.held(owed.important + 1, important.length);
      if (owed.important < server.goneTo) {
        this.tell("control", "error", { code: "history_gone", reason: "", temporary: false, room: "r" });
      }
      if (events.length > 0) this.beside(this.split ? "important" : "control", events);
      if (seq > owed.seq) this.tell("control", "gap", { room: "r", first_seq: owed.seq + 1, last_seq: seq, dropped: {} });
      this.tell("control", "joined", {
        room: "r", epoch: EPOCH, seq, important: important.length, online: 1, recovered: false, rebased: true, state: [], totals: server.totals(),
      });
    });
  }

  /** Events that are sent again because nobody confirmed them. */
  again() {
    const { important, goneTo } = this.server;
    const events = important.slice(Math.max(goneTo, important.length - 5));
    if (events.length > 0) this.beside("control", events, this.asking());
  }

  gone() {
    this.alive = false;
    this.closedAt = this.server.world.time;
    this.server.links.delete(this);
  }

  lose(code) {
    this.gone();
    if (!this.muted) this.events.closed({ code, reason: "" });
  }

  /** All that is on its way is lost; the client notices sooner or later. */
  break() {
    const { server } = this;
    server.counts.breaks += 1;
    this.alive = false;
    server.links.delete(this);
    this.later(server.random.below(2_000), () => this.lose(1006));
  }

  /** The server closes; what is on its way may be lost where streams are several. */
  leave(code) {
    this.server.links.delete(this);
    if (this.split && this.server.random.odds(0.5)) this.lose(code);
    else this.travel("control", () => this.lose(code));
  }
}
