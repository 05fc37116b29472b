import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { connect } from "../build/index.js";
import { frame, joined, Stage, World } from "./kit/world.mjs";

describe("the connection", () => {
  let world;
  let stage;
  let client;
  let room;
  let told;
  beforeEach(() => {
    world = new World(5);
    stage = new Stage(world, ["websocket"]);
    told = [];
    client = connect({ url: "https://h", environment: world.environment(stage.dials) });
    client.on("state", (state, { inMs }) => told.push([state, inMs]));
    client.on("error", ({ code }) => told.push([code]));
    room = client.join("r", { token: "t" });
  });
  const enter = () => {
    stage.last.welcome();
    stage.last.say("joined", joined());
  };
  const tries = () => stage.tries.length;
  const waits = () => told.filter(([state]) => state === "waiting").map(([, inMs]) => inMs);

  test("comes back with full jitter whose bound doubles", async () => {
    for (let i = 0; i < 12; i += 1) {
      stage.last.end();
      await world.run(waits()[i]);
      assert.equal(tries(), i + 2);
    }
    const bounds = waits().map((_, i) => Math.min(15_000, 500 * 2 ** i));
    assert.equal(waits().length, 12);
    waits().forEach((wait, i) => assert.ok(wait <= bounds[i], `${wait} of ${bounds[i]}`));
    assert.ok(Math.max(...waits()) > 4_000, "the bound is used");
    assert.ok(new Set(waits()).size === 12, "at random");
  });

  test("a connection resets the backoff only when it held for 10 s", async () => {
    for (let i = 0; i < 8; i += 1) {
      enter();
      await world.run(9_000);
      stage.last.end();
      await world.run(15_001);
    }
    const short = waits();
    assert.ok(Math.max(...short) > 2_000, short.join());
    enter();
    await world.run(10_001);
    stage.last.end();
    assert.ok(waits().at(-1) <= 500);
  });

  test("goaway says when and where; after a failure there, home again", async () => {
    enter();
    stage.last.say("goaway", { reconnect_after_ms: 4_321, url: "wss://other:7400/" });
    stage.last.end(3000, "drain");
    assert.deepEqual(waits(), [4_321]);
    world.tell("visible");
    assert.ok(waits().at(-1) > 4_000, "not undercut");
    await world.run(4_320);
    assert.equal(tries(), 1);
    await world.run(1);
    assert.equal(stage.last.address.base, "http://other:7400".replace("http", "https"));
    stage.last.end();
    await world.run(1_000);
    assert.equal(stage.last.address.base, "https://h");
  });

  test("a drain whose goaway got lost is spread as if it had come", async () => {
    for (let i = 0; i < 20; i += 1) {
      enter();
      await world.run(11_000);
      stage.last.end(3000, "drain");
      await world.run(waits()[i]);
    }
    assert.ok(Math.max(...waits()) > 2_500 && Math.max(...waits()) <= 5_000, waits().join());
  });

  test("3500 to 3999 is the end, 3000 to 3499 is not", async () => {
    client.close();
    const errors = [];
    const other = connect({ url: "https://h", environment: world.environment(stage.dials) });
    const inside = other.join("r", { token: "t", onError: (error) => errors.push(error) });
    enter();
    const pending = inside.publish("chat", "x");
    stage.last.end(3008, "slow");
    await world.run(20_000);
    enter();
    stage.last.end(3501, "too_many_messages");
    await assert.rejects(pending, { name: "Rejected", code: "refused" });
    const count = tries();
    await world.run(60_000);
    assert.equal(tries(), count);
    assert.deepEqual(errors.map(({ code, fatal }) => [code, fatal]), [["refused", true]]);
    assert.deepEqual([inside.phase, other.stats.state], ["refused", "stopped"]);
    assert.throws(() => other.join("r", { token: "t" }), { code: "closed" });
  });

  test("silence longer than the server's pings allow ends it", async () => {
    enter();
    for (let i = 0; i < 3; i += 1) {
      await world.run(25_000);
      stage.last.say("ping", {});
      assert.equal(stage.last.sent.at(-1).name, "pong");
    }
    await world.run(54_999);
    assert.equal(stage.last.closed, undefined);
    await world.run(1);
    assert.equal(stage.tries[0].closed, 1000);
    assert.equal(room.phase, "waiting");
    await world.run(500);
    assert.equal(tries(), 2);
  });

  test("a hidden page takes its time, a shown one does not", async () => {
    enter();
    world.tell("hidden");
    await world.run(20_000);
    stage.last.end();
    assert.ok(waits()[0] > 500, `${waits()[0]}`);
    world.tell("visible");
    assert.deepEqual(waits()[1], 0);
    await world.run(0);
    assert.equal(tries(), 2);
    stage.last.end();
    world.tell("visible");
    assert.equal(waits().at(-1), 1_000, "flapping makes no storm");
  });

  test("without a network it tries rarely, and at once when that is back", async () => {
    enter();
    await world.run(20_000);
    world.tell("offline");
    stage.last.end();
    await world.run(30_000);
    assert.equal(tries(), 1);
    await world.run(1_000);
    assert.equal(tries(), 2, "what is known of the network may be wrong");
    stage.last.end();
    await world.run(5_000);
    world.tell("online");
    await world.run(0);
    assert.equal(tries(), 3);
  });

  test("is opened by the first room and closed with the last", async () => {
    enter();
    room.leave();
    assert.deepEqual(stage.last.names(), ["join", "leave"]);
    assert.deepEqual([stage.last.closed, client.stats.state], [1000, "idle"]);
    client.join("r", { token: "t" });
    assert.equal(tries(), 2);
    client.close();
    assert.equal(stage.last.closed, 1000);
    assert.equal(world.page.watchers.size, 0);
  });

  const bad = {
    "a number that a double does not hold": frame(2 ** 53, 2 ** 53, 2),
    "a number that is none": frame(5, 5, "2"),
    "an event with a negative number": frame(5, 5, 2, [{ id: "e", seq: -1 }]),
    "no list of events": frame(5, 5, 2, undefined, { events: undefined }),
  };
  for (const [what, body] of Object.entries(bad)) {
    test(`${what} ends the connection, and it is said`, async () => {
      enter();
      stage.last.say("frame", body);
      assert.deepEqual([told.some(([code]) => code === "bad_server_message"), stage.last.closed], [true, 1000]);
      await world.run(500);
      assert.equal(tries(), 2);
    });
  }

  test("another numbering than was joined makes a new connection, which resumes", async () => {
    enter();
    stage.last.say("frame", frame(5, 5, 2, [], { epoch: 8 }));
    await world.run(500);
    enter();
    assert.deepEqual(stage.last.sent[0].body.resume, { epoch: 7, seq: 4, important: 2 });
  });
});
