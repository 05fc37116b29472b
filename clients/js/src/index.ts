/** Live rooms of a Tidegate server in a page. See README.md. */

export { connect, Client } from "./client.js";
export type { ClientEvents, Options, Stats } from "./client.js";
export { Rejected, TidegateError } from "./errors.js";
export type { ErrorDetail, LocalCode } from "./errors.js";
export type { Environment, PageChange } from "./environment.js";
export type { State } from "./connection.js";
export type { Admission, Counts, Lane, ServerMessage, ServerMessages } from "./messages.js";
export type { GapCause } from "./numbers.js";
export type { OutboxOptions, Published } from "./outbox.js";
export type { Gap, Missed, Room, RoomEvent, RoomFrame, RoomHandlers, RoomPhase, RoomState, Total, Withheld } from "./room.js";
export type { Address, Closing, Dial, Link, LinkEvents, TransportName } from "./transport.js";
export { webSocketDial } from "./transport_websocket.js";
export type { Socket } from "./transport_websocket.js";
