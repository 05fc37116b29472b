// WebTransport as a page uses it without the library: who may connect, what comes on
// which stream, and what each side hears of the other's close.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, afterEach, before, describe, test } from "node:test";
import { openBrowser, Server } from "./harness.mjs";

// Half-open sessions are waited for.
process.env.TIDEGATE__QUIC__HANDSHAKE_TIMEOUT_MS = "2000";

let server;
let elsewhere;
let browser;
let context;

before(async () => {
  server = await Server.create();
  elsewhere = createServer((_, answer) => answer.end("a page"));
  elsewhere.listen(0, "127.0.0.1");
  await once(elsewhere, "listening");
  browser = await openBrowser({ quic: true });
});

afterEach(() => context?.close());

after(async () => {
  await browser?.close();
  elsewhere?.close();
  await server?.remove();
});

/** What runs in the page: a session, and everything that it hears. */
function client() {
  window.dial = async (url, sha256) => {
    const value = Uint8Array.from(atob(sha256), (letter) => letter.charCodeAt(0));
    const serverCertificateHashes = [{ algorithm: "sha-256", value }];
    const transport = new WebTransport(url, { serverCertificateHashes });
    window.heard = { control: [], important: [], datagrams: 0, streams: 0, closed: null };
    window.transport = transport;
    transport.closed.then(
      ({ closeCode, reason }) => (heard.closed = { closeCode, reason }),
      (error) => (heard.closed = { error: String(error) }),
    );
    await transport.ready;
  };

  /** A variable-length integer (RFC 9000, section 16) below 2^14. */
  const length = (value) => (value < 64 ? [value] : [0x40 | (value >> 8), value & 0xff]);
  /** A protobuf field of bytes, shorter than 2^14. */
  const field = (number, bytes) => {
    const size = bytes.length < 128 ? [bytes.length] : [(bytes.length & 127) | 128, bytes.length >> 7];
    return [(number << 3) | 2, ...size, ...bytes];
  };

  /** The number of the only field of each message of a stream. */
  async function* messages(readable) {
    let held = new Uint8Array();
    for await (const chunk of readable) {
      held = Uint8Array.of(...held, ...chunk);
      for (;;) {
        if (held.length === 0) break;
        const size = 1 << (held[0] >> 6);
        if (held.length < size) break;
        const prefix = held.slice(1, size).reduce((sum, byte) => sum * 256 + byte, held[0] & 63);
        if (held.length < size + prefix) break;
        yield held[size] >> 3;
        held = held.slice(size + prefix);
      }
    }
  }

  window.join = async () => {
    const { room, viewer_token } = await (await fetch("/demo/session")).json();
    const text = (words) => new TextEncoder().encode(words);
    const message = field(1, [...field(1, text(room)), ...field(2, text(viewer_token))]);
    const { readable, writable } = await transport.createBidirectionalStream();
    window.control = writable.getWriter();
    await control.write(Uint8Array.of(...length(message.length), ...message));
    const listen = async (readable, names) => {
      for await (const name of messages(readable)) names.push(name);
    };
    listen(readable, heard.control).catch(() => {});
    (async () => {
      for await (const stream of transport.incomingUnidirectionalStreams) {
        heard.streams += 1;
        await listen(stream, heard.important);
      }
    })().catch(() => {});
    (async () => {
      for await (const _ of transport.datagrams.readable) heard.datagrams += 1;
    })().catch(() => {});
  };
}

/** A page of the server, or of another. */
async function open(origin = server.url) {
  context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(origin);
  await page.evaluate(client);
  return page;
}

/** Opens a session in the page; says how that ended. */
async function dial(page, path = "/v1/wt") {
  const { sha256 } = await (await fetch(`${server.url}/demo/certificate`)).json();
  const url = `https://127.0.0.1:${server.port}${path}`;
  return page.evaluate(([url, sha256]) => dial(url, sha256).then(() => "open", String), [url, sha256]);
}

const heard = (page, holds, argument) => page.waitForFunction(holds, argument, { timeout: 20_000, polling: 50 });

async function metric(name) {
  const text = await (await fetch(`http://127.0.0.1:${server.adminPort}/metrics`)).text();
  const line = text.split("\n").find((line) => line.startsWith(`${name} `));
  assert.ok(line, `no metric ${name}`);
  return Number(line.split(" ").at(-1));
}

const sessions = (result) => metric(`tidegate_webtransport_sessions_total{result="${result}"}`);

/** Shards tell their counters now and then. */
async function becomes(read, expected) {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const value = await read();
    if (value === expected) return;
    assert.ok(Date.now() < deadline, `${value} instead of ${expected}`);
    await new Promise((done) => setTimeout(done, 100));
  }
}

/** A number that has been the same for two of its seconds. */
async function settled(read) {
  let [value, since] = [await read(), Date.now()];
  while (Date.now() - since < 2_000) {
    await new Promise((done) => setTimeout(done, 100));
    const now = await read();
    if (now !== value) [value, since] = [now, Date.now()];
  }
  return value;
}

async function publish(kind, payload) {
  const session = await (await fetch(`${server.url}/demo/session`)).json();
  const answer = await fetch(`${server.url}/v1/rooms/${session.room}/events`, {
    method: "POST",
    headers: { authorization: `Bearer ${session.publisher_token}`, "content-type": "application/json" },
    body: JSON.stringify({ events: [{ id: crypto.randomUUID(), user: "tester", kind, payload }] }),
  });
  const { results } = await answer.json();
  assert.equal(results[0].status, "accepted", JSON.stringify(results));
}

describe("WebTransport, without the library", () => {
  test("pages from elsewhere and other paths are refused", async () => {
    const foreign = await open(`http://127.0.0.1:${elsewhere.address().port}`);
    assert.match(await dial(foreign), /handshake failed/);
    await becomes(() => sessions("foreign_origin"), 1);
    await context.close();
    const page = await open();
    assert.match(await dial(page, "/v1/ws"), /handshake failed/);
    await becomes(() => sessions("bad_handshake"), 1);
    // The page has a session of its own.
    const before = await settled(() => sessions("accepted"));
    assert.equal(await dial(page), "open");
    await becomes(() => sessions("accepted"), before + 1);
  });

  test("every lane comes on its own stream", async () => {
    const page = await open();
    assert.equal(await dial(page), "open");
    await page.evaluate(() => join());
    // welcome, then joined.
    await heard(page, () => window.heard.control.slice(0, 2).join() === "1,2");
    await publish("red_packet", { title: "raw", amount: "1.00", seconds: 3 });
    await publish("chat", "raw");
    // Frames.
    await heard(page, () => window.heard.important.length > 0 && window.heard.control.includes(3));
    await heard(page, () => window.heard.datagrams > 0);
    const { streams, important } = await page.evaluate(() => window.heard);
    assert.equal(streams, 1, "one stream of important events");
    assert.deepEqual([...new Set(important)], [3]);
  });

  test("a page that closes, or says that it has nothing more to say, is gone", async () => {
    const page = await open();
    for (const leave of ["transport.close({ closeCode: 4, reason: 'done' })", "control.close()"]) {
      // Pages of which nothing more was heard are still there, for a while.
      const before = await settled(() => metric("tidegate_viewers"));
      assert.equal(await dial(page), "open");
      await page.evaluate(() => join());
      await heard(page, () => window.heard.control.includes(2));
      await becomes(() => metric("tidegate_viewers"), before + 1);
      await page.evaluate(leave);
      await becomes(() => metric("tidegate_viewers"), before);
      await heard(page, () => window.heard.closed);
    }
    assert.deepEqual(await page.evaluate(() => window.heard.closed), { closeCode: 1000, reason: "peer" });
  });

  test("a session without a control stream is closed with a code", async () => {
    const page = await open();
    assert.equal(await dial(page), "open");
    await heard(page, () => window.heard.closed);
    const closed = await page.evaluate(() => window.heard.closed);
    assert.deepEqual(closed, { closeCode: 3003, reason: "message_timeout" });
  });

  test("a server that leaves says so", async () => {
    const page = await open();
    assert.equal(await dial(page), "open");
    await page.evaluate(() => join());
    await heard(page, () => window.heard.control.includes(2));
    await server.stop("SIGTERM");
    await heard(page, () => window.heard.closed);
    const { closed, control } = await page.evaluate(() => window.heard);
    assert.deepEqual(closed, { closeCode: 3000, reason: "drain" });
    assert.ok(control.includes(8), "goaway comes before");
  });
});
