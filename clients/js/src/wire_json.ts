/** The JSON subprotocol, `tidegate.v1.json`: one object with one field, its name. */

import type { ClientMessage, ServerMessage, WireEvent } from "./messages.js";
import { fromBase64, payloadOf, toBase64 } from "./payload.js";

interface JsonEvent extends WireEvent {
  encoding?: string;
}

/** Writes a message. */
export function writeJson(message: ClientMessage): string {
  let body: object = message.body;
  if (message.name === "publish") {
    const { payload } = message.body;
    body =
      payload instanceof Uint8Array
        ? { ...message.body, payload: toBase64(payload), encoding: "base64" }
        : { ...message.body, payload: payload ?? null };
  }
  return JSON.stringify({ [message.name]: body });
}

/**
 * Reads a message.
 *
 * @throws SyntaxError for what is not one.
 */
export function readJson(text: string): ServerMessage {
  const value: unknown = JSON.parse(text);
  const [name, ...more] = value !== null && typeof value === "object" ? Object.keys(value) : [];
  if (name === undefined || more.length > 0) throw new SyntaxError("a message has exactly one field");
  const message = { name, body: (value as Record<string, unknown>)[name] } as ServerMessage;
  if (message.name === "frame") message.body.events?.forEach(unwrap);
  if (message.name === "joined") message.body.state?.forEach(unwrap);
  return message;
}

function unwrap(event: JsonEvent): void {
  if (event.encoding !== "base64") return;
  event.payload = payloadOf(fromBase64(String(event.payload)));
  delete event.encoding;
}
