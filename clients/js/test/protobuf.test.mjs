// Our reader and writer against protobufjs, which reads the interface's own .proto
// files, with random messages both ways.
import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";
import { Reader } from "../build/protobuf.js";
import { CLIENT, SERVER, readProto, writeProto } from "../build/wire_proto.js";
import { chance, seeds } from "./kit/world.mjs";

const proto = join(dirname(fileURLToPath(import.meta.url)), "../../../proto");
const root = new protobuf.Root();
root.resolvePath = (_, target) => join(proto, target);
root.loadSync("tidegate/v1/room.proto", { keepCase: true });
const ServerMessage = root.lookupType("tidegate.v1.ServerMessage");
const ClientMessage = root.lookupType("tidegate.v1.ClientMessage");
const encode = (type, value) => type.encode(type.fromObject(value)).finish();

const KINDS = { uint64: "uint", uint32: "uint", int64: "int", string: "string", bool: "bool", bytes: "payload", fixed32: "fixed32", double: "double" };

/** Compares a table with the message that it stands for. */
function compare(table, type, path) {
  const named = Object.fromEntries(table.map(([number, name, kind, rule]) => [name, { number, kind, rule: rule ?? "" }]));
  assert.deepEqual(Object.keys(named).sort(), type.fieldsArray.map((field) => field.name).sort(), path);
  for (const field of type.fieldsArray) {
    field.resolve();
    const { number, kind, rule } = named[field.name];
    const where = `${path}.${field.name}`;
    assert.equal(number, field.id, where);
    assert.equal(rule === "repeated", field.repeated, where);
    if (field.map) assert.equal(kind, "counts", where);
    else if (typeof kind === "string") {
      assert.equal(kind, KINDS[field.type], where);
      assert.equal(rule === "optional", field.partOf !== null && field.partOf.isProto3Optional, where);
    } else compare(kind, field.resolvedType, where);
  }
}

describe("protobuf", () => {
  test("the tables are those of the interface", () => {
    compare(SERVER, ServerMessage, "ServerMessage");
    compare(CLIENT, ClientMessage, "ClientMessage");
  });

  test("reads what another encoder wrote", () => {
    for (const seed of seeds(200)) {
      const random = chance(seed);
      const number = () => [0, 1, 127, 128, 16_384, 2 ** 32, 2 ** 53 - 1][random.below(7)];
      const signed = () => number() * (random.odds(0.5) ? -1 : 1) || 0;
      const text = () => ["", "demo", "Grüße 🌊"][random.below(3)];
      const values = [null, 1.5, "text", { a: [true] }];
      const payload = values[random.below(values.length)];
      const event = { id: text(), kind: text(), user: text(), payload: Buffer.from(JSON.stringify(payload)), time_ms: number() };
      if (random.odds(0.5)) Object.assign(event, { seq: number(), important: number(), key: text(), amount: signed() });
      const frame = {
        room: text(), epoch: number(), first_seq: number(), last_seq: number(), important: number(), time_ms: number(),
        events: Array.from({ length: random.below(4) }, () => event),
        totals: Array.from({ length: random.below(3) }, () => ({ kind: text(), key: text(), sum: signed(), delta: signed() })),
        withheld: random.below(4),
      };
      if (random.odds(0.5)) frame.dropped = { like: number(), enter: 3 };
      if (random.odds(0.5)) frame.online = 0;
      if (random.odds(0.5)) frame.ack = { one_in: 4, within_ms: 250, ...(random.odds(0.5) && { digest_from: 0 }) };
      const read = readProto(encode(ServerMessage, { frame }));
      const expected = { ...frame, events: frame.events.map((e) => ({ ...e, payload })) };
      assert.deepEqual(read, { name: "frame", body: expected }, `TIDEGATE_SEED=${seed}`);
    }
  });

  test("absent fields have their defaults, optional ones are absent", () => {
    const { body } = readProto(encode(ServerMessage, { joined: { room: "r" } }));
    const { room, seq, recovered, state, missed } = body;
    assert.deepEqual({ room, seq, recovered, state, missed }, { room: "r", seq: 0, recovered: false, state: [], missed: undefined });
    const error = readProto(encode(ServerMessage, { error: { code: "x" } }));
    assert.deepEqual(error.body, { code: "x", reason: "", temporary: false });
    assert.deepEqual(readProto(encode(ServerMessage, { ping: {} })), { name: "ping", body: {} });
  });

  test("another decoder reads what we write", () => {
    const said = [
      { name: "join", body: { room: "r", token: "t", acks: true, resume: { epoch: 2 ** 52, seq: 300, important: 7 } } },
      { name: "leave", body: { room: "r" } },
      { name: "publish", body: { room: "r", id: "1", kind: "chat", payload: "hé", key: "k", amount: -5 } },
      { name: "publish", body: { room: "r", id: "2", kind: "chat", payload: Uint8Array.of(0, 255), amount: 2 ** 53 - 1 } },
      { name: "publish", body: { room: "r", id: "3", kind: "like", payload: null, amount: -(2 ** 53 - 1) } },
      { name: "ack", body: { room: "r", important: 128 } },
      { name: "pull", body: { room: "r", from: 1, to: 200 } },
      { name: "digest", body: { room: "r", from: 1, to: 9, count: 9, xor: 0xdeadbeef } },
      { name: "pong", body: {} },
    ];
    for (const message of said) {
      const decoded = ClientMessage.toObject(ClientMessage.decode(writeProto(message)), { longs: Number, bytes: String });
      const body = { ...message.body };
      if (message.name === "publish") {
        const { payload } = body;
        body.payload = Buffer.from(payload instanceof Uint8Array ? payload : JSON.stringify(payload)).toString("base64");
      }
      assert.deepEqual(JSON.parse(JSON.stringify(decoded)), JSON.parse(JSON.stringify({ [message.name]: body })));
    }
  });

  test("a number that a double does not hold is an error, an inexact amount is near", () => {
    const frame = (epoch) => encode(ServerMessage, { frame: { room: "r", epoch } });
    assert.throws(() => readProto(frame("9007199254740992")), RangeError);
    assert.equal(readProto(frame("9007199254740991")).body.epoch, 2 ** 53 - 1);
    const total = { kind: "like", sum: "-9223372036854775808" };
    assert.equal(readProto(encode(ServerMessage, { frame: { totals: [total] } })).body.totals[0].sum, -(2 ** 63));
  });

  test("what is unknown is skipped, what is cut off or endless is refused", () => {
    const bytes = encode(ServerMessage, { left: { room: "room" } });
    for (let cut = 1; cut < bytes.length; cut += 1) assert.throws(() => readProto(bytes.subarray(0, cut)), RangeError);
    // Field 99 in each wire type, then the message.
    const unknown = [0x98, 0x06, 0x05, 0x99, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0x9a, 0x06, 1, 7, 0x9d, 0x06, 1, 2, 3, 4];
    assert.deepEqual(readProto(Uint8Array.from([...unknown, ...bytes])), { name: "left", body: { room: "room" } });
    assert.equal(readProto(Uint8Array.from(unknown.slice(0, 3))).name, "");
    assert.throws(() => new Reader(new Uint8Array(11).fill(255)).varint(), RangeError);
    assert.throws(() => readProto(Uint8Array.of(0x9b, 0x06)), RangeError, "a group");
  });

  test("arbitrary bytes give a message or a RangeError", () => {
    for (const seed of seeds(2_000)) {
      const random = chance(seed);
      const bytes = Uint8Array.from({ length: random.below(60) }, () => random.below(256));
      try {
        readProto(bytes);
      } catch (failure) {
        assert.ok(failure instanceof RangeError, `TIDEGATE_SEED=${seed}: ${failure.stack}`);
      }
    }
  });
});
