import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Deframer, framed, MOST_BYTES } from "../build/framing.js";
import { bytesOf, payloadOf } from "../build/payload.js";
import { readJson, writeJson } from "../build/wire_json.js";
import { chance, seeds } from "./kit/world.mjs";

const bytes = (text) => new TextEncoder().encode(text);

describe("framing", () => {
  test("lengths are RFC 9000's variable-length integers", () => {
    assert.deepEqual([...framed(bytes("ab"))], [2, 97, 98]);
    assert.deepEqual([...framed(new Uint8Array(64)).subarray(0, 2)], [0x40, 64]);
    assert.deepEqual([...framed(new Uint8Array(16_384)).subarray(0, 4)], [0x80, 0, 0x40, 0]);
    // Appendix A.1 of the RFC: 37 in one byte and, as any length may be, in two.
    assert.equal(new Deframer().push(Uint8Array.of(0x25, ...new Uint8Array(37)))[0].length, 37);
    assert.equal(new Deframer().push(Uint8Array.of(0x40, 0x25, ...new Uint8Array(37)))[0].length, 37);
  });

  test("any chunks give the same messages", () => {
    for (const seed of seeds(300)) {
      const random = chance(seed);
      const messages = Array.from({ length: 1 + random.below(8) }, () =>
        Uint8Array.from({ length: [0, 1, 63, 64, 300, 17_000][random.below(6)] }, () => random.below(256)),
      );
      const stream = messages.flatMap((message) => [...framed(message)]);
      const deframer = new Deframer();
      const read = [];
      for (let at = 0; at < stream.length; ) {
        const length = 1 + random.below([3, 50, 30_000][random.below(3)]);
        read.push(...deframer.push(Uint8Array.from(stream.slice(at, at + length))));
        at += length;
      }
      assert.deepEqual(read, messages, `TIDEGATE_SEED=${seed}`);
    }
  });

  test("a length beyond the bound is refused before it is waited for", () => {
    const view = new DataView(new ArrayBuffer(8));
    view.setBigUint64(0, 0xc000_0000_0000_0000n | BigInt(MOST_BYTES + 1));
    assert.throws(() => new Deframer().push(new Uint8Array(view.buffer)), RangeError);
  });
});

describe("payloads", () => {
  test("are JSON where they are JSON, else bytes", () => {
    assert.deepEqual(payloadOf(bytes('{"a":1.50}')), { a: 1.5 });
    assert.equal(payloadOf(bytes("")), null);
    assert.deepEqual(payloadOf(bytes("plain")), bytes("plain"));
    assert.deepEqual(payloadOf(Uint8Array.of(0xff, 0xfe)), Uint8Array.of(0xff, 0xfe));
    assert.deepEqual(payloadOf(bytes("\ufeff1")), bytes("\ufeff1"), "a byte order mark is no JSON");
  });

  test("are the same over both formats", () => {
    const values = [null, "text", 5, { a: ["ü"] }, bytes("plain"), Uint8Array.of(0, 159, 255)];
    for (const value of values) {
      const text = writeJson({ name: "publish", body: { room: "r", id: "1", kind: "k", payload: value } });
      const { publish } = JSON.parse(text);
      // As a server that keeps bytes would say it.
      const event = { id: "1", kind: "k", user: "u", time_ms: 1, payload: publish.payload, ...(publish.encoding && { encoding: "base64" }) };
      const read = readJson(JSON.stringify({ frame: { events: [event] } }));
      assert.deepEqual(read.body.events[0].payload, value);
      assert.equal("encoding" in read.body.events[0], false);
      assert.deepEqual(payloadOf(bytesOf(value)), value);
    }
    const untold = writeJson({ name: "publish", body: { room: "r", id: "1", kind: "k", payload: undefined } });
    assert.equal(JSON.parse(untold).publish.payload, null);
  });
});

describe("JSON", () => {
  test("a message is an object with one field", () => {
    assert.deepEqual(readJson('{"ping":{}}'), { name: "ping", body: {} });
    assert.equal(writeJson({ name: "pong", body: {} }), '{"pong":{}}');
    for (const bad of ["", "[]", "{}", '{"a":1,"b":2}', "null", "7", "nonsense"]) {
      assert.throws(() => readJson(bad), SyntaxError, bad);
    }
  });
});
