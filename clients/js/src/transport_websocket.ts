/**
 * Over a WebSocket with the JSON subprotocol: browsers parse JSON faster than any
 * script parses protobuf, and permessage-deflate evens out the size.
 */

import { readJson, writeJson } from "./wire_json.js";
import { broken, type Address, type Link, type LinkEvents } from "./transport.js";
import type { ServerMessage } from "./messages.js";

/** A client may close with 1000 or a code of its own range (RFC 6455, 7.4.2). */
const BAD_MESSAGE = 4002;

export function dialWebSocket(address: Address, events: LinkEvents): Link {
  let socket: WebSocket | undefined;
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
    socket = new WebSocket(`${address.base.replace(/^http/, "ws")}/v1/ws`, "tidegate.v1.json");
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
      if (ended || socket?.readyState !== WebSocket.OPEN) return false;
      socket.send(writeJson(message));
      return true;
    },
    close(code = 1000, reason = "") {
      ended = true;
      socket?.close(code, reason);
    },
  };
}
