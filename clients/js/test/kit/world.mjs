// Virtual time, seeded chance, and links that carry messages between a client and
// whatever plays the server: nothing here reads a real clock.

/** Numbers in [0, 1) from a seed (mulberry32). */
export function chance(seed) {
  let state = seed >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  random.below = (end) => Math.floor(random() * end);
  random.odds = (probability) => random() < probability;
  return random;
}

/** A seed of this run, or the one to replay. */
export function seeds(count) {
  const given = process.env.TIDEGATE_SEED;
  if (given !== undefined) return [Number(given)];
  const first = Math.floor(Math.random() * 2 ** 31);
  return Array.from({ length: count }, (_, i) => first + i);
}

/** Timers in the order of their time. */
export class World {
  constructor(seed = 1) {
    this.seed = seed;
    this.random = chance(seed);
    this.time = 1_000_000;
    this.timers = [];
    this.made = 0;
    this.page = { online: true, hidden: false, watchers: new Set() };
    this.stored = new Map();
  }

  setTimer(run, ms) {
    const timer = { at: this.time + Math.max(0, ms), order: this.made, run };
    this.made += 1;
    this.timers.push(timer);
    return timer;
  }

  clearTimer(timer) {
    const at = this.timers.indexOf(timer);
    if (at >= 0) this.timers.splice(at, 1);
  }

  /** What the library is given for its surroundings. */
  environment(dials) {
    return {
      now: () => this.time,
      random: chance(this.seed ^ 0x5bd1e995),
      setTimer: (run, ms) => this.setTimer(run, ms),
      clearTimer: (timer) => this.clearTimer(timer),
      online: () => this.page.online,
      hidden: () => this.page.hidden,
      watch: (heard) => {
        this.page.watchers.add(heard);
        return () => this.page.watchers.delete(heard);
      },
      memory: {
        getItem: (key) => this.stored.get(key) ?? null,
        setItem: (key, value) => this.stored.set(key, value),
      },
      dials,
    };
  }

  tell(change) {
    if (change === "online" || change === "offline") this.page.online = change === "online";
    else this.page.hidden = change === "hidden";
    for (const heard of [...this.page.watchers]) heard(change);
  }

  /** Runs what is due within so long; promises settle in between. */
  async run(ms) {
    const end = this.time + ms;
    for (;;) {
      await new Promise(setImmediate);
      let next;
      for (const timer of this.timers) {
        if (timer.at > end) continue;
        if (next === undefined || timer.at < next.at || (timer.at === next.at && timer.order < next.order)) next = timer;
      }
      if (next === undefined) break;
      this.clearTimer(next);
      this.time = Math.max(this.time, next.at);
      next.run();
    }
    this.time = end;
  }

  /** The same for much work without promises. */
  spin(ms) {
    const end = this.time + ms;
    for (;;) {
      let next;
      for (const timer of this.timers) {
        if (timer.at > end) continue;
        if (next === undefined || timer.at < next.at || (timer.at === next.at && timer.order < next.order)) next = timer;
      }
      if (next === undefined) break;
      this.clearTimer(next);
      this.time = Math.max(this.time, next.at);
      next.run();
    }
    this.time = end;
  }
}

/** A transport that the test plays by hand. `dials` lists every try. */
export class Stage {
  constructor(world, names = ["webtransport", "websocket"]) {
    this.tries = [];
    this.dials = {};
    for (const name of names) {
      this.dials[name] = (address, events) => {
        const link = {
          transport: name,
          split: name === "webtransport",
          sent: [],
          closed: undefined,
          open: false,
          send: (message) => {
            if (link.closed !== undefined || !link.open) return false;
            link.sent.push(message);
            return true;
          },
          close: (code = 1000) => (link.closed ??= code),
          address,
          at: world.time,
          /** The server speaks. */
          say: (name_, body, lane = "control") => {
            if (link.closed === undefined) events.message({ name: name_, body }, lane, 1);
          },
          welcome: (slot = 0) => {
            link.open = true;
            link.say("welcome", { session: "s", ping_interval_ms: 25_000, ack_slot: slot });
          },
          /** The connection ends. */
          end: (code = 1006, reason = "") => {
            if (link.closed !== undefined) return;
            link.closed = code;
            events.closed({ code, reason });
          },
          names: () => link.sent.map((message) => message.name),
        };
        this.tries.push(link);
        return link;
      };
    }
  }

  get last() {
    return this.tries.at(-1);
  }
}

/** What a server says of a room with these numbers. */
export function joined(fields = {}) {
  return {
    room: "r",
    epoch: 7,
    seq: 4,
    important: 2,
    online: 1,
    recovered: false,
    state: [],
    totals: [],
    ...fields,
  };
}

/** A frame that covers `first..=last`. */
export function frame(first, last, important, events = [], fields = {}) {
  return {
    room: "r",
    epoch: 7,
    first_seq: first,
    last_seq: last,
    important,
    time_ms: 1,
    events,
    totals: [],
    ...fields,
  };
}

export const event = (fields) => ({ id: `e${fields.important ?? fields.seq ?? 0}`, kind: "chat", user: "u", payload: null, time_ms: 1, ...fields });
