// The demo room: a viewer over the WebSocket, and a publisher over HTTP beside it.
// Whatever comes from the room is shown as text (textContent), never as markup.

const $ = (id) => document.getElementById(id);

/** Most of anything that is kept, so that a long evening costs no more than a short one. */
const LIMITS = {
  chat: 150,
  hearts: 36,
  banners: 3,
  toasts: 3,
  packets: 5,
  frames: 30,
  frameChars: 20_000,
  shownChars: 6_000,
  ages: 40,
  combos: 200,
};

/** Kinds of the default configuration that have no number; all others are numbered. */
const SAMPLED = new Set(["like", "enter", "follow", "fansclub", "stats"]);

// ---- small helpers ---------------------------------------------------------

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const integer = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const short = (n) => (Math.abs(n) < 10_000 ? integer.format(n) : compact.format(n));
const plural = (n, word) => `${integer.format(n)} ${word}${n === 1 ? "" : "s"}`;
const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function icon(name, className) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#${name}`);
  svg.setAttribute("class", className);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

function hue(text) {
  let h = 2166136261;
  for (let i = 0; i < text.length; i += 1) h = Math.imul(h ^ text.charCodeAt(i), 16777619);
  return (h >>> 0) % 360;
}

function bytes(n) {
  if (n < 1024) return `${n} B`;
  if (n < 1024 * 1024) return `${(n / 1024).toFixed(1)} KiB`;
  return `${(n / 1024 / 1024).toFixed(1)} MiB`;
}

function milliseconds(n) {
  return n < 1000 ? `${Math.round(n)} ms` : `${(n / 1000).toFixed(1)} s`;
}

function median(values) {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

function newId(prefix) {
  const random = crypto.getRandomValues(new Uint32Array(3));
  return `${prefix}-${Array.from(random, (n) => n.toString(36)).join("")}`;
}

/** A payload as a line of text; `encoding` says that it was not JSON. */
function textOf(event) {
  const { payload } = event;
  if (event.encoding === "base64") return `(${plural(Math.floor((payload.length * 3) / 4), "byte")})`;
  if (typeof payload === "string") return payload;
  if (payload && typeof payload.text === "string") return payload.text;
  return payload === undefined ? "" : JSON.stringify(payload);
}

const field = (payload, name) =>
  payload && typeof payload === "object" && payload[name] != null ? String(payload[name]) : "";

// ---- the connection --------------------------------------------------------

/**
 * Keeps one room joined. Calls `on.state(name, detail)` with connecting, live,
 * reconnecting or stopped, `on.message(name, body, size)` for everything received.
 */
class Connection {
  constructor(on) {
    this.on = on;
    this.socket = null;
    this.session = null;
    this.resume = null;
    this.attempt = 0;
    this.goaway = null;
    this.refusal = "";
    this.silence = 0;
    this.timer = 0;
    this.joined = false;
    this.turn = 0;
  }

  async open() {
    clearTimeout(this.timer);
    this.turn += 1;
    const turn = this.turn;
    this.on.state(this.attempt === 0 ? "connecting" : "reconnecting", "");
    try {
      const answer = await fetch("/demo/session", { cache: "no-store" });
      if (!answer.ok) throw new Error(`session: ${answer.status}`);
      this.session = await answer.json();
    } catch {
      if (turn === this.turn) this.retry("");
      return;
    }
    if (turn !== this.turn) return;
    const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/ws`;
    const socket = new WebSocket(url, "tidegate.v1.json");
    this.socket = socket;
    this.refusal = "";
    this.patience = 30_000;
    this.listen();
    socket.onopen = () => {
      const join = { room: this.session.room, token: this.session.viewer_token, acks: true };
      if (this.resume) join.resume = this.resume;
      this.send("join", join);
    };
    socket.onmessage = (message) => this.receive(message.data);
    socket.onclose = (close) => this.closed(close);
  }

  send(name, body) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify({ [name]: body }));
    return true;
  }

  receive(data) {
    if (typeof data !== "string") return;
    this.listen();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return;
    }
    const [name] = Object.keys(message);
    const body = message[name];
    switch (name) {
      case "ping":
        this.send("pong", {});
        return;
      case "welcome":
        important.slot = body.ack_slot ?? 0;
        if (body.ping_interval_ms > 0) this.patience = body.ping_interval_ms * 2 + 5_000;
        break;
      case "joined":
        this.attempt = 0;
        this.joined = true;
        this.on.state("live", "");
        break;
      case "goaway":
        this.goaway = body;
        break;
      case "error":
        this.refusal = `${body.code}: ${body.reason}`;
        if (body.code === "pull_limited") important.again(body.retry_after_ms ?? 1_000);
        if (this.joined) break;
        if (body.temporary === false) this.stop(this.refusal);
        else if (body.retry_after_ms != null) {
          // Nobody is let in at the moment: come back when told, on a new connection.
          this.goaway = { reconnect_after_ms: body.retry_after_ms };
          this.socket?.close();
        }
        break;
    }
    this.on.message(name, body, data);
  }

  /** The server pings when it has nothing else to say: longer silence is a dead line. */
  listen() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.socket?.close(), this.patience);
  }

  closed(close) {
    clearTimeout(this.silence);
    this.socket = null;
    this.joined = false;
    if (this.stopped) return;
    if (close.code >= 3500 && close.code <= 3999) {
      this.stop(close.reason || this.refusal || `closed with code ${close.code}`);
      return;
    }
    this.retry(close.reason);
  }

  /** Full jitter: anywhere between nothing and an exponentially growing bound. */
  retry(reason) {
    const bound = Math.min(15_000, 500 * 2 ** this.attempt);
    let wait = Math.random() * bound;
    if (this.goaway) wait = Math.max(0, Number(this.goaway.reconnect_after_ms) || 0);
    this.goaway = null;
    this.attempt = Math.min(this.attempt + 1, 10);
    this.on.state("reconnecting", reason, performance.now() + wait);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), wait);
  }

  /** The network is back: no reason to wait any longer. */
  hurry() {
    if (this.socket || this.stopped) return;
    this.open();
  }

  stop(reason) {
    this.stopped = true;
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    this.socket?.close();
    this.on.state("stopped", reason);
  }
}

// ---- what is shown of the connection ---------------------------------------

const pill = {
  node: $("state"),
  text: $("state-text"),
  timer: 0,

  show(name, detail, until) {
    clearInterval(this.timer);
    this.node.dataset.state = name;
    this.node.title = detail || "";
    $("onair").classList.toggle("off", name !== "live");
    if (name === "live") this.text.textContent = "live · WebSocket";
    else if (name === "stopped") this.text.textContent = `stopped: ${clip(detail, 60)}`;
    else if (name === "reconnecting" && until) {
      const tick = () => {
        const left = Math.ceil((until - performance.now()) / 1000);
        this.text.textContent = left > 0 ? `retry in ${left} s` : "reconnecting";
      };
      tick();
      this.timer = setInterval(tick, 500);
    } else this.text.textContent = name;
  },
};

function toast(text) {
  const list = $("toasts");
  const node = element("div", "toast", clip(text, 240));
  list.append(node);
  while (list.children.length > LIMITS.toasts) list.firstChild.remove();
  setTimeout(() => node.remove(), 5_000);
}

// ---- chat --------------------------------------------------------------------

const chat = {
  list: $("chat"),
  unread: 0,

  /** Whether the newest line is in sight; only then new lines are scrolled to. */
  atEnd() {
    return this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 60;
  },

  add(lines) {
    if (lines.length === 0) return;
    const follow = this.atEnd();
    const shown = lines.slice(-LIMITS.chat);
    const fragment = document.createDocumentFragment();
    fragment.append(...shown);
    this.list.append(fragment);
    while (this.list.children.length > LIMITS.chat) this.list.firstChild.remove();
    if (follow) this.list.scrollTop = this.list.scrollHeight;
    else this.unread += lines.length;
    this.mark();
  },

  mark() {
    if (this.atEnd()) this.unread = 0;
    $("newer").hidden = this.unread === 0;
    $("newer").textContent = `${plural(this.unread, "new message")} ↓`;
  },

  line(event) {
    const loud = event.kind === "super_chat" || event.kind === "guard";
    const mine = event.user === connection.session?.user;
    const node = element("li", loud ? "loud" : mine ? "mine" : "");
    const who = element("span", "who", clip(event.user || "system", 32));
    who.style.setProperty("--hue", hue(event.user || ""));
    node.append(who, clip(textOf(event), 500));
    return node;
  },

  note(text, alert = false) {
    return element("li", alert ? "note alert" : "note", text);
  },
};

chat.list.addEventListener("scroll", () => chat.mark(), { passive: true });
$("newer").addEventListener("click", () => {
  chat.list.scrollTop = chat.list.scrollHeight;
  chat.mark();
});

// ---- likes -------------------------------------------------------------------

const likes = {
  total: 0,

  set(sum) {
    this.total = sum;
    $("like-total").textContent = short(sum);
    $("like").setAttribute("aria-label", `Like, ${integer.format(sum)} so far`);
  },

  pending: 0,

  /** Small rooms send a frame per event: what comes within a moment is one bubble. */
  add(delta) {
    if (delta <= 0 || document.hidden) return;
    if (this.pending === 0) {
      setTimeout(() => {
        this.burst(this.pending);
        this.pending = 0;
      }, 600);
    }
    this.pending += delta;
  },

  /** One bubble with the merged count, and a handful of hearts spread over the interval. */
  burst(delta) {
    const plus = element("span", "plus", `+${short(delta)}`);
    plus.style.setProperty("--shift", `${(Math.random() - 0.5) * 16}px`);
    plus.style.setProperty("--grow", `${Math.min(22, Math.log2(delta + 1) * 2.6)}px`);
    this.place(plus);
    if (calm.matches) return;
    const count = Math.min(14, Math.ceil(Math.sqrt(delta) * 1.6));
    for (let i = 0; i < count; i += 1) setTimeout(() => this.heart(), i * (900 / count));
  },

  heart() {
    const node = icon("i-heart", "heart");
    const style = node.style;
    style.setProperty("--size", `${18 + Math.random() * 18}px`);
    style.setProperty("--hue", 330 + Math.random() * 50);
    style.setProperty("--sway", `${(Math.random() - 0.5) * 64}px`);
    style.setProperty("--turn", `${(Math.random() - 0.5) * 50}deg`);
    style.setProperty("--climb", `${$("hearts").clientHeight * (0.7 + Math.random() * 0.3)}px`);
    style.setProperty("--for", `${1.9 + Math.random() * 1.3}s`);
    this.place(node);
  },

  place(node) {
    const space = $("hearts");
    if (space.children.length >= LIMITS.hearts) space.firstChild.remove();
    space.append(node);
    setTimeout(() => node.remove(), 3_400);
  },
};

// ---- gift combos ---------------------------------------------------------------

const GIFTS = { rose: "g-rose", rocket: "g-rocket", crown: "g-crown", pearl: "g-pearl", lantern: "g-lantern" };

const gifts = {
  names: new Map(),
  shown: new Map(),

  learn(event) {
    const name = field(event.payload, "name");
    if (!name || !event.key) return;
    if (this.names.size >= LIMITS.combos) this.names.delete(this.names.keys().next().value);
    this.names.set(event.key, clip(name, 24));
  },

  name(key) {
    const known = this.names.get(key);
    if (known) return known;
    return key ? key.charAt(0).toUpperCase() + clip(key.slice(1), 24).replaceAll("_", " ") : "a gift";
  },

  show(user, key, sum) {
    const combo = `${user}\n${key}`;
    let banner = this.shown.get(combo);
    if (!banner) {
      if (this.shown.size >= LIMITS.banners) this.drop(this.shown.keys().next().value);
      banner = this.build(user, key);
      this.shown.set(combo, banner);
    }
    banner.count.textContent = `×${short(sum)}`;
    banner.count.classList.remove("pop");
    requestAnimationFrame(() => banner.count.classList.add("pop"));
    clearTimeout(banner.timer);
    banner.timer = setTimeout(() => this.drop(combo), 5_000);
  },

  build(user, key) {
    const node = element("div", "banner");
    const text = element("div", "banner-text");
    text.append(
      element("b", "", clip(user || "someone", 28)),
      element("span", "", `sent ${this.name(key)}`),
    );
    const count = element("div", "banner-count");
    const art = Object.keys(GIFTS).find((name) => key.toLowerCase().includes(name));
    node.append(icon(art ? GIFTS[art] : "g-gift", "banner-icon"), text, count);
    $("banners").append(node);
    return { node, count, timer: 0 };
  },

  drop(combo) {
    const banner = this.shown.get(combo);
    if (!banner) return;
    this.shown.delete(combo);
    clearTimeout(banner.timer);
    banner.node.classList.add("leaving");
    setTimeout(() => banner.node.remove(), 320);
  },
};

// ---- entrances -------------------------------------------------------------------

const entrances = {
  timer: 0,

  show(names, more, verb) {
    const node = $("entrance");
    node.replaceChildren();
    names.slice(0, 3).forEach((name, i) => {
      if (i > 0) node.append(", ");
      node.append(element("b", "", clip(name || "someone", 24)));
    });
    const rest = more + Math.max(0, names.length - 3);
    if (rest > 0) node.append(names.length ? ` and ${integer.format(rest)} more` : plural(rest, "viewer"));
    node.append(` ${verb}`);
    node.classList.remove("stale");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => node.classList.add("stale"), 4_500);
  },
};

// ---- pinned card -------------------------------------------------------------------

const CARD_HUES = [14, 32, 190, 214, 262, 334];

const card = {
  byKey: new Map(),

  set(event) {
    const key = event.key ?? "";
    this.byKey.delete(key);
    if (event.payload != null && event.encoding === undefined) this.byKey.set(key, event.payload);
    if (this.byKey.size > 50) this.byKey.delete(this.byKey.keys().next().value);
    this.show();
  },

  clear() {
    this.byKey.clear();
    this.show();
  },

  show() {
    const payload = [...this.byKey.values()].at(-1);
    const node = $("card");
    node.hidden = payload === undefined;
    if (payload === undefined) return;
    const title = clip(typeof payload === "string" ? payload : field(payload, "title") || "Untitled", 80);
    $("card-title").textContent = title;
    $("card-price").textContent = clip(field(payload, "price"), 20);
    $("card-initial").textContent = [...title][0] ?? "";
    $("card-art").style.setProperty("--hue", CARD_HUES[hue(title) % CARD_HUES.length]);
  },
};

// ---- red packets ---------------------------------------------------------------------

const packet = {
  waiting: [],
  current: null,
  timer: 0,

  offer(event) {
    const seconds = Math.min(60, Math.max(3, Number(field(event.payload, "seconds")) || 12));
    const item = { event, age: Math.max(0, Date.now() - event.time_ms), ends: Date.now() + seconds * 1000 };
    if (item.age > seconds * 1000) return;
    if (this.waiting.length >= LIMITS.packets) this.waiting.shift();
    this.waiting.push(item);
    if (!this.current) this.next();
  },

  next() {
    clearInterval(this.timer);
    const now = Date.now();
    this.waiting = this.waiting.filter((item) => item.ends > now + 1000);
    this.current = this.waiting.shift() ?? null;
    $("packet").hidden = this.current === null;
    if (!this.current) return;
    const { event, age } = this.current;
    $("packet").classList.remove("opened");
    $("packet-from").textContent = event.user ? `from ${clip(event.user, 28)}` : "a red packet";
    $("packet-title").textContent = clip(
      typeof event.payload === "string" ? event.payload : field(event.payload, "title") || "Red packet",
      80,
    );
    $("packet-sum").hidden = true;
    $("packet-open").disabled = false;
    const numbers = [];
    if (event.important != null) numbers.push(`important ${event.important}`);
    if (event.seq != null) numbers.push(`seq ${event.seq}`);
    $("packet-proof").textContent = [...numbers, `here after ${milliseconds(age)}`].join(" · ");
    this.tick();
    this.timer = setInterval(() => this.tick(), 250);
  },

  tick() {
    const left = Math.ceil((this.current.ends - Date.now()) / 1000);
    $("packet-count").textContent = Math.max(0, left);
    if (left <= 0) this.next();
  },

  open() {
    if (!this.current) return;
    const amount = clip(field(this.current.event.payload, "amount") || "yours", 16);
    $("packet").classList.add("opened");
    $("packet-open").disabled = true;
    $("packet-sum").textContent = amount;
    $("packet-sum").hidden = false;
    this.current.ends = Math.min(this.current.ends, Date.now() + 4_000);
  },
};

$("packet-open").addEventListener("click", () => packet.open());
$("packet-close").addEventListener("click", () => packet.next());

// ---- what must not be missed ----------------------------------------------------------

/** 32-bit FNV-1a of the UTF-8 bytes. */
function fnv1a(text) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash;
}

/**
 * The important events: numbered without a hole, so that one missing is seen at once, and
 * a repetition too. What is missing is pulled, what has come is acknowledged as asked.
 */
const important = {
  upTo: 0,
  beyond: new Set(),
  slot: 0,
  asked: 0,
  /** The server no longer has all that was asked for: what comes next is all there is. */
  gone: false,
  /** Hashes of the newest, by number, for a digest. */
  hashes: new Map(),
  ackTimer: 0,
  pullTimer: 0,

  /** Where we stand when a connection has joined. */
  joined(body, resume) {
    clearTimeout(this.ackTimer);
    clearTimeout(this.pullTimer);
    [this.ackTimer, this.pullTimer, this.asked] = [0, 0, 0];
    if (body.rebased || resume?.epoch === body.epoch) {
      // What came between follows by itself, but for what is named here.
      if (body.missed) this.pull(body.missed.to);
      return;
    }
    // A numbering that began after the one we know is new from its first event.
    this.upTo = resume?.epoch < body.epoch ? 0 : body.important;
    this.beyond.clear();
    this.hashes.clear();
    this.pull(body.important);
  },

  /** The events of a frame that were not here before. */
  take(frame) {
    if (this.gone) {
      const first = (frame.events ?? []).find((event) => event.important != null)?.important;
      this.upTo = Math.max(this.upTo, first == null ? this.asked : first - 1);
      this.gone = false;
    }
    const fresh = (frame.events ?? []).filter(
      ({ important: number }) => number == null || (number > this.upTo && !this.beyond.has(number)),
    );
    for (const { important: number, id } of fresh) {
      if (number == null) continue;
      this.beyond.add(number);
      this.hashes.set(number, fnv1a(`${number}:${id}`));
      if (this.hashes.size > 1_000) this.hashes.delete(this.hashes.keys().next().value);
    }
    while (this.beyond.delete(this.upTo + 1)) this.upTo += 1;
    if (frame.ack && this.slot < 65_536 / frame.ack.one_in) this.acknowledge(frame.ack, frame.room);
    else if (this.asked > 0 && frame.first_seq > frame.last_seq) this.acknowledge({ within_ms: 0 }, frame.room);
    this.pull(frame.important);
    return fresh;
  },

  /** At a random moment, and for all that has come by then. */
  acknowledge({ within_ms: within, digest_from: from }, room) {
    if (from != null) setTimeout(() => this.digest(from, room), Math.random() * within);
    if (this.ackTimer) return;
    this.ackTimer = setTimeout(() => {
      this.ackTimer = 0;
      connection.send("ack", { room, important: this.upTo });
    }, Math.random() * within);
  },

  /** What came here without a hole since `from`, for the server to compare with its own. */
  digest(from, room) {
    if (this.hashes.size === 0) return;
    const first = Math.max(from, Math.min(...this.hashes.keys()));
    const mine = [...this.hashes].filter(([number]) => number >= first && number <= this.upTo);
    if (mine.length === 0) return;
    const xor = mine.reduce((sum, [, hash]) => (sum ^ hash) >>> 0, 0);
    connection.send("digest", { room, from: first, to: this.upTo, count: mine.length, xor });
  },

  pull(latest) {
    if (latest <= this.upTo || latest <= this.asked) return;
    if (connection.send("pull", { room: connection.session.room, from: this.upTo + 1, to: latest })) this.asked = latest;
  },


  again(after) {
    const wanted = this.asked;
    this.asked = 0;
    clearTimeout(this.pullTimer);
    this.pullTimer = setTimeout(() => this.pull(wanted), after);
  },

  missed({ from, to, within_ms: within }) {
    this.asked = 0;
    clearTimeout(this.pullTimer);
    // They may have come already, but not the same as were sent.
    const again = () => connection.send("pull", { room: connection.session.room, from, to });
    this.pullTimer = setTimeout(to > this.upTo ? () => this.pull(to) : again, Math.random() * within);
  },
};

// ---- the numbers of the room --------------------------------------------------------

const meter = {
  seq: null,
  important: null,
  missed: 0,
  frames: 0,
  actions: 0,
  bytes: 0,
  ages: [],
  wires: [],
  /** One bin a second, oldest first. */
  bins: Array.from({ length: 60 }, () => ({ actions: 0, frames: 0 })),

  /** What people did that this frame stands for; a like of amount 8 is 8 actions. */
  actionsOf(frame) {
    let count = Math.max(0, frame.last_seq - frame.first_seq + 1);
    for (const event of frame.events ?? []) if (event.seq == null) count += 1;
    for (const total of frame.totals ?? []) if (SAMPLED.has(total.kind)) count += Math.max(0, total.delta);
    for (const [kind, n] of Object.entries(frame.dropped ?? {})) if (SAMPLED.has(kind)) count += n;
    return count;
  },

  frame(frame, size, now) {
    const actions = this.actionsOf(frame);
    this.frames += 1;
    this.actions += actions;
    this.bytes += size;
    const bin = this.bins.at(-1);
    bin.actions += actions;
    bin.frames += 1;
    for (const event of frame.events ?? []) this.ages.push(Math.max(0, now - event.time_ms));
    this.ages = this.ages.slice(-LIMITS.ages);
    this.wires = [...this.wires, Math.max(0, now - frame.time_ms)].slice(-LIMITS.ages);
    this.important = important.upTo;
    // Without numbers of its own it brings what was asked for, or missed.
    if (frame.first_seq > frame.last_seq) return;
    if (this.seq !== null && frame.first_seq > this.seq + 1) this.miss(frame.first_seq - this.seq - 1);
    this.seq = Math.max(this.seq ?? 0, frame.last_seq);
  },

  miss(count) {
    this.missed += count;
    $("missed").hidden = false;
    $("missed").textContent = `missed ${integer.format(this.missed)}`;
  },

  lately(seconds) {
    const sum = { actions: 0, frames: 0 };
    for (const bin of this.bins.slice(-seconds)) {
      sum.actions += bin.actions;
      sum.frames += bin.frames;
    }
    return sum;
  },

  due: false,

  /** Soon: a burst of frames repaints the figures once. */
  changed() {
    if (this.due) return;
    this.due = true;
    setTimeout(() => {
      this.due = false;
      this.show();
    }, 100);
  },

  show() {
    const age = median(this.ages);
    $("age").textContent = age === null ? "–" : milliseconds(age);
    const { actions, frames } = this.lately(10);
    $("merge").textContent =
      frames === 0 ? "" : `${plural(actions, "action")} → ${plural(frames, "frame")}`;
    $("n-seq").textContent = this.seq === null ? "–" : integer.format(this.seq);
    $("n-important").textContent = this.important === null ? "–" : integer.format(this.important);
    $("n-missed").textContent = integer.format(this.missed);
    $("n-missed").classList.toggle("bad", this.missed > 0);
    $("n-frames").textContent = short(this.frames);
    $("n-actions").textContent = short(this.actions);
    $("n-bytes").textContent = bytes(this.bytes);
    const wire = median(this.wires);
    $("n-wire").textContent = wire === null ? "–" : milliseconds(wire);
    this.draw();
  },

  draw() {
    const canvas = $("flow");
    if (canvas.offsetParent === null) return;
    const { width, height } = canvas;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const peak = Math.max(4, ...this.bins.map((bin) => bin.actions));
    const step = width / this.bins.length;
    // A square-root scale: a burst of 500 must not flatten the single frames beside it.
    const tall = (n) => Math.sqrt(n / peak) * (height - 10);
    this.bins.forEach((bin, i) => {
      const bar = (n, colour, left, wide) => {
        if (n === 0) return;
        context.fillStyle = colour;
        context.beginPath();
        context.roundRect(i * step + left, height - tall(n), wide, tall(n), [3, 3, 0, 0]);
        context.fill();
      };
      bar(bin.actions, "#ffc86b", 1, step - 2);
      bar(bin.frames, "#46dcc4", 4, step - 8);
    });
    $("flow-peak").textContent = `peak ${integer.format(Math.max(...this.bins.map((b) => b.actions)))}/s`;
  },

  second() {
    this.bins.push({ actions: 0, frames: 0 });
    this.bins.shift();
    this.show();
  },
};

// ---- the inspector ---------------------------------------------------------------------

const inspector = {
  frames: [],
  selected: null,
  follow: true,
  due: false,

  add(name, text, body, now) {
    this.frames.unshift({ name, text: text.slice(0, LIMITS.frameChars), size: text.length, body, now });
    this.frames.length = Math.min(this.frames.length, LIMITS.frames);
    if (this.follow && !this.due) {
      this.due = true;
      setTimeout(() => {
        this.due = false;
        if (this.follow) this.show();
      }, 200);
    }
  },

  visible() {
    return $("panel").offsetParent !== null || $("panel").classList.contains("open");
  },

  show() {
    if (!this.visible()) return;
    if (this.follow) this.selected = this.frames[0] ?? null;
    $("frames").replaceChildren(...this.frames.map((item) => this.row(item)));
    this.detail();
  },

  row(item) {
    const li = element("li");
    const button = element("button");
    button.type = "button";
    const { body } = item;
    const when = new Date(item.now);
    const clock = `${String(when.getMinutes()).padStart(2, "0")}:${String(when.getSeconds()).padStart(2, "0")}`;
    let what = item.name;
    let count = "";
    if (item.name === "frame") {
      const numbers = body.last_seq - body.first_seq + 1;
      what = numbers > 1 ? `${body.first_seq}–${body.last_seq}` : numbers === 1 ? `${body.last_seq}` : "no number";
      const kinds = new Set([...(body.events ?? []), ...(body.totals ?? [])].map((entry) => entry.kind));
      what += `  ${[...kinds].join(" ")}`;
      count = `${(body.events ?? []).length} ev`;
    }
    const important = item.name === "frame" && (body.events ?? []).some((event) => event.important != null);
    button.append(
      element("span", "", clock),
      element("span", important ? "matters" : "", clip(what, 80)),
      element("span", "", count),
      element("span", "", bytes(item.size)),
    );
    if (item === this.selected) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      this.hold(false);
      this.selected = item;
      this.show();
    });
    li.append(button);
    return li;
  },

  /** Colours the JSON as spans of text. */
  detail() {
    const pre = $("json");
    pre.replaceChildren();
    if (!this.selected) return;
    let text;
    try {
      text = JSON.stringify({ [this.selected.name]: this.selected.body }, null, 2);
    } catch {
      text = this.selected.text;
    }
    text = clip(text, LIMITS.shownChars);
    const token = /"(?:[^"\\]|\\.)*"(\s*:)?|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/g;
    let from = 0;
    for (const match of text.matchAll(token)) {
      pre.append(text.slice(from, match.index));
      pre.append(element("span", match[1] ? "k" : match[0].startsWith('"') ? "s" : "n", match[0]));
      from = match.index + match[0].length;
    }
    pre.append(text.slice(from));
  },

  hold(follow) {
    this.follow = follow;
    $("follow").setAttribute("aria-pressed", String(follow));
    $("follow").textContent = follow ? "Following" : "Follow";
    if (follow) this.show();
  },
};

$("follow").addEventListener("click", () => inspector.hold(!inspector.follow));

// ---- what the room says --------------------------------------------------------------------

function showFrame(frame) {
  const lines = [];
  const came = { enter: [], follow: [], fansclub: [] };
  const combos = new Map();
  for (const event of frame.events ?? []) {
    switch (event.kind) {
      case "chat":
      case "super_chat":
      case "guard":
        lines.push(chat.line(event));
        break;
      case "gift":
        gifts.learn(event);
        combos.set(`${event.user}\n${event.key ?? ""}`, event.amount ?? 1);
        break;
      case "enter":
      case "follow":
      case "fansclub":
        came[event.kind].push(event.user);
        break;
      case "like":
        break;
      default:
        showOther(event, lines);
    }
  }
  for (const total of frame.totals ?? []) {
    if (total.kind === "like") {
      likes.set(total.sum);
      likes.add(total.delta);
    } else if (total.kind === "gift" && total.delta !== 0) combos.set(`${total.user ?? ""}\n${total.key}`, total.sum);
  }
  for (const [combo, sum] of combos) {
    const cut = combo.indexOf("\n");
    gifts.show(combo.slice(0, cut), combo.slice(cut + 1), sum);
  }
  const dropped = frame.dropped ?? {};
  const verbs = { fansclub: "joined the fan club", follow: "followed", enter: "came aboard" };
  for (const [kind, verb] of Object.entries(verbs)) {
    const more = dropped[kind] ?? 0;
    if (came[kind].length + more > 0) entrances.show(came[kind], more, verb);
  }
  const shed = Object.entries(dropped).filter(([kind]) => !SAMPLED.has(kind));
  if (shed.length > 0) lines.push(chat.note(`The room left out ${counts(shed)} to keep its frame small.`, true));
  chat.add(lines);
}

const counts = (entries) => entries.map(([kind, n]) => `${integer.format(n)} ${kind}`).join(", ");

function showOther(event, lines) {
  switch (event.kind) {
    case "red_packet":
      packet.offer(event);
      lines.push(chat.note(`${event.user || "The room"} sent a red packet.`, true));
      break;
    case "product_card":
      card.set(event);
      break;
    case "stream_state":
      showStream(event);
      break;
    case "stats": {
      const reported = field(event.payload, "online") || field(event.payload, "viewers");
      if (reported) $("room-note").textContent = `${clip(reported, 16)} on all platforms`;
      break;
    }
    default:
      lines.push(chat.note(clip(`${event.kind}: ${textOf(event)}`, 200)));
  }
}

function showStream(event) {
  const state = typeof event.payload === "string" ? event.payload : field(event.payload, "state");
  const title = field(event.payload, "title");
  if (title) $("room-name").textContent = clip(title, 40);
  if (state) $("onair").textContent = clip(state.toUpperCase(), 8);
  $("onair").hidden = false;
}

function showJoined(body) {
  const resumed = body.recovered === true && connection.resume?.epoch === body.epoch;
  if (body.rebased) chat.add([chat.note("This viewer was sent less for a while; from here on it is up to date.", true)]);
  else if (meter.seq !== null && !resumed) chat.add([chat.note("Back in the room; what came between is not shown.")]);
  meter.seq = resumed ? connection.resume.seq : body.seq;
  important.joined(body, connection.resume);
  meter.important = important.upTo;
  const epoch = String(body.epoch);
  $("n-epoch").textContent = epoch.length > 9 ? `…${epoch.slice(-8)}` : epoch;
  $("n-epoch").title = epoch;
  $("online").textContent = short(body.online ?? 0);
  $("room-note").textContent = `room ${clip(body.room, 40)}`;
  $("onair").hidden = false;
  card.clear();
  for (const event of body.state ?? []) {
    if (event.kind === "product_card") card.set(event);
    else if (event.kind === "stream_state") showStream(event);
  }
  for (const total of body.totals ?? []) if (total.kind === "like") likes.set(total.sum);
  $("say").placeholder = `Chat as ${connection.session.user}`;
  remember(body);
}

/** Where to resume. */
function remember(body) {
  connection.resume = { epoch: body.epoch, seq: meter.seq, important: important.upTo };
}

function showGap(gap) {
  const lost = Object.entries(gap.dropped ?? {});
  meter.miss(Math.max(0, gap.last_seq - gap.first_seq + 1));
  meter.seq = Math.max(meter.seq ?? 0, gap.last_seq);
  chat.add([chat.note(lost.length ? `This viewer was too slow for ${counts(lost)}.` : "This viewer was too slow.", true)]);
}

function onMessage(name, body, text) {
  const now = Date.now();
  switch (name) {
    case "joined":
      showJoined(body);
      break;
    case "frame":
      body.events = important.take(body);
      meter.frame(body, text.length, now);
      if (body.online != null) $("online").textContent = short(body.online);
      showFrame(body);
      remember(body);
      break;
    case "gap":
      showGap(body);
      break;
    case "missed":
      important.missed(body);
      chat.add([chat.note(`Asking again for ${plural(body.to - body.from + 1, "event")} that must not be missed.`, true)]);
      break;
    case "rejected":
      refused(body);
      break;
    case "error":
      if (body.code === "history_gone") important.gone = true;
      toast(`${body.code}: ${body.reason}`);
      break;
  }
  inspector.add(name, text, body, now);
  meter.changed();
}

// ---- speaking as a viewer -------------------------------------------------------------------

const said = new Map();

function refused(body) {
  const retry = body.retry_after_ms ? ` Try again in ${milliseconds(body.retry_after_ms)}.` : "";
  toast(`Refused (${body.code}): ${body.reason}.${retry}`.replace("..", "."));
  const text = said.get(body.id);
  if (text && $("say").value === "") $("say").value = text;
}

$("composer").addEventListener("submit", (submit) => {
  submit.preventDefault();
  const text = $("say").value.trim();
  if (!text) return;
  const id = newId("say");
  const room = connection.session?.room;
  if (!connection.send("publish", { room, id, kind: "chat", payload: text })) {
    toast("Not connected; the message was not sent.");
    return;
  }
  said.set(id, text);
  if (said.size > 20) said.delete(said.keys().next().value);
  $("say").value = "";
});

// Taps within a moment travel as one like with an amount: the client merges too.
let taps = 0;
$("like").addEventListener("click", () => {
  if (!calm.matches) likes.heart();
  taps += 1;
  if (taps > 1) return;
  setTimeout(() => {
    const room = connection.session?.room;
    if (!connection.send("publish", { room, id: newId("like"), kind: "like", payload: null, amount: taps })) {
      toast("Not connected; the likes were not sent.");
    }
    taps = 0;
  }, 200);
});

// ---- publishing as the IM service --------------------------------------------------------------

const NAMES = "mara otto linnea jun sefa bo ines tarek noor piet yuki hale".split(" ");
const LINES = [
  "what a view tonight",
  "the light just came round",
  "hello from the pier",
  "is the brass one still there?",
  "tide turns at nine",
  "that wave though",
  "first time here, this is lovely",
  "can you show the lamp again",
  "sound is perfect now",
  "ferry in the background!",
];
const pick = (list) => list[Math.floor(Math.random() * list.length)];
const guest = () => `${pick(NAMES)}-${Math.floor(Math.random() * 900 + 100)}`;

const BURSTS = {
  chats: () => many(200, () => ({ kind: "chat", user: guest(), payload: pick(LINES) })),
  likes: () => many(500, () => ({ kind: "like", user: guest(), payload: null, amount: 1 })),
  entrances: () => many(80, () => ({ kind: "enter", user: guest(), payload: null })),
  combo: () => {
    const user = guest();
    const item = pick(Object.keys(GIFTS));
    const payload = { name: item.charAt(0).toUpperCase() + item.slice(1), value: 10 };
    return many(12, () => ({ kind: "gift", user, key: item, amount: 1, payload }));
  },
};

const many = (count, make) => Array.from({ length: count }, make);

async function publish(events) {
  const { room, publisher_token: token } = connection.session ?? {};
  const answer = $("answer");
  const started = performance.now();
  try {
    const response = await fetch(`/v1/rooms/${encodeURIComponent(room)}/events`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify({ events: events.map((event) => ({ id: newId("im"), ...event })) }),
    });
    const body = await response.json();
    showAnswer(answer, response.status, body, performance.now() - started);
  } catch (failure) {
    answer.textContent = `Not sent: ${failure.message}`;
    answer.classList.add("bad");
  }
}

function showAnswer(answer, status, body, took) {
  if (body.error) {
    answer.textContent = `${status} ${body.error.code}: ${body.error.reason}`;
    answer.classList.add("bad");
    return;
  }
  const accepted = body.results.filter((result) => result.status === "accepted");
  const numbers = accepted.map((result) => result.seq).filter((seq) => seq != null);
  const parts = [`accepted ${accepted.length} of ${body.results.length} in ${milliseconds(took)}`];
  if (numbers.length === 1) parts.push(`seq ${numbers[0]}`);
  if (numbers.length > 1) parts.push(`seq ${Math.min(...numbers)} to ${Math.max(...numbers)}`);
  const refusal = body.results.find((result) => result.status === "rejected");
  if (refusal) parts.push(`first refusal ${refusal.code}: ${refusal.reason}`);
  if (body.admission) parts.push(`admission ${body.admission.business}/${body.admission.user}`);
  answer.textContent = parts.join(" · ");
  answer.classList.toggle("bad", refusal !== undefined);
}

$("bursts").addEventListener("click", (click) => {
  const name = click.target.closest("button")?.dataset.burst;
  if (name) publish(BURSTS[name]());
});

/** Wires a form to events made from its fields. */
function onSubmit(id, make) {
  $(id).addEventListener("submit", (submit) => {
    submit.preventDefault();
    publish([make(Object.fromEntries(new FormData(submit.target)))]);
  });
}

onSubmit("form-packet", ({ title, amount }) => ({
  kind: "red_packet",
  user: "harbour-master",
  payload: { title, amount },
}));

onSubmit("form-card", ({ title, price }) => ({
  kind: "product_card",
  user: "harbour-master",
  key: "pinned",
  payload: { title, price },
}));

$("card-clear").addEventListener("click", () => {
  publish([{ kind: "product_card", user: "harbour-master", key: "pinned", payload: null }]);
});

onSubmit("form-any", (form) => {
  const event = { kind: form.kind, user: form.user, payload: form.payload };
  try {
    event.payload = JSON.parse(form.payload);
  } catch {
    // Plain text travels as a JSON string.
  }
  if (form.key) event.key = form.key;
  if (form.amount && Number.isSafeInteger(Number(form.amount))) event.amount = Number(form.amount);
  return event;
});

// ---- the panel as a sheet on a phone -----------------------------------------------------------

const desk = matchMedia("(min-width: 960px)");

function setPanel(open) {
  const panel = $("panel");
  panel.classList.toggle("open", open);
  panel.inert = !open && !desk.matches;
  $("panel-toggle").setAttribute("aria-expanded", String(open));
  if (open) {
    inspector.show();
    meter.show();
  }
}

$("panel-toggle").addEventListener("click", () => {
  setPanel(!$("panel").classList.contains("open"));
  if ($("panel").classList.contains("open")) $("panel-close").focus();
});
$("panel-close").addEventListener("click", () => {
  setPanel(false);
  $("panel-toggle").focus();
});
desk.addEventListener("change", () => setPanel(false));
document.addEventListener("keydown", (key) => {
  if (key.key !== "Escape") return;
  if (!$("packet").hidden) packet.next();
  else if ($("panel").classList.contains("open")) $("panel-close").click();
});
$("stage").addEventListener("pointerdown", (press) => {
  if (!press.target.closest(".composer") && $("panel").classList.contains("open")) setPanel(false);
});

// ---- start ---------------------------------------------------------------------------------------

const connection = new Connection({
  state: (name, detail, until) => pill.show(name, detail, until),
  message: onMessage,
});

setPanel(false);
setInterval(() => meter.second(), 1_000);
window.addEventListener("online", () => connection.hurry());
connection.open();
