/**
 * The messages of the viewer protocol, in the shape and with the names of
 * `proto/tidegate/v1/room.proto` and the JSON subprotocol. Both formats are read
 * into these, so nothing behind the wire knows which one was spoken.
 *
 * Numbers (`seq`, `important`, `epoch`, amounts) are below 2^53 by the server's
 * promise; times are Unix time in milliseconds.
 */

/** An event as the wire carries it. */
export interface WireEvent {
  id: string;
  kind: string;
  user: string;
  seq?: number;
  important?: number;
  /** A JSON value, or the bytes of what is not JSON. */
  payload: unknown;
  key?: string;
  amount?: number;
  time_ms: number;
}

/** A sum, as the wire carries it. */
export interface WireTotal {
  kind: string;
  key: string;
  sum: number;
  /** What was added since the last one; absent where a state is given. */
  delta?: number;
  user?: string;
}

/** Counts by kind. */
export type Counts = Record<string, number>;

/** First and last number. */
export interface Span {
  from: number;
  to: number;
}

/** Where a client stands in a room. */
export interface Position {
  epoch: number;
  seq: number;
  important: number;
}

export interface Joined {
  room: string;
  epoch: number;
  seq: number;
  important: number;
  online: number;
  recovered: boolean;
  state: WireEvent[];
  totals: WireTotal[];
  missed?: Span;
  rebased?: boolean;
  users?: number;
  users_exact?: boolean;
}

export interface AckAsked {
  one_in: number;
  within_ms: number;
  digest_from?: number;
}

export interface Frame {
  room: string;
  epoch: number;
  first_seq: number;
  last_seq: number;
  important: number;
  time_ms: number;
  events: WireEvent[];
  totals: WireTotal[];
  dropped?: Counts;
  online?: number;
  ack?: AckAsked;
  withheld?: number;
}

export interface WireGap {
  room: string;
  first_seq: number;
  last_seq: number;
  dropped: Counts;
}

/** What a server takes at present: the least important tier and user level admitted. */
export interface Admission {
  business: number;
  user: number;
  share?: number;
  ttl_ms: number;
}

export interface ServerError {
  code: string;
  reason: string;
  temporary: boolean;
  room?: string;
  retry_after_ms?: number;
}

/** Everything a server says, by name. */
export interface ServerMessages {
  welcome: { session: string; ping_interval_ms: number; ack_slot: number };
  joined: Joined;
  frame: Frame;
  gap: WireGap;
  accepted: { id: string; seq?: number; admission?: Admission };
  rejected: { id: string; code: string; reason: string; retry_after_ms?: number; admission?: Admission };
  error: ServerError;
  goaway: { reconnect_after_ms: number; url?: string };
  ping: Record<string, never>;
  left: { room: string };
  missed: Span & { room: string; within_ms: number };
}

export interface PublishMessage {
  room: string;
  id: string;
  kind: string;
  payload: unknown;
  key?: string;
  amount?: number;
}

/** Everything a client says, by name. */
export interface ClientMessages {
  join: { room: string; token: string; resume?: Position; acks: boolean };
  leave: { room: string };
  publish: PublishMessage;
  ack: { room: string; important: number };
  pull: Span & { room: string };
  digest: Span & { room: string; count: number; xor: number };
  pong: Record<string, never>;
}

type Named<M> = { [K in keyof M]: { name: K; body: M[K] } }[keyof M];

/** A message of the server, taken apart. */
export type ServerMessage = Named<ServerMessages>;
/** A message of the client, to be put together. */
export type ClientMessage = Named<ClientMessages>;

/** Which stream a message came on: nothing orders one against another. */
export type Lane = "control" | "important" | "datagram";
