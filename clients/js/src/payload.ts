/**
 * What a payload is to the page: one rule for both formats. The server holds bytes.
 * Bytes that are JSON are the value they say, no bytes are `null`, and anything else
 * stays a `Uint8Array`.
 */

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** The payload that these bytes are. They are copied where they stay bytes. */
export function payloadOf(bytes: Uint8Array): unknown {
  if (bytes.length === 0) return null;
  try {
    return JSON.parse(utf8.decode(bytes));
  } catch {
    return bytes.slice();
  }
}

/** Bytes of a payload to be published; `undefined` is `null`. */
export function bytesOf(payload: unknown): Uint8Array {
  if (payload instanceof Uint8Array) return payload;
  return encoder.encode(JSON.stringify(payload ?? null));
}

export function fromBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export function toBase64(bytes: Uint8Array): string {
  let text = "";
  // Not by spreading all of it: arguments are limited in number.
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
