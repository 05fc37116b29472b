/** What a transport is to everything above it. */

import type { ClientMessage, Lane, ServerMessage } from "./messages.js";

export type TransportName = "websocket" | "webtransport";

/** Where to go. */
export interface Address {
  /** `http://…` or `https://…`, without a slash at its end. */
  base: string;
  /** Address for WebTransport, if it is another one. */
  webtransport?: string | undefined;
  /** SHA-256 hashes of certificates to trust for WebTransport (development). */
  hashes?: (() => Promise<readonly BufferSource[]>) | undefined;
}

/** Why a link ended. `code` is 1006 where the other side said nothing. */
export interface Closing {
  code: number;
  reason: string;
}

/** Told by a link, in this order: messages, then `closed` once and nothing more. */
export interface LinkEvents {
  /** `size` is what it took on the wire before compression, in bytes or characters. */
  message(message: ServerMessage, lane: Lane, size: number): void;
  closed(closing: Closing): void;
}

/** A connection to the server that is being made, or is there. */
export interface Link {
  readonly transport: TransportName;
  /** Several streams and datagrams: nothing orders one against another. */
  readonly split: boolean;
  /** Returns whether it was taken; a link that is not open takes nothing. */
  send(message: ClientMessage): boolean;
  /** Ends it. `closed` is not told of an end that we made. */
  close(code?: number, reason?: string): void;
}

/**
 * Begins to connect. Never throws, and tells nothing before it has returned: failing is
 * telling `closed`.
 */
export type Dial = (address: Address, events: LinkEvents) => Link;

/** The closing of a link that never was, or broke. */
export function broken(failure: unknown): Closing {
  const text = failure instanceof Error ? failure.message : String(failure ?? "");
  return { code: 1006, reason: text };
}

/** The address in the form that `Address` wants. WebSocket schemes are taken too. */
export function baseOf(url: string): string {
  return url.replace(/^ws/, "http").replace(/\/+$/, "");
}
