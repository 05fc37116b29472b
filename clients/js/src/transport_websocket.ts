/**
 * Over a WebSocket with the JSON subprotocol: browsers parse JSON faster than any
 * script parses protobuf, and permessage-deflate evens out the size.
 */

import { readJson, writeJson } from "./wire_json.js";
import { broken, type Address, type Dial, type Link, type LinkEvents } from "./transport.js";
import type { ServerMessage } from "./messages.js";

/** A client may close with 1000 or a code of its own range (RFC 6455, 7.4.2). */
const BAD_MESSAGE = 4002;

/** What is needed of a WebSocket: the browser's, or another one with the same face. */
export interface Socket {
  readonly readyState: number;
  onmessage: ((message: { data: unknown }) => void) | null;
  onclose: ((closing: { code: number; reason: string }) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

/** `WebSocket.OPEN`. */
const OPEN = 1;

/**
 * Connects by sockets that `make` makes: where there is no global `WebSocket`, or where
 * a page wants to decide how fast it reads.
 */
export function webSocketDial(make: (url: string, protocol: string) => Socket): Dial {
  return (address, events) => dial(make, address, events);
}

export const dialWebSocket = webSocketDial((url, protocol) => new WebSocket(url, protocol) as Socket);

function dial(make: (url: string, protocol: string) => Socket, address: Address, events: LinkEvents): Link {
  let socket: Socket | undefined;
  let ended = false;
  const end = (closing: Parameters<LinkEvents["closed"]>[0]): void => {
    if (ended) return;
    ended = true;
    events.closed(closing);
  };
  const receive = (data: unknown): void => {
    let message: ServerMessage;
    try {
      if (typeof data !== "string") throw new TypeError("binary where text was agreed on");
      message = readJson(data);
    } catch (failure) {
      socket?.close(BAD_MESSAGE);
      end({ code: BAD_MESSAGE, reason: broken(failure).reason });
      return;
    }
    events.message(message, "control", (data as string).length);
  };
  try {
    socket = make(`${address.base.replace(/^http/, "ws")}/v1/ws`, "tidegate.v1.json");
    socket.onmessage = ({ data }) => {
      if (!ended) receive(data);
    };
    socket.onclose = ({ code, reason }) => end({ code, reason });
  } catch (failure) {
    // A malformed address; told later, as every other failure is.
    queueMicrotask(() => end(broken(failure)));
  }
  return {
    transport: "websocket",
    split: false,
    send(message) {
      if (ended || socket?.readyState !== OPEN) return false;
      socket.send(writeJson(message));
      return true;
    },
    close(code = 1000, reason = "") {
      ended = true;
      socket?.close(code, reason);
    },
  };
}
