/** Failures, with the codes by which programs tell them apart. */

/**
 * Codes that this library gives itself. All others are the server's: `token_expired`,
 * `forbidden_room`, `overloaded`, …
 *
 * - `closed`: the client was closed; `left`: the room was left
 * - `refused`: the server closed with a code that says not to come back
 * - `timeout`: no answer in time; it may have been accepted
 * - `queue_full`: more is waiting to be published than is kept
 * - `token_unavailable`: the function that brings tokens failed; it is tried again
 * - `bad_server_message`: what came is not the protocol's; a new connection is made
 * - `unreachable`: no transport got through; it is tried again
 */
export type LocalCode =
  | "closed"
  | "left"
  | "refused"
  | "timeout"
  | "queue_full"
  | "token_unavailable"
  | "bad_server_message"
  | "unreachable";

export interface ErrorDetail {
  /** Another try may succeed. */
  temporary?: boolean | undefined;
  /** It ended the room, or the client where no room is named. */
  fatal?: boolean | undefined;
  /** The room it is about. */
  room?: string | undefined;
  /** When another try may succeed. */
  retryAfterMs?: number | undefined;
}

/** A failure with a code for programs and a reason for people. */
export class TidegateError extends Error {
  override readonly name: string = "TidegateError";
  readonly temporary: boolean;
  readonly fatal: boolean;
  readonly room: string | undefined;
  readonly retryAfterMs: number | undefined;

  constructor(
    readonly code: LocalCode | (string & {}),
    readonly reason: string,
    detail: ErrorDetail = {},
  ) {
    super(`${code}: ${reason}`);
    this.temporary = detail.temporary ?? false;
    this.fatal = detail.fatal ?? false;
    this.room = detail.room;
    this.retryAfterMs = detail.retryAfterMs;
  }
}

/** A published event that was not accepted. */
export class Rejected extends TidegateError {
  override readonly name = "Rejected";

  constructor(
    code: LocalCode | (string & {}),
    reason: string,
    /** The event's. */
    readonly id: string,
    detail: ErrorDetail = {},
  ) {
    super(code, reason, detail);
  }
}
