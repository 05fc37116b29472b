/**
 * Over WebTransport: the client's one bidirectional stream is the control stream, the
 * server's unidirectional stream carries important events, datagrams what may be lost.
 * Messages are protobuf, behind their length on the streams and alone in a datagram.
 *
 * The first message goes out at once: a stream exists for the server only when bytes
 * have come on it, and `welcome` is its answer. So the link says `pong`, which means
 * nothing, and who joins need not be decided before the race between transports is.
 */

import { Deframer, framed } from "./framing.js";
import type { ClientMessage, Lane, ServerMessage } from "./messages.js";
import { broken, type Address, type Closing, type Link, type LinkEvents } from "./transport.js";
import { readProto, writeProto } from "./wire_proto.js";

const BAD_MESSAGE = 4002;

/** Hands every chunk to `take` until the stream ends. */
async function drain<T>(stream: ReadableStream<T>, take: (chunk: T) => void): Promise<void> {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    take(value);
  }
}

class WebTransportLink implements Link {
  readonly transport = "webtransport";
  readonly split = true;
  private session: WebTransport | undefined;
  private writer: WritableStreamDefaultWriter<Uint8Array> | undefined;
  private ended = false;

  constructor(private readonly events: LinkEvents) {}

  async open(address: Address): Promise<void> {
    const hashes = address.hashes === undefined ? [] : await address.hashes();
    if (this.ended) return;
    const url = address.webtransport ?? `${address.base.replace(/^http:/, "https:")}/v1/wt`;
    const session = new WebTransport(
      url,
      hashes.length > 0
        ? { serverCertificateHashes: hashes.map((value) => ({ algorithm: "sha-256", value })) }
        : {},
    );
    this.session = session;
    session.closed.then(
      ({ closeCode, reason }) => this.end({ code: closeCode || 1000, reason: reason ?? "" }),
      (failure: unknown) => this.end(broken(failure)),
    );
    await session.ready;
    if (this.ended) return;
    const control = (await session.createBidirectionalStream()) as WebTransportBidirectionalStream;
    if (this.ended) return;
    this.writer = control.writable.getWriter();
    this.send({ name: "pong", body: {} });
    this.follow(this.stream(control.readable, "control"));
    this.follow(
      drain<ReadableStream<Uint8Array>>(session.incomingUnidirectionalStreams, (stream) =>
        this.follow(this.stream(stream, "important")),
      ),
    );
    this.follow(
      drain<Uint8Array>(session.datagrams.readable, (bytes) => this.take(bytes, "datagram")),
    );
  }

  send(message: ClientMessage): boolean {
    if (this.ended || this.writer === undefined) return false;
    // What the stream does not take at once waits in it: clients say little.
    this.writer.write(framed(writeProto(message))).catch((failure: unknown) => this.fail(failure));
    return true;
  }

  close(code = 1000, reason = ""): void {
    this.ended = true;
    // A session that is not ready may be closed too; one that failed rejects.
    try {
      this.session?.close({ closeCode: code, reason });
    } catch {
      // It is over already.
    }
  }

  private async stream(readable: ReadableStream<Uint8Array>, lane: Lane): Promise<void> {
    const deframer = new Deframer();
    await drain(readable, (chunk) => {
      for (const message of deframer.push(chunk)) this.take(message, lane);
    });
  }

  private take(bytes: Uint8Array, lane: Lane): void {
    if (this.ended) return;
    let message: ServerMessage;
    try {
      message = readProto(bytes);
    } catch (failure) {
      // A datagram stands alone; a stream that is out of step is lost.
      if (lane !== "datagram") this.bad(failure);
      return;
    }
    this.events.message(message, lane, bytes.length);
  }

  /** A stream that breaks takes the session with it. */
  private follow(work: Promise<void>): void {
    work.catch((failure: unknown) => {
      if (failure instanceof RangeError) this.bad(failure);
      else this.fail(failure);
    });
  }

  private bad(failure: unknown): void {
    const { ended } = this;
    this.close(BAD_MESSAGE);
    if (!ended) this.events.closed({ code: BAD_MESSAGE, reason: broken(failure).reason });
  }

  /** The session's own word on why it ended comes first, if it comes. */
  private fail(failure: unknown): void {
    const { session } = this;
    if (this.ended || session === undefined) return this.end(broken(failure));
    session.closed.catch(() => undefined).finally(() => this.end(broken(failure)));
    try {
      session.close();
    } catch {
      // It is over already, and `closed` says how.
    }
  }

  end(closing: Closing): void {
    if (this.ended) return;
    this.ended = true;
    this.events.closed(closing);
  }
}

export function dialWebTransport(address: Address, events: LinkEvents): Link {
  const link = new WebTransportLink(events);
  link.open(address).catch((failure: unknown) => link.end(broken(failure)));
  return link;
}
