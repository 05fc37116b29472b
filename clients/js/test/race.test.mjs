import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { connect } from "../build/index.js";
import { Stage, World } from "./kit/world.mjs";

/** A client on a stage, and what it told. */
function start(world, stage, options = {}) {
  const told = [];
  const client = connect({ url: "https://h", environment: world.environment(stage.dials), ...options });
  client.on("transport", (name) => told.push(name));
  client.on("failed", (name, { reason }) => told.push(`${name} failed: ${reason}`));
  client.on("error", ({ code }) => told.push(code));
  client.join("r", { token: "t" });
  return { client, told };
}

describe("the race", () => {
  let world;
  let stage;
  beforeEach(() => {
    world = new World();
    stage = new Stage(world);
  });
  const names = () => stage.tries.map((link) => link.transport);

  test("WebTransport has a head start, and wins with its welcome", async () => {
    const { told } = start(world, stage);
    await world.run(200);
    stage.last.welcome();
    await world.run(1_000);
    assert.deepEqual([names(), told], [["webtransport"], ["webtransport"]]);
    assert.deepEqual(stage.last.names(), ["join"]);
  });

  test("WebSocket begins 300 ms later; the first welcome wins and the other is closed", async () => {
    const { told } = start(world, stage);
    await world.run(299);
    assert.deepEqual(names(), ["webtransport"]);
    await world.run(1);
    assert.deepEqual(names(), ["webtransport", "websocket"]);
    const [udp, tcp] = stage.tries;
    tcp.welcome();
    udp.welcome();
    await world.run(10);
    assert.deepEqual([told, udp.closed, udp.sent], [["webtransport failed: late", "websocket"], 1000, []]);
    assert.deepEqual(tcp.names(), ["join"]);
  });

  test("a failure lets the next begin at once", async () => {
    start(world, stage);
    await world.run(20);
    stage.last.end(1006, "handshake failed");
    assert.deepEqual(names(), ["webtransport", "websocket"]);
  });

  test("one that connects and says nothing does not win", async () => {
    const { told } = start(world, stage);
    await world.run(20);
    stage.tries[0].open = true;
    await world.run(400);
    stage.tries[1].welcome();
    assert.equal(told.at(-1), "websocket");
    assert.equal(stage.tries[0].closed, 1000);
  });

  test("the winner is tried first next time, in another page too, for a while", async () => {
    start(world, stage);
    await world.run(20);
    stage.last.end();
    stage.last.welcome();
    await world.run(20_000);
    stage.last.end(3001);
    await world.run(1_000);
    assert.equal(names()[2], "websocket");
    const other = new Stage(world);
    start(world, other);
    await world.run(0);
    assert.equal(other.tries[0].transport, "websocket");
    world.time += 700_000;
    const later = new Stage(world);
    start(world, later);
    assert.equal(later.tries[0].transport, "webtransport");
  });

  test("when everything fails nothing is learned, and it is tried again", async () => {
    const { told } = start(world, stage);
    await world.run(10);
    stage.tries[0].end(1006, "no route");
    stage.tries[1].end(1006, "refused");
    assert.deepEqual(told, ["webtransport failed: no route", "websocket failed: refused", "unreachable"]);
    await world.run(500);
    assert.equal(names()[2], "webtransport");
  });

  test("no welcome in time is a failure of all", async () => {
    const { told } = start(world, stage);
    await world.run(10_000);
    assert.deepEqual(stage.tries.slice(0, 2).map((link) => link.closed), [1000, 1000]);
    assert.equal(told.at(-1), "unreachable");
  });

  test("a link that breaks at once is not tried first again", async () => {
    start(world, stage);
    stage.last.welcome();
    await world.run(2_000);
    stage.last.end(1006);
    while (names().length < 2) await world.run(10);
    assert.deepEqual(names(), ["webtransport", "websocket"]);
  });

  test("a transport that this place does not have is not tried; with none that is said", async () => {
    const only = new Stage(world, ["websocket"]);
    start(world, only);
    assert.deepEqual(only.tries.map((link) => link.transport), ["websocket"]);
    const { told } = start(world, new Stage(world, []));
    await world.run(1);
    assert.deepEqual(told, ["unreachable"]);
  });

  test("forbidden storage is no failure", async () => {
    const environment = world.environment(stage.dials);
    environment.memory = { getItem: () => { throw new Error("no"); }, setItem: () => { throw new Error("no"); } };
    const client = connect({ url: "https://h", environment });
    client.join("r", { token: "t" });
    stage.last.welcome();
    await world.run(1);
    assert.equal(client.stats.transport, "webtransport");
  });
});
