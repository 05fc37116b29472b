// The demo room: a viewer, by the library that any page may use (clients/js), and a
// publisher over HTTP beside it. Whatever comes from the room is shown as text
// (textContent), never as markup.

import { canBeSlow, crowd, ladder, pace, PacedSocket } from "/demo/slow.js";
import { connect, webSocketDial } from "/demo/tidegate.js";

const $ = (id) => document.getElementById(id);

/** Most of anything that is kept, so that a long evening costs no more than a short one. */
const LIMITS = {
  chat: 150,
  hearts: 36,
  banners: 3,
  toasts: 3,
  packets: 5,
  frames: 30,
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

/** A payload as a line of text; bytes are what was not JSON. */
function textOf({ payload }) {
  if (payload instanceof Uint8Array) return `(${plural(payload.length, "byte")})`;
  if (typeof payload === "string") return payload;
  if (payload && typeof payload.text === "string") return payload.text;
  return payload === undefined ? "" : JSON.stringify(payload);
}

const field = (payload, name) =>
  payload && typeof payload === "object" && payload[name] != null ? String(payload[name]) : "";

// ---- the viewer --------------------------------------------------------------

const TRANSPORTS = { webtransport: "WebTransport", websocket: "WebSocket" };
/** The close code of a viewer that takes nothing. */
const SLOW = 3008;

/** Tokens for a guest, and the name that they are for. */
let identity = null;
let client = null;
let room = null;
let turn = 0;
/** Numbers were told as lost, and none has come since. */
let behind = false;
/** Reads at `pace`; only over WebSocket. */
let paced = false;

async function newIdentity() {
  const answer = await fetch("/demo/session", { cache: "no-store" });
  if (!answer.ok) throw new Error(`session: ${answer.status}`);
  identity = await answer.json();
  return identity;
}

/** What to trust for WebTransport while the server has a certificate for development. */
async function certificateHashes() {
  const answer = await fetch("/demo/certificate", { cache: "no-store" });
  if (!answer.ok) return [];
  const { previous = [], ...present } = await answer.json();
  return [present, ...previous].map(({ sha256 }) =>
    Uint8Array.from(atob(sha256), (letter) => letter.charCodeAt(0)),
  );
}

/** Joins over these transports, instead of whatever there was before. */
async function enter(transports) {
  client?.close();
  turn += 1;
  const mine = turn;
  pill.show("connecting", "");
  while (!identity) {
    await newIdentity().catch(() => new Promise((done) => setTimeout(done, 500 + Math.random() * 2_000)));
    // Another transport was chosen meanwhile.
    if (mine !== turn) return;
  }
  // The first token serves the first join; another one is asked for when it is refused.
  let fresh = identity;
  // A certificate for development is asked for first, and that takes of the head start.
  const websocket = webSocketDial((url, protocol) => new PacedSocket(url, protocol));
  const environment = paced ? { dials: { websocket } } : {};
  client = connect({ transports, certificateHashes, race: { headStartMs: 2_000 }, environment });
  client.on("state", (state, { reason, inMs }) => showState(state, reason, inMs));
  client.on("error", ({ code, message }) => {
    if (code !== "unreachable" && code !== "refused") toast(message);
  });
  client.on("message", (message, { size }) => {
    meter.bytes += size;
    inspector.add(message.name, message.body, size, Date.now());
    meter.changed();
    if (message.name === "gap") behind = true;
    if (message.name === "frame" && message.body.first_seq <= message.body.last_seq) behind = false;
  });
  client.on("close", ({ code, reason }) => {
    if (code === SLOW) ladder.told("closed", `told: ${code} ${reason}, come back`);
  });
  room = client.join(identity.room, {
    token: async () => {
      const session = fresh ?? (await newIdentity());
      fresh = null;
      return session.viewer_token;
    },
    onState: showJoined,
    onFrame: (frame) => {
      meter.frame(frame);
      // After a gap or a leap, the first frame with numbers says how it goes on.
      if (frame.firstSeq <= frame.lastSeq && frame.lane === "control") showWithheld(frame.withheld);
      showFrame(frame);
    },
    onOnline: (online) => ($("online").textContent = short(online)),
    onWithheld: showWithheld,
    onGap: showGap,
    onMissed: showMissed,
  });
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
    if (name === "live") this.text.textContent = `live · ${TRANSPORTS[client.stats.transport]}`;
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

function showState(state, reason, inMs) {
  // Who reads nothing does not read the welcome either.
  if (state !== "open") pace.set(Infinity);
  const again = meter.seq !== null;
  if (state === "waiting") pill.show("reconnecting", reason, performance.now() + inMs);
  else if (state === "stopped") pill.show("stopped", reason);
  else if (state === "connecting") pill.show(again ? "reconnecting" : "connecting", "");
}

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
    const mine = event.user === identity?.user;
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
    if (event.payload != null && !(event.payload instanceof Uint8Array)) this.byKey.set(key, event.payload);
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
    const item = { event, age: event.ageMs, ends: Date.now() + seconds * 1000 };
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
    let count = Math.max(0, frame.lastSeq - frame.firstSeq + 1);
    for (const event of frame.events) if (event.seq === undefined) count += 1;
    for (const total of frame.totals) if (SAMPLED.has(total.kind)) count += Math.max(0, total.delta);
    for (const [kind, n] of Object.entries(frame.dropped)) if (SAMPLED.has(kind)) count += n;
    return count;
  },

  frame(frame) {
    const actions = this.actionsOf(frame);
    this.frames += 1;
    this.actions += actions;
    const bin = this.bins.at(-1);
    bin.actions += actions;
    bin.frames += 1;
    for (const event of frame.events) this.ages.push(event.ageMs);
    this.ages = this.ages.slice(-LIMITS.ages);
    this.wires = [...this.wires, frame.ageMs].slice(-LIMITS.ages);
    this.stand();
  },

  /** Where the library stands in the room's numbers. */
  stand() {
    const at = room.position;
    this.seq = at.seq;
    this.important = at.important;
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

  add(name, body, size, now) {
    this.frames.unshift({ name, size, body, now });
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
    const bytesAsText = (_, value) => (value instanceof Uint8Array ? textOf({ payload: value }) : value);
    const message = { [this.selected.name]: this.selected.body };
    const text = clip(JSON.stringify(message, bytesAsText, 2), LIMITS.shownChars);
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
  for (const event of frame.events) {
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
  for (const total of frame.totals) {
    if (total.kind === "like") {
      likes.set(total.sum);
      likes.add(total.delta);
    } else if (total.kind === "gift" && total.delta !== 0) combos.set(`${total.user ?? ""}\n${total.key}`, total.sum);
  }
  for (const [combo, sum] of combos) {
    const cut = combo.indexOf("\n");
    gifts.show(combo.slice(0, cut), combo.slice(cut + 1), sum);
  }
  const { dropped } = frame;
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

function showJoined(state) {
  pill.show("live", "");
  if (paced) pace.set(Number($("pace").value));
  if (state.rebased) showRebased(state);
  else ladder.reset();
  if (state.rebased) meter.stand();
  else if (meter.seq !== null && !state.recovered) chat.add([chat.note("Back in the room; what came between is not shown.")]);
  meter.stand();
  const epoch = String(state.epoch);
  $("n-epoch").textContent = epoch.length > 9 ? `…${epoch.slice(-8)}` : epoch;
  $("n-epoch").title = epoch;
  $("room-note").textContent = `room ${clip(room.name, 40)}`;
  $("onair").hidden = false;
  card.clear();
  for (const event of state.events) {
    if (event.kind === "product_card") card.set(event);
    else if (event.kind === "stream_state") showStream(event);
  }
  for (const total of state.totals) if (total.kind === "like") likes.set(total.sum);
  $("say").placeholder = `Chat as ${identity.user}`;
  meter.changed();
}

function showWithheld(withheld) {
  if (ladder.now === withheld) return;
  ladder.withheld(withheld);
  const words = {
    nothing: "This viewer keeps up again: everything is sent.",
    sampled: "This viewer is slow: samples of the crowd are left out.",
    totals: "This viewer is slower still: counts are left out, too.",
    ordered: "This viewer is very slow: only important events are sent.",
  };
  chat.add([chat.note(words[withheld], withheld !== "nothing")]);
}

/** Skipped ahead, where numbers were lost right before; otherwise values given anew. */
function showRebased({ seq }) {
  if (!behind) return chat.add([chat.note("What this viewer did not get was given anew.")]);
  ladder.at("rebase");
  ladder.told("rebase", `told: the room as of seq ${integer.format(seq)}`);
  chat.add([chat.note("This viewer was too far behind and skipped ahead: this is the room as it is now.", true)]);
}

function showGap({ firstSeq, lastSeq, dropped, cause }) {
  // Of what went by while nobody was here the room's note tells.
  if (cause === "away") return;
  meter.miss(lastSeq - firstSeq + 1);
  const lost = Object.entries(dropped);
  if (cause === "told") {
    ladder.at("ordered");
    ladder.told("ordered", `told: gap in seq ${firstSeq} to ${lastSeq}, without ${counts(lost) || "anything"}`);
  }
  chat.add([chat.note(lost.length ? `This viewer was too slow for ${counts(lost)}.` : "This viewer was too slow.", true)]);
}

function showMissed({ from, to, gone }) {
  const what = plural(to - from + 1, "event");
  const text = gone ? `The server no longer has ${what}.` : `Asking again for ${what} that must not be missed.`;
  chat.add([chat.note(text, true)]);
}

// ---- speaking as a viewer -------------------------------------------------------------------

/** What the server, or the library, did not take. */
function refused({ code, reason, retryAfterMs }) {
  const retry = retryAfterMs ? ` Try again in ${milliseconds(retryAfterMs)}.` : "";
  toast(`Refused (${code}): ${reason}.${retry}`.replace("..", "."));
}

$("composer").addEventListener("submit", (submit) => {
  submit.preventDefault();
  const text = $("say").value.trim();
  if (!text || !room) return;
  $("say").value = "";
  room.publish("chat", text).catch((refusal) => {
    refused(refusal);
    if ($("say").value === "") $("say").value = text;
  });
});

// Taps within a moment travel as one like with an amount: the client merges too.
let taps = 0;
$("like").addEventListener("click", () => {
  if (!calm.matches) likes.heart();
  taps += 1;
  if (taps > 1) return;
  setTimeout(() => {
    room?.publish("like", null, { amount: taps }).catch(refused);
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
  const { room: name, publisher_token: token } = identity ?? {};
  const answer = $("answer");
  const started = performance.now();
  try {
    const response = await fetch(`/v1/rooms/${encodeURIComponent(name)}/events`, {
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

// ---- being slow ---------------------------------------------------------------------------------

let quiet = null;
$("crowd").addEventListener("click", () => {
  quiet?.();
  quiet = quiet ? null : crowd(publish);
  $("crowd").setAttribute("aria-pressed", String(quiet !== null));
});

$("pace").addEventListener("change", () => {
  if (paced) return pace.set(Number($("pace").value));
  // Another connection, which can be read slowly from its `joined` on.
  paced = true;
  choice.value = "websocket";
  enter(["websocket"]);
});

if (!canBeSlow) {
  $("pace").disabled = true;
  $("slow-hint").textContent =
    "This browser reads whatever comes (it has no WebSocketStream), so only a slow line makes this viewer slow.";
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

/** Both, the better one first, or only the one that was chosen. */
const chosen = (name) => (name in TRANSPORTS ? [name] : Object.keys(TRANSPORTS));

const choice = $("transport");
const asked = new URLSearchParams(location.search).get("transport");
if (asked in TRANSPORTS) choice.value = asked;
choice.addEventListener("change", () => {
  paced = false;
  $("pace").value = "Infinity";
  pace.set(Infinity);
  enter(chosen(choice.value));
});

setPanel(false);
setInterval(() => meter.second(), 1_000);
enter(chosen(choice.value));
