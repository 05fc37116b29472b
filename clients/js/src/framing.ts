/**
 * Messages on a stream of bytes: the length as a QUIC variable-length integer
 * (RFC 9000, section 16), then that many bytes.
 */

/**
 * Longest message taken, in bytes. Frames are cut at `rooms.frame_bytes` (128 KiB by
 * default) and a room's state is bounded too; beyond this the stream is out of step.
 */
export const MOST_BYTES = 16 * 1024 * 1024;

/** A message with its length before it. */
export function framed(message: Uint8Array): Uint8Array {
  const { length } = message;
  const bytes = length < 64 ? 1 : length < 16_384 ? 2 : 4;
  const out = new Uint8Array(bytes + length);
  const view = new DataView(out.buffer);
  if (bytes === 1) out[0] = length;
  else if (bytes === 2) view.setUint16(0, length | 0x4000);
  else view.setUint32(0, (length | 0x8000_0000) >>> 0);
  out.set(message, bytes);
  return out;
}

/** Cuts a stream, in whatever chunks it comes, into messages. */
export class Deframer {
  private chunks: Uint8Array[] = [];
  private held = 0;

  /**
   * Adds a chunk and returns the messages that it completes.
   *
   * @throws RangeError for a message that is too long; the stream is lost then.
   */
  push(chunk: Uint8Array): Uint8Array[] {
    const messages: Uint8Array[] = [];
    this.chunks.push(chunk);
    this.held += chunk.length;
    for (;;) {
      const length = this.length();
      if (length === undefined || this.held < length.header + length.body) return messages;
      this.take(length.header);
      messages.push(this.take(length.body));
    }
  }

  private length(): { header: number; body: number } | undefined {
    if (this.held === 0) return undefined;
    const first = this.peek(0);
    const header = 1 << (first >> 6);
    if (this.held < header) return undefined;
    let body = first & 63;
    for (let i = 1; i < header; i += 1) body = body * 256 + this.peek(i);
    if (body > MOST_BYTES) throw new RangeError(`a message of ${body} bytes`);
    return { header, body };
  }

  private peek(index: number): number {
    let at = index;
    for (const chunk of this.chunks) {
      if (at < chunk.length) return chunk[at]!;
      at -= chunk.length;
    }
    return 0;
  }

  /** The next `count` bytes, which are there. */
  private take(count: number): Uint8Array {
    const out = new Uint8Array(count);
    let filled = 0;
    while (filled < count) {
      const chunk = this.chunks[0]!;
      const part = chunk.subarray(0, count - filled);
      out.set(part, filled);
      filled += part.length;
      if (part.length === chunk.length) this.chunks.shift();
      else this.chunks[0] = chunk.subarray(part.length);
    }
    this.held -= count;
    return out;
  }
}
