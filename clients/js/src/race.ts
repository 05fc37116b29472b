/**
 * Which transport: WebTransport first, WebSocket a moment later or as soon as the first
 * has failed, and whoever brings `welcome` first wins (the order of things in RFC 8305,
 * "Happy Eyeballs", between transports instead of addresses). A transport that connects
 * and then says nothing, as behind a middlebox that lets a handshake pass, does not win.
 *
 * The winner is remembered for a while and tried first next time, so that a network
 * without UDP costs its head start once. When everything fails nothing is learned: it
 * was the server, or the network as a whole.
 */

import type { Environment } from "./environment.js";
import type { Lane, ServerMessage } from "./messages.js";
import type { Address, Closing, Link, TransportName } from "./transport.js";

const KEY = "tidegate.transport";
/** How long the winner is remembered, in milliseconds. */
const REMEMBERED_MS = 600_000;
/** How long the other one is preferred after a link that broke at once. */
const AVOIDED_MS = 60_000;

export interface RaceOptions {
  /** What the first gets before the next begins, in milliseconds. */
  headStartMs: number;
  /** All together get this long to bring `welcome`, in milliseconds. */
  timeoutMs: number;
}

/** What comes of a race: `won` and then what the winner tells, or `lost`. */
export interface RaceEvents {
  won(link: Link, welcome: ServerMessage & { name: "welcome" }, size: number): void;
  message(message: ServerMessage, lane: Lane, size: number): void;
  closed(closing: Closing): void;
  /** Nobody came through; `closing` is how the last one ended. */
  lost(closing: Closing): void;
  /** This one failed, or was late. */
  failed(transport: TransportName, closing: Closing): void;
}

/** The transport that worked last, for a while. */
export class TransportMemory {
  private text: string | null = null;

  constructor(private readonly environment: Environment) {}

  /** These, with the one that is preferred in front. */
  order(names: readonly TransportName[]): TransportName[] {
    const [name, until] = (this.read() ?? "").split(" ");
    const known = names.find((one) => one === name);
    if (known === undefined || !(Number(until) > this.environment.now())) return [...names];
    return [known, ...names.filter((one) => one !== known)];
  }

  won(name: TransportName): void {
    this.prefer(name, REMEMBERED_MS);
  }

  /** It got through, and broke before it was of use. */
  broke(name: TransportName): void {
    this.prefer(name === "websocket" ? "webtransport" : "websocket", AVOIDED_MS);
  }

  private prefer(name: TransportName, ms: number): void {
    this.write(`${name} ${Math.round(this.environment.now() + ms)}`);
  }

  /** Storage that is full, or forbidden, throws. */
  private read(): string | null {
    try {
      return this.environment.memory?.getItem(KEY) ?? this.text;
    } catch {
      return this.text;
    }
  }

  private write(text: string): void {
    this.text = text;
    try {
      this.environment.memory?.setItem(KEY, text);
    } catch {
      // It is remembered as long as the page lives.
    }
  }
}

/** One try to connect. */
export class Race {
  private readonly links = new Map<TransportName, Link>();
  private waiting: TransportName[];
  private winner: Link | undefined;
  private over = false;
  private head: unknown;
  private readonly patience: unknown;
  private last: Closing = { code: 1006, reason: "no transport can be used here" };

  constructor(
    private readonly environment: Environment,
    private readonly options: RaceOptions,
    private readonly address: Address,
    order: readonly TransportName[],
    private readonly events: RaceEvents,
  ) {
    this.waiting = order.filter((name) => environment.dials[name] !== undefined);
    this.patience = environment.setTimer(() => this.late(), options.timeoutMs);
    this.next();
  }

  /** Ends it without another word, winner or not. */
  stop(code?: number, reason?: string): void {
    this.finish();
    this.winner?.close(code, reason);
  }

  private next(): void {
    this.environment.clearTimer(this.head);
    const name = this.waiting.shift();
    const dial = name && this.environment.dials[name];
    if (name === undefined || dial === undefined) {
      // Told later, as every other failure is: whoever began this is not ready yet.
      if (this.links.size === 0) this.head = this.environment.setTimer(() => this.lose(), 0);
      return;
    }
    const link: Link = dial(this.address, {
      message: (message, lane, size) => this.heard(link, message, lane, size),
      closed: (closing) => this.ended(link, closing),
    });
    this.links.set(name, link);
    if (this.waiting.length > 0) {
      this.head = this.environment.setTimer(() => this.next(), this.options.headStartMs);
    }
  }

  private heard(link: Link, message: ServerMessage, lane: Lane, size: number): void {
    if (this.winner === link) return this.events.message(message, lane, size);
    if (this.over || message.name !== "welcome") return;
    this.winner = link;
    this.links.delete(link.transport);
    for (const name of this.links.keys()) this.events.failed(name, { code: 1006, reason: "late" });
    this.finish();
    this.events.won(link, message, size);
  }

  private ended(link: Link, closing: Closing): void {
    if (this.winner === link) {
      this.winner = undefined;
      this.events.closed(closing);
    } else if (!this.over && this.links.delete(link.transport)) {
      this.last = closing;
      this.events.failed(link.transport, closing);
      // Who waits for its turn need not wait any longer.
      if (this.waiting.length > 0) this.next();
      else if (this.links.size === 0) this.lose();
    }
  }

  private late(): void {
    this.last = { code: 1006, reason: "no welcome in time" };
    for (const name of this.links.keys()) this.events.failed(name, this.last);
    this.lose();
  }

  private lose(): void {
    if (this.over) return;
    this.finish();
    this.events.lost(this.last);
  }

  /** Nobody else can win. */
  private finish(): void {
    this.over = true;
    this.environment.clearTimer(this.head);
    this.environment.clearTimer(this.patience);
    this.waiting = [];
    for (const link of this.links.values()) link.close();
    this.links.clear();
  }
}
