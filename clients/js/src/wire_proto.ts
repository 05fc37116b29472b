/**
 * The protobuf messages of `proto/tidegate/v1/room.proto`, as tables. Field numbers
 * and names are the interface; a test compares them with that file.
 */

import type { ClientMessage, ServerMessage } from "./messages.js";
import { read, write, type Table } from "./protobuf.js";

const ADMISSION: Table = [
  [1, "business", "uint"],
  [2, "user", "uint"],
  [3, "share", "double", "optional"],
  [4, "ttl_ms", "uint"],
];

const SPAN: Table = [
  [1, "from", "uint"],
  [2, "to", "uint"],
];

const EVENT: Table = [
  [1, "id", "string"],
  [2, "kind", "string"],
  [3, "user", "string"],
  [4, "seq", "uint", "optional"],
  [5, "important", "uint", "optional"],
  [6, "payload", "payload"],
  [7, "key", "string", "optional"],
  [8, "amount", "int", "optional"],
  [9, "time_ms", "uint"],
];

const TOTAL: Table = [
  [1, "kind", "string"],
  [2, "key", "string"],
  [3, "sum", "int"],
  [4, "delta", "int"],
  [5, "user", "string", "optional"],
];

const ACK_ASKED: Table = [
  [1, "one_in", "uint"],
  [2, "within_ms", "uint"],
  [3, "digest_from", "uint", "optional"],
];

const RESUME: Table = [
  [1, "epoch", "uint"],
  [2, "seq", "uint"],
  [3, "important", "uint"],
];

/** What the server says, by field of `ServerMessage`. */
export const SERVER: Table = [
  [1, "welcome", [
    [1, "session", "string"],
    [2, "ping_interval_ms", "uint"],
    [3, "ack_slot", "uint"],
  ]],
  [2, "joined", [
    [1, "room", "string"],
    [2, "epoch", "uint"],
    [3, "seq", "uint"],
    [4, "important", "uint"],
    [5, "online", "uint"],
    [6, "recovered", "bool"],
    [7, "state", EVENT, "repeated"],
    [8, "totals", TOTAL, "repeated"],
    [9, "missed", SPAN],
    [10, "rebased", "bool"],
    [11, "users", "uint"],
    [12, "users_exact", "bool"],
  ]],
  [3, "frame", [
    [1, "room", "string"],
    [2, "epoch", "uint"],
    [3, "first_seq", "uint"],
    [4, "last_seq", "uint"],
    [5, "important", "uint"],
    [6, "time_ms", "uint"],
    [7, "events", EVENT, "repeated"],
    [8, "totals", TOTAL, "repeated"],
    [9, "dropped", "counts"],
    [10, "online", "uint", "optional"],
    [11, "ack", ACK_ASKED],
    [12, "withheld", "uint"],
  ]],
  [4, "gap", [
    [1, "room", "string"],
    [2, "first_seq", "uint"],
    [3, "last_seq", "uint"],
    [4, "dropped", "counts"],
  ]],
  [5, "accepted", [
    [1, "id", "string"],
    [2, "seq", "uint", "optional"],
    [3, "admission", ADMISSION],
  ]],
  [6, "rejected", [
    [1, "id", "string"],
    [2, "code", "string"],
    [3, "reason", "string"],
    [4, "retry_after_ms", "uint", "optional"],
    [5, "admission", ADMISSION],
  ]],
  [7, "error", [
    [1, "code", "string"],
    [2, "reason", "string"],
    [3, "temporary", "bool"],
    [4, "room", "string", "optional"],
    [5, "retry_after_ms", "uint", "optional"],
  ]],
  [8, "goaway", [
    [1, "reconnect_after_ms", "uint"],
    [2, "url", "string", "optional"],
  ]],
  [9, "ping", []],
  [10, "left", [[1, "room", "string"]]],
  [11, "missed", [
    [1, "room", "string"],
    [2, "from", "uint"],
    [3, "to", "uint"],
    [4, "within_ms", "uint"],
  ]],
];

/** What the client says, by field of `ClientMessage`. */
export const CLIENT: Table = [
  [1, "join", [
    [1, "room", "string"],
    [2, "token", "string"],
    [3, "resume", RESUME],
    [4, "acks", "bool"],
  ]],
  [2, "leave", [[1, "room", "string"]]],
  [3, "publish", [
    [1, "room", "string"],
    [2, "id", "string"],
    [3, "kind", "string"],
    [4, "payload", "payload"],
    [5, "key", "string", "optional"],
    [6, "amount", "int", "optional"],
  ]],
  [4, "ack", [
    [1, "room", "string"],
    [2, "important", "uint"],
  ]],
  [5, "pull", [
    [1, "room", "string"],
    [2, "from", "uint"],
    [3, "to", "uint"],
  ]],
  [6, "pong", []],
  [7, "digest", [
    [1, "room", "string"],
    [2, "from", "uint"],
    [3, "to", "uint"],
    [4, "count", "uint"],
    [5, "xor", "fixed32"],
  ]],
];

/** Writes a message. */
export function writeProto(message: ClientMessage): Uint8Array {
  return Uint8Array.from(write(CLIENT, { [message.name]: message.body }));
}

/**
 * Reads a message. One of a sort that is not known here has the name "".
 *
 * @throws RangeError as `read` does.
 */
export function readProto(bytes: Uint8Array): ServerMessage {
  const [entry] = Object.entries(read(SERVER, bytes));
  return { name: entry?.[0] ?? "", body: entry?.[1] ?? {} } as ServerMessage;
}
