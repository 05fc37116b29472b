/**
 * What is being published: sent in order, not faster than the server listens, and sent
 * again with the same id when a connection broke before the answer. The server knows
 * ids of the last day, so what it had accepted already it accepts again, once.
 */

import type { Environment } from "./environment.js";
import { Rejected } from "./errors.js";
import type { Admission, ClientMessage, PublishMessage, ServerMessages } from "./messages.js";

/** What a published event got. */
export interface Published {
  /** Its number, where it has one: sampled events have none. */
  seq: number | undefined;
  id: string;
  /** What else the server would take at the moment; `undefined`: everything. */
  admission: Admission | undefined;
}

export interface OutboxOptions {
  /** Most events that wait for an answer. */
  most: number;
  /** How long an answer is waited for, breaks included, in milliseconds. */
  timeoutMs: number;
  /** Events sent per second, and at once. The server's default is 20 and 40 messages. */
  perSecond: number;
  burst: number;
}

interface Item {
  body: PublishMessage;
  /** When it was sent on this connection, and whether on another one before. */
  sentAt: number | undefined;
  again: boolean;
  resolve(published: Published): void;
  reject(failure: Rejected): void;
  timer: unknown;
}

export class Outbox {
  private readonly items = new Map<string, Item>();
  private readonly open = new Set<string>();
  private tokens: number;
  private refilledAt: number;
  private pace: unknown;
  private pacing = false;

  constructor(
    private readonly environment: Environment,
    private readonly options: OutboxOptions,
    private readonly send: (message: ClientMessage) => boolean,
    private readonly answered: (ms: number) => void,
  ) {
    this.tokens = options.burst;
    this.refilledAt = environment.now();
  }

  /** Takes an event; what it got is told when the server has answered. */
  add(body: PublishMessage): Promise<Published> {
    return new Promise((resolve, reject) => {
      const refuse = (code: "queue_full" | "timeout", reason: string): void => {
        const detail = { temporary: true, room: body.room };
        reject(new Rejected(code, reason, body.id, detail));
      };
      if (this.items.size >= this.options.most) {
        return refuse("queue_full", `${this.items.size} events wait for an answer`);
      }
      const timer = this.environment.setTimer(() => {
        this.items.delete(body.id);
        refuse("timeout", "no answer in time; it may have been accepted");
      }, this.options.timeoutMs);
      this.items.set(body.id, { body, sentAt: undefined, again: false, resolve, reject, timer });
      this.flush();
    });
  }

  /** The room is joined: what waits for it is sent. */
  opened(room: string): void {
    this.open.add(room);
    this.flush();
  }

  /** The connection is gone, and every answer with it. */
  broken(): void {
    this.open.clear();
    for (const item of this.items.values()) {
      item.again ||= item.sentAt !== undefined;
      item.sentAt = undefined;
    }
  }

  /** The room was left, or cannot be joined. */
  dropped(room: string, code: string, reason: string): void {
    this.open.delete(room);
    for (const { body } of [...this.items.values()]) {
      if (body.room !== room) continue;
      this.settle(body.id)?.reject(new Rejected(code, reason, body.id, { room }));
    }
  }

  accepted({ id, seq, admission }: ServerMessages["accepted"]): void {
    const item = this.settle(id);
    if (item === undefined) return;
    if (item.sentAt !== undefined && !item.again) this.answered(this.environment.now() - item.sentAt);
    item.resolve({ id, seq, admission });
  }

  rejected({ id, code, reason, retry_after_ms: retryAfterMs }: ServerMessages["rejected"]): void {
    // The server leaves and has not looked at it: the next one is asked.
    if (code === "draining" && this.items.has(id)) return;
    const item = this.settle(id);
    const detail = { temporary: retryAfterMs !== undefined, retryAfterMs, room: item?.body.room };
    item?.reject(new Rejected(code, reason, id, detail));
  }

  private settle(id: string): Item | undefined {
    const item = this.items.get(id);
    if (item !== undefined) this.environment.clearTimer(item.timer);
    this.items.delete(id);
    return item;
  }

  private flush(): void {
    if (this.pacing) return;
    for (const item of this.items.values()) {
      if (item.sentAt !== undefined || !this.open.has(item.body.room)) continue;
      if (!this.allowed()) {
        this.pacing = true;
        this.pace = this.environment.setTimer(() => {
          this.pacing = false;
          this.flush();
        }, 1_000 / this.options.perSecond);
        return;
      }
      if (!this.send({ name: "publish", body: item.body })) return;
      item.sentAt = this.environment.now();
    }
  }

  private allowed(): boolean {
    const now = this.environment.now();
    const refill = ((now - this.refilledAt) / 1_000) * this.options.perSecond;
    this.tokens = Math.min(this.options.burst, this.tokens + refill);
    this.refilledAt = now;
    if (this.tokens < 1) return false;
    this.tokens -= 1;
    return true;
  }

  /** Nothing more is sent. */
  close(): void {
    this.environment.clearTimer(this.pace);
    this.pacing = true;
  }
}
