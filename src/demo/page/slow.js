// What the server does with a viewer that reads too slowly, shown rung by rung, and a
// way to be such a viewer.
//
// A page cannot stop reading a WebSocket: the browser takes what comes and keeps it. A
// WebSocketStream it can: what it does not read stays on the way, the browser's and both
// kernels' buffers fill, and then the server notices, as with a real slow line.

const $ = (id) => document.getElementById(id);
const integer = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Whether this browser lets a page decide how fast it reads. */
export const canBeSlow = "WebSocketStream" in globalThis;

/** How fast this page reads: bytes per second, or `Infinity`. */
export const pace = {
  rate: Infinity,
  woken: null,
  wake: null,

  set(rate) {
    this.rate = rate;
    this.wake?.();
    this.wake = null;
    this.woken = null;
  },

  /** Resolves when the pace changes, or after `ms`. */
  async rest(ms) {
    this.woken ??= new Promise((wake) => (this.wake = wake));
    if (ms === Infinity) return this.woken;
    let timer;
    const passed = new Promise((done) => (timer = setTimeout(done, ms)));
    await Promise.race([passed, this.woken]);
    clearTimeout(timer);
  },

  /** Waits as long as reading so many bytes takes. */
  async spend(bytes) {
    let left = bytes;
    while (left > 0 && this.rate !== Infinity) {
      const began = performance.now();
      const { rate } = this;
      await this.rest(rate === 0 ? Infinity : (left / rate) * 1_000);
      left -= (rate * (performance.now() - began)) / 1_000;
    }
  },
};

/** A WebSocket, as far as the library needs one, that reads at `pace`. */
export class PacedSocket {
  readyState = WebSocket.CONNECTING;
  onmessage = null;
  onclose = null;

  constructor(url, protocol) {
    this.stream = new WebSocketStream(url, { protocols: [protocol] });
    this.stream.opened.then((opened) => this.run(opened)).catch(() => undefined);
    this.stream.closed.then(
      ({ closeCode, reason }) => this.ended(closeCode, reason),
      (failure) => this.ended(failure.closeCode ?? 1006, failure.reason || failure.message),
    );
  }

  async run({ readable, writable }) {
    this.readyState = WebSocket.OPEN;
    this.writer = writable.getWriter();
    const reader = readable.getReader();
    for (;;) {
      await pace.spend(1);
      const { value, done } = await reader.read();
      if (done) return;
      this.onmessage?.({ data: value });
      await pace.spend(value.length);
    }
  }

  ended(code, reason) {
    this.readyState = WebSocket.CLOSED;
    this.onclose?.({ code, reason });
  }

  send(text) {
    this.writer.write(text).catch(() => undefined);
  }

  close(code, reason) {
    this.readyState = WebSocket.CLOSING;
    this.stream.close({ closeCode: code, reason });
  }
}

/** The rungs by the library's names for what is withheld, and what is left of them. */
const WORDS = {
  nothing: "",
  sampled: "slow line: no entrances",
  totals: "slow line: no entrances, no counts",
  ordered: "slow line: important events only",
  rebase: "slow line: skipped ahead",
};

/** Which rung this viewer is on, as far as it was told, and what it was told on each. */
export const ladder = {
  now: "nothing",
  count: new Map(),

  reset() {
    this.at("nothing");
  },

  at(rung) {
    this.now = rung;
    for (const row of $("ladder").children) {
      if (row.dataset.rung === rung) row.setAttribute("aria-current", "step");
      else row.removeAttribute("aria-current");
    }
    $("slow").textContent = WORDS[rung];
    $("slow").hidden = rung === "nothing";
  },

  /** The server said something that belongs to a rung. */
  told(rung, words) {
    const times = (this.count.get(rung) ?? 0) + 1;
    this.count.set(rung, times);
    const told = document.querySelector(`#ladder [data-rung="${rung}"] .told`);
    const clock = new Date().toTimeString().slice(0, 8);
    told.textContent = `${clock} ${words}${times > 1 ? ` · ${integer.format(times)} times` : ""}`;
  },

  withheld(rung) {
    const told = {
      nothing: "told: everything again",
      sampled: "told with each frame: withheld 1",
      totals: "told with each frame: withheld 2",
      ordered: "told with each frame: withheld 3",
    };
    this.told(rung, told[rung]);
    this.at(rung);
  },
};

/**
 * Fills the room with what does not compress, so that a slow viewer falls behind within
 * seconds: about 64 KiB of chat a second, and some of everything else.
 */
export function crowd(publish) {
  let beat = 0;
  const noise = () => {
    const random = crypto.getRandomValues(new Uint8Array(2_900));
    return btoa(String.fromCharCode(...random));
  };
  const tick = () => {
    beat += 1;
    const who = `crowd-${beat}`;
    const events = Array.from({ length: 4 }, () => ({ kind: "chat", user: who, payload: noise() }));
    events.push({ kind: "enter", user: who, payload: null }, { kind: "like", user: who, payload: null, amount: 3 });
    if (beat % 16 === 0) {
      const payload = { title: `For those who wait, ${beat / 16}`, amount: "8.00", seconds: 5 };
      events.push({ kind: "red_packet", user: "harbour-master", payload });
    }
    publish(events);
  };
  tick();
  const timer = setInterval(tick, 250);
  return () => clearInterval(timer);
}
