/**
 * Keeps one connection to the server as long as somebody wants it.
 *
 * When to come back is decided here, by these rules, the stricter first: what the
 * server told (`goaway`, `retry_after_ms`) is never undercut; without a network it is
 * tried rarely; a hidden page takes its time; otherwise full jitter (`backoff.ts`), which is
 * cut short when the page is shown again or the network comes back. Close codes 3500 to
 * 3999 say not to come back at all.
 */

import { Backoff, type BackoffOptions } from "./backoff.js";
import type { Environment, PageChange } from "./environment.js";
import { TidegateError } from "./errors.js";
import type { ClientMessage, Lane, ServerMessage, ServerMessages } from "./messages.js";
import { Race, TransportMemory, type RaceOptions } from "./race.js";
import { baseOf, type Address, type Closing, type Link, type TransportName } from "./transport.js";

export interface ConnectionOptions {
  address: Address;
  transports: readonly TransportName[];
  race: RaceOptions;
  backoff: BackoffOptions;
  /** A connection that held for so long resets the backoff, in milliseconds. */
  stableMs: number;
  /** A hidden page waits up to so much longer before it reconnects, in milliseconds. */
  lazyMs: number;
}

/** What the connection is doing. */
export type State = "idle" | "connecting" | "open" | "waiting" | "stopped";

/** How the state came about. */
export interface StateDetail {
  reason: string;
  /** While `waiting`: when the next try is due, on the environment's clock. */
  until: number | undefined;
}

/** What the connection tells. */
export interface ConnectionEvents {
  state(state: State, detail: StateDetail): void;
  opened(link: Link, welcome: ServerMessages["welcome"]): void;
  message(message: ServerMessage, lane: Lane, size: number, transport: TransportName): void;
  closed(closing: Closing, transport: TransportName, returns: boolean): void;
  failed(transport: TransportName, closing: Closing): void;
  /** No transport got through; it is tried again. */
  unreachable(failure: TidegateError): void;
}

/** Longest silence before `welcome` has said how often the server pings. */
const FIRST_PATIENCE_MS = 30_000;
/** Two immediate tries are so far apart at least. */
const HURRY_MS = 1_000;
/** The server leaves. */
const DRAIN = 3000;
/** Over what it has its viewers come back, if its `goaway` got lost. */
const DRAIN_SPREAD_MS = 5_000;
/** Without a network it is tried so much later: what is known of it may be wrong. */
const OFFLINE_MS = 30_000;

const comesBack = ({ code }: Closing): boolean => !(code >= 3500 && code <= 3999);

export class Connection {
  link: Link | undefined;
  private state: State = "idle";
  private wanted = false;
  private race: Race | undefined;
  private timer: unknown;
  private stable: unknown;
  private silence: unknown;
  private readonly backoff: Backoff;
  private readonly memory: TransportMemory;
  private readonly unwatch: () => void;
  /** Where a `goaway` sent us, until that fails. */
  private elsewhere: string | undefined;
  /** Not before this time: the server said so. */
  private notBefore = 0;
  private goaway: ServerMessages["goaway"] | undefined;
  private began = -Infinity;
  private openedAt = 0;
  private heardAt = 0;
  private patience = FIRST_PATIENCE_MS;

  constructor(
    private readonly environment: Environment,
    private readonly options: ConnectionOptions,
    private readonly events: ConnectionEvents,
  ) {
    this.backoff = new Backoff(options.backoff, environment.random);
    this.memory = new TransportMemory(environment);
    this.unwatch = environment.watch((change) => this.page(change));
  }

  /** It is needed from now on. */
  want(): void {
    this.wanted = true;
    if (this.state === "idle") this.dial();
  }

  /** It is not needed at the moment. */
  rest(): void {
    this.wanted = false;
    if (this.state === "stopped") return;
    this.drop(1000, "");
    this.enter("idle", "");
  }

  /** For good. */
  stop(reason: string): void {
    this.wanted = false;
    this.drop(1000, "");
    this.unwatch();
    this.enter("stopped", reason);
  }

  send(message: ClientMessage): boolean {
    return this.link?.send(message) ?? false;
  }

  /** Ends this connection and makes another, not before `afterMs`. */
  renew(reason: string, afterMs = 0): void {
    const { link } = this;
    this.notBefore = Math.max(this.notBefore, this.environment.now() + afterMs);
    if (link === undefined) return;
    this.drop(1000, "");
    this.events.closed({ code: 1006, reason }, link.transport, true);
    this.wait(reason);
  }

  private drop(code: number, reason: string): void {
    const { environment } = this;
    for (const timer of [this.timer, this.stable, this.silence]) environment.clearTimer(timer);
    this.link = undefined;
    this.race?.stop(code, reason);
    this.race = undefined;
  }

  private enter(state: State, reason: string, until?: number): void {
    this.state = state;
    this.events.state(state, { reason, until });
  }

  private dial(): void {
    const { environment, options, memory } = this;
    environment.clearTimer(this.timer);
    this.began = environment.now();
    this.goaway = undefined;
    const address = this.elsewhere ? { ...options.address, base: this.elsewhere } : options.address;
    this.race = new Race(environment, options.race, address, memory.order(options.transports), {
      won: (link, { body }, size) => this.opened(link, body, size),
      message: (message, lane, size) => this.heard(message, lane, size),
      closed: (closing) => this.closed(closing),
      failed: (transport, closing) => this.events.failed(transport, closing),
      lost: (closing) => this.lost(closing),
    });
    this.enter("connecting", "");
  }

  private opened(link: Link, welcome: ServerMessages["welcome"], size: number): void {
    const { environment, options } = this;
    this.link = link;
    if (options.transports.length > 1) this.memory.won(link.transport);
    this.openedAt = environment.now();
    this.stable = environment.setTimer(() => this.backoff.reset(), options.stableMs);
    this.patience = FIRST_PATIENCE_MS;
    // The server pings when it has nothing else to say.
    if (welcome.ping_interval_ms > 0) this.patience = welcome.ping_interval_ms * 2 + 5_000;
    this.heardAt = environment.now();
    this.listen(this.patience);
    this.enter("open", "");
    this.events.message({ name: "welcome", body: welcome }, "control", size, link.transport);
    this.events.opened(link, welcome);
  }

  private heard(message: ServerMessage, lane: Lane, size: number): void {
    const { link } = this;
    if (link === undefined) return;
    this.heardAt = this.environment.now();
    if (message.name === "ping") link.send({ name: "pong", body: {} });
    if (message.name === "goaway") this.goaway = message.body;
    this.events.message(message, lane, size, link.transport);
  }

  /** A timer for every message would cost more than one that looks now and then. */
  private listen(ms: number): void {
    this.silence = this.environment.setTimer(() => {
      const left = this.heardAt + this.patience - this.environment.now();
      if (left > 0) this.listen(left);
      else this.renew("the server has gone silent");
    }, ms);
  }

  private closed(closing: Closing): void {
    const { environment, options, link } = this;
    const now = environment.now();
    this.drop(1000, "");
    const { goaway } = this;
    const returns = comesBack(closing);
    if (goaway) {
      this.notBefore = Math.max(this.notBefore, now + goaway.reconnect_after_ms);
      this.elsewhere = goaway.url === undefined ? this.elsewhere : baseOf(goaway.url);
    } else if (closing.code === DRAIN) {
      // On split transports the end may overtake what was said before it.
      this.notBefore = Math.max(this.notBefore, now + environment.random() * DRAIN_SPREAD_MS);
    } else if (link && closing.code === 1006 && now - this.openedAt < options.stableMs) {
      if (options.transports.length > 1) this.memory.broke(link.transport);
    }
    if (link) this.events.closed(closing, link.transport, returns);
    if (returns) this.wait(closing.reason);
    else this.refused(closing);
  }

  private refused({ code, reason }: Closing): void {
    this.wanted = false;
    this.unwatch();
    this.enter("stopped", reason || `closed with code ${code}`);
  }

  private lost(closing: Closing): void {
    this.race = undefined;
    this.elsewhere = undefined;
    if (!comesBack(closing)) return this.refused(closing);
    const reason = closing.reason || `closed with code ${closing.code}`;
    this.events.unreachable(new TidegateError("unreachable", reason, { temporary: true }));
    this.wait(reason);
  }

  private wait(reason: string): void {
    const { environment, options, goaway } = this;
    if (!this.wanted || this.state === "stopped") return;
    const now = environment.now();
    // A server that leaves has spread its viewers itself.
    let wait = goaway ? 0 : this.backoff.next();
    if (environment.hidden()) wait += environment.random() * options.lazyMs;
    const until = Math.max(now + wait, this.notBefore);
    this.enter("waiting", reason, until);
    this.later(until);
  }

  private later(until: number): void {
    const { environment } = this;
    environment.clearTimer(this.timer);
    this.timer = environment.setTimer(() => {
      if (environment.online()) this.dial();
      else this.timer = environment.setTimer(() => this.dial(), OFFLINE_MS);
    }, Math.max(0, until - environment.now()));
  }

  /** A page that was hidden may find a line that died meanwhile, or none. */
  private page(change: PageChange): void {
    if (change === "offline" || change === "hidden" || this.state !== "waiting") return;
    const until = Math.max(this.environment.now(), this.notBefore, this.began + HURRY_MS);
    this.enter("waiting", "", until);
    this.later(until);
  }
}
