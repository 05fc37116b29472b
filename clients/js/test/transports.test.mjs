// The two transports against a WebSocket and a WebTransport session played by hand.
// The real ones are tested in a browser against the real server: tests/browser.
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { Deframer, framed } from "../build/framing.js";
import { dialWebSocket, webSocketDial } from "../build/transport_websocket.js";
import { dialWebTransport } from "../build/transport_webtransport.js";

const settled = async () => {
  for (let i = 0; i < 10; i += 1) await new Promise(setImmediate);
};

function listener() {
  const told = [];
  return {
    told,
    message: (message, lane, size) => told.push([message.name, lane, size]),
    closed: ({ code, reason }) => told.push(["closed", code, reason]),
  };
}

const address = { base: "http://h:7400", webtransport: undefined, hashes: undefined };

describe("over WebSocket", () => {
  let sockets;
  beforeEach(() => {
    sockets = [];
    globalThis.WebSocket = class {
      static OPEN = 1;
      readyState = 0;
      sent = [];
      constructor(url, protocol) {
        if (url.includes(" ")) throw new SyntaxError("bad address");
        Object.assign(this, { url, protocol });
        sockets.push(this);
      }
      send(text) { this.sent.push(text); }
      close(code) { this.closedWith = code; }
    };
  });
  afterEach(() => delete globalThis.WebSocket);

  test("speaks the JSON subprotocol at /v1/ws", () => {
    const heard = listener();
    const link = dialWebSocket(address, heard);
    const [socket] = sockets;
    assert.deepEqual([socket.url, socket.protocol], ["ws://h:7400/v1/ws", "tidegate.v1.json"]);
    assert.equal(link.send({ name: "pong", body: {} }), false, "not open");
    socket.readyState = 1;
    assert.equal(link.send({ name: "pong", body: {} }), true);
    assert.deepEqual(socket.sent, ['{"pong":{}}']);
    socket.onmessage({ data: '{"ping":{}}' });
    socket.onclose({ code: 3008, reason: "slow" });
    assert.deepEqual(heard.told, [["ping", "control", 11], ["closed", 3008, "slow"]]);
    assert.equal(link.send({ name: "pong", body: {} }), false);
  });

  test("what is no message ends it, once", () => {
    for (const data of ["nonsense", "{}", new ArrayBuffer(3)]) {
      const heard = listener();
      dialWebSocket(address, heard);
      const socket = sockets.at(-1);
      socket.onmessage({ data });
      socket.onmessage({ data: '{"ping":{}}' });
      socket.onclose({ code: 1006, reason: "" });
      assert.deepEqual(heard.told.map(([name, code]) => [name, code]), [["closed", 4002]]);
      assert.equal(socket.closedWith, 4002);
    }
  });

  test("takes any socket with the same face", () => {
    const heard = listener();
    const made = [];
    const dial = webSocketDial((url, protocol) => made[made.push({ url, protocol, readyState: 1, send() {} }) - 1]);
    assert.equal(dial(address, heard).send({ name: "pong", body: {} }), true);
    assert.deepEqual([made[0].url, made[0].protocol, sockets.length], ["ws://h:7400/v1/ws", "tidegate.v1.json", 0]);
    made[0].onmessage({ data: '{"ping":{}}' });
    assert.deepEqual(heard.told, [["ping", "control", 11]]);
  });

  test("a malformed address is told, not thrown", async () => {
    const heard = listener();
    dialWebSocket({ ...address, base: "http://a b" }, heard);
    assert.deepEqual(heard.told, []);
    await settled();
    assert.deepEqual(heard.told, [["closed", 1006, "bad address"]]);
  });
});

/** A session whose streams the test holds the other end of. */
class Session {
  constructor(url, options) {
    Object.assign(this, { url, options });
    this.ready = new Promise((resolve, reject) => Object.assign(this, { open: resolve, refuse: reject }));
    this.closed = new Promise((resolve, reject) => Object.assign(this, { end: resolve, fail: reject }));
    this.closed.catch(() => undefined);
    this.unis = new TransformStream();
    this.control = { up: new TransformStream(undefined, undefined, { highWaterMark: 1_000 }), down: new TransformStream(undefined, { highWaterMark: 1_000 }) };
    this.dgrams = new TransformStream(undefined, { highWaterMark: 1_000 });
    this.incomingUnidirectionalStreams = this.unis.readable;
    this.datagrams = { readable: this.dgrams.readable };
    this.downs = this.control.down.writable.getWriter();
    this.grams = this.dgrams.writable.getWriter();
    Session.all.push(this);
  }
  async createBidirectionalStream() {
    return { readable: this.control.down.readable, writable: this.control.up.writable };
  }
  close(info) {
    this.closedWith ??= info ?? {};
    this.end(info ?? {});
  }
}

const LEFT = Uint8Array.of(0x52, 0x03, 0x0a, 0x01, 0x72); // left { room: "r" }

describe("over WebTransport", () => {
  beforeEach(() => {
    Session.all = [];
    globalThis.WebTransport = Session;
  });
  afterEach(() => delete globalThis.WebTransport);

  async function open(more = {}) {
    const heard = listener();
    const link = dialWebTransport({ ...address, ...more }, heard);
    await settled();
    const [session] = Session.all;
    session.open();
    await settled();
    return { heard, link, session };
  }

  test("opens the control stream and says something at once", async () => {
    const { link, session } = await open({ hashes: async () => [Uint8Array.of(1)] });
    assert.equal(session.url, "https://h:7400/v1/wt");
    assert.deepEqual(session.options.serverCertificateHashes, [{ algorithm: "sha-256", value: Uint8Array.of(1) }]);
    assert.equal(link.send({ name: "leave", body: { room: "r" } }), true);
    const reader = session.control.up.readable.getReader();
    const sent = [(await reader.read()).value, (await reader.read()).value];
    assert.deepEqual(sent.map((bytes) => [...bytes]), [[2, 0x32, 0], [5, 0x12, 3, 0x0a, 1, 0x72]]);
  });

  test("tells what comes on which stream, in whatever chunks", async () => {
    const { heard, session } = await open();
    const bytes = framed(LEFT);
    for (const byte of bytes) session.downs.write(Uint8Array.of(byte));
    const important = new TransformStream();
    session.unis.writable.getWriter().write(important.readable);
    important.writable.getWriter().write(Uint8Array.from([...bytes, ...bytes]));
    session.grams.write(LEFT);
    session.grams.write(Uint8Array.of(0xff));
    await settled();
    const lanes = heard.told.map(([name, lane]) => `${name} ${lane}`).sort();
    assert.deepEqual(lanes, ["left control", "left datagram", "left important", "left important"]);
  });

  test("ends with the server's code, or as broken", async () => {
    const first = await open();
    first.session.end({ closeCode: 3000, reason: "drain" });
    await settled();
    assert.deepEqual(first.heard.told, [["closed", 3000, "drain"]]);
    assert.equal(first.link.send({ name: "pong", body: {} }), false);
    Session.all = [];
    const second = await open();
    second.session.fail(new Error("connection lost"));
    second.downs;
    await settled();
    assert.deepEqual(second.heard.told, [["closed", 1006, "connection lost"]]);
  });

  test("a stream that breaks, or is out of step, takes the session with it", async () => {
    const broken = await open();
    broken.session.downs.abort(new Error("reset"));
    await settled();
    assert.equal(broken.heard.told.length, 1);
    assert.equal(broken.heard.told[0][0], "closed");
    Session.all = [];
    const astray = await open();
    astray.session.downs.write(Uint8Array.of(2, 0xff, 0xff));
    await settled();
    assert.deepEqual(astray.heard.told.map(([name, code]) => [name, code]), [["closed", 4002]]);
    assert.equal(astray.session.closedWith.closeCode, 4002);
  });

  test("a refusal and an end before it was open are told once, or not at all", async () => {
    const heard = listener();
    dialWebTransport(address, heard);
    await settled();
    Session.all[0].refuse(new Error("handshake failed"));
    Session.all[0].fail(new Error("handshake failed"));
    await settled();
    assert.deepEqual(heard.told, [["closed", 1006, "handshake failed"]]);
    Session.all = [];
    const silent = listener();
    const link = dialWebTransport(address, silent);
    link.close();
    await settled();
    Session.all[0].open();
    await settled();
    assert.deepEqual([silent.told, Session.all[0].closedWith], [[], { closeCode: 1000, reason: "" }]);
  });

  test("a hash that cannot be had is a failure", async () => {
    const heard = listener();
    dialWebTransport({ ...address, hashes: async () => { throw new Error("offline"); } }, heard);
    await settled();
    assert.deepEqual(heard.told, [["closed", 1006, "offline"]]);
  });
});
