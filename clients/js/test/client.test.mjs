import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { connect } from "../build/index.js";
import { event, frame, joined, Stage, World } from "./kit/world.mjs";

describe("a room", () => {
  let world;
  let stage;
  let client;
  beforeEach(() => {
    world = new World(9);
    stage = new Stage(world, ["webtransport"]);
    client = connect({ url: "https://h", environment: world.environment(stage.dials) });
  });
  const says = (name) => stage.last.sent.filter((message) => message.name === name).map(({ body }) => body);

  test("tells events, totals, state and viewers", async () => {
    const told = [];
    client.join("r", {
      token: "t",
      onState: ({ online, important }) => told.push(["state", online, important]),
      onTotals: (totals, replace) => told.push(["totals", totals[0]?.sum, replace]),
      onOnline: (online) => told.push(["online", online]),
      onFrame: ({ firstSeq, lane }) => told.push(["frame", firstSeq, lane]),
      onEvent: ({ kind, seq, ageMs }) => told.push([kind, seq, ageMs]),
      onGap: ({ firstSeq, dropped }) => told.push(["gap", firstSeq, dropped]),
      onMissed: ({ from, to, gone }) => told.push(["missed", from, to, gone]),
    });
    stage.last.welcome();
    stage.last.say("joined", joined({ totals: [{ kind: "like", key: "", sum: 7 }] }));
    const total = { kind: "like", key: "", sum: 9, delta: 2 };
    const fields = { totals: [total], online: 3, time_ms: 500 };
    stage.last.say("frame", frame(5, 5, 2, [event({ seq: 5, time_ms: 480 })], fields));
    stage.last.say("gap", { room: "r", first_seq: 6, last_seq: 8, dropped: { chat: 3 } });
    stage.last.say("missed", { room: "r", from: 3, to: 4, within_ms: 10 });
    stage.last.say("frame", frame(9, 9, 2, [], { room: "other" }));
    assert.deepEqual(told, [
      ["state", 1, 2], ["totals", 7, true], ["online", 1],
      ["frame", 5, "control"], ["chat", 5, 20], ["totals", 9, false], ["online", 3],
      ["gap", 6, { chat: 3 }], ["missed", 3, 4, false],
    ]);
  });

  test("holds important frames that come before it is joined, and no datagrams", async () => {
    const shown = [];
    client.join("r", { token: "t", onEvent: ({ id }) => shown.push(id) });
    stage.last.welcome();
    stage.last.say("frame", frame(5, 4, 3, [event({ important: 3 })]), "important");
    stage.last.say("frame", frame(1, 0, 3, [event({ id: "sampled" })]), "datagram");
    assert.deepEqual(shown, []);
    stage.last.say("joined", joined());
    assert.deepEqual(shown, ["e3"]);
  });

  test("tells what is withheld when that changes, and nothing of what is sent beside", async () => {
    const told = [];
    client.join("r", {
      token: "t",
      onWithheld: (withheld) => told.push(withheld),
      onFrame: ({ firstSeq, withheld }) => told.push([firstSeq, withheld]),
    });
    stage.last.welcome();
    stage.last.say("joined", joined());
    stage.last.say("frame", frame(5, 5, 2, []));
    for (const [first, last, withheld] of [[6, 6, 1], [7, 7, 1], [8, 7, undefined], [8, 8, 3], [9, 9, 2], [10, 10, 7]]) {
      stage.last.say("frame", frame(first, last, 2, [], { withheld }));
    }
    stage.last.say("frame", frame(11, 10, 2, []), "datagram");
    stage.last.say("frame", frame(11, 11, 2, []));
    assert.deepEqual(told, [
      [5, "nothing"], "sampled", [6, "sampled"], [7, "sampled"], [8, "sampled"], "ordered", [8, "ordered"],
      "totals", [9, "totals"], "ordered", [10, "ordered"], [11, "ordered"], "nothing", [11, "nothing"],
    ]);
  });

  test("is sent everything by a new connection until it hears otherwise", async () => {
    const told = [];
    client.join("r", { token: "t", onWithheld: (withheld) => told.push(withheld) });
    stage.last.welcome();
    stage.last.say("joined", joined());
    stage.last.say("frame", frame(5, 5, 2, [], { withheld: 2 }));
    stage.last.end(3008, "slow");
    await world.run(20_000);
    stage.last.welcome();
    stage.last.say("joined", joined({ seq: 5, recovered: true }));
    stage.last.say("frame", frame(6, 6, 2, []));
    stage.last.say("frame", frame(7, 7, 2, [], { withheld: 1 }));
    assert.deepEqual(told, ["totals", "sampled"]);
  });

  test("says what is due with the message that made it due, and keeps one timer", async () => {
    client.join("r", { token: "t" });
    stage.last.welcome();
    stage.last.say("joined", joined());
    const asking = (first, important, within_ms) =>
      frame(first, first, important, [event({ important, seq: first })], { ack: { one_in: 1, within_ms } });
    stage.last.say("frame", asking(5, 3, 0));
    assert.deepEqual(says("ack"), [{ room: "r", important: 3 }]);
    stage.last.say("frame", asking(6, 4, 1_000));
    const timers = world.timers.length;
    for (let i = 7; i < 20; i += 1) stage.last.say("frame", frame(i, i, 4));
    assert.equal(world.timers.length, timers);
    await world.run(1_000);
    assert.deepEqual(says("ack").at(-1), { room: "r", important: 4 });
  });

  test("a page that throws misses nothing, and is told", async () => {
    const shown = [];
    const uncaught = [];
    const previous = process.listeners("uncaughtException");
    process.removeAllListeners("uncaughtException");
    process.on("uncaughtException", (failure) => uncaught.push(failure.message));
    client.join("r", { token: "t", onEvent: ({ seq }) => { shown.push(seq); throw new Error(`at ${seq}`); } });
    stage.last.welcome();
    stage.last.say("joined", joined());
    stage.last.say("frame", frame(5, 6, 2, [event({ seq: 5 }), event({ seq: 6 })]));
    await world.run(1);
    process.removeAllListeners("uncaughtException");
    for (const listener of previous) process.on("uncaughtException", listener);
    assert.deepEqual([shown, uncaught], [[5, 6], ["at 5", "at 6"]]);
  });

  test("asks for a token once per need: at first, and when the last was refused", async () => {
    let brought = 0;
    const errors = [];
    const room = client.join("r", {
      token: async () => `t${(brought += 1)}`,
      onError: ({ code, fatal }) => errors.push([code, fatal]),
    });
    stage.last.welcome();
    await world.run(0);
    stage.last.say("joined", joined());
    stage.last.end();
    await world.run(1_000);
    stage.last.welcome();
    await world.run(0);
    const expired = { code: "token_expired", reason: "r", temporary: false, room: "r" };
    stage.last.say("error", expired);
    await world.run(0);
    assert.deepEqual(says("join").map(({ token }) => token), ["t1", "t2"]);
    stage.last.say("joined", joined({ recovered: true }));
    assert.deepEqual([brought, errors, room.phase], [2, [], "joined"]);
    stage.last.end();
    await world.run(30_000);
    stage.last.welcome();
    for (let i = 0; i < 2; i += 1) {
      stage.last.say("error", expired);
      await world.run(0);
    }
    assert.deepEqual([errors, room.phase], [[["token_expired", true]], "refused"]);
  });

  test("a token that cannot be had is tried again; one that is a string cannot be renewed", async () => {
    const errors = [];
    let fails = 2;
    const room = client.join("r", {
      token: () => { if ((fails -= 1) >= 0) throw new Error("login"); return "t"; },
      onError: ({ code, reason }) => errors.push(`${code} ${reason}`),
    });
    stage.last.welcome();
    await world.run(20_000);
    assert.deepEqual(errors, ["token_unavailable login", "token_unavailable login"]);
    assert.deepEqual([says("join").length, room.phase], [1, "joining"]);
    client.close();
    const other = connect({ url: "https://h", environment: world.environment(stage.dials) });
    const fixed = other.join("r", { token: "t" });
    stage.last.welcome();
    stage.last.say("error", { code: "token_expired", reason: "", temporary: false, room: "r" });
    assert.equal(fixed.phase, "refused");
  });

  test("who is not let in for now comes back on a new connection when told", async () => {
    const room = client.join("r", { token: "t" });
    stage.last.welcome();
    stage.last.say("error", { code: "overloaded", reason: "full", temporary: true, room: "r", retry_after_ms: 7_000 });
    assert.equal(stage.last.closed, 1000);
    await world.run(6_999);
    assert.equal(stage.tries.length, 1);
    await world.run(1);
    stage.last.welcome();
    stage.last.say("joined", joined());
    assert.equal(room.phase, "joined");
  });

  test("but not where another room of the client would suffer for it", async () => {
    client.join("r", { token: "t" });
    const second = client.join("s", { token: "t" });
    stage.last.welcome();
    stage.last.say("joined", joined());
    stage.last.say("error", { code: "overloaded", reason: "full", temporary: true, room: "s", retry_after_ms: 7_000 });
    await world.run(7_000);
    assert.equal(stage.tries.length, 1);
    assert.deepEqual(says("join").map(({ room }) => room), ["r", "s", "s"]);
    stage.last.say("joined", joined({ room: "s" }));
    assert.equal(second.phase, "joined");
  });

  test("leaving says what came, and ends what waits", async () => {
    client.join("s", { token: "t" });
    const room = client.join("r", { token: "t" });
    stage.last.welcome();
    stage.last.say("joined", joined());
    stage.last.say("frame", frame(5, 5, 3, [event({ important: 3, seq: 5 })]));
    const pending = room.publish("chat", "hi");
    room.leave();
    room.leave();
    await assert.rejects(pending, { code: "left" });
    await assert.rejects(room.publish("chat", "hi"), { name: "Rejected", code: "left" });
    assert.deepEqual(stage.last.names(), ["join", "join", "publish", "digest", "leave"]);
    assert.equal(client.stats.state, "open");
  });

  test("joined twice is refused", () => {
    client.join("r", { token: "t" });
    assert.throws(() => client.join("r", { token: "t" }), { code: "already_joined" });
  });
});

describe("publishing", () => {
  let world;
  let stage;
  let client;
  let room;
  beforeEach(async () => {
    world = new World(11);
    stage = new Stage(world, ["websocket"]);
    client = connect({ url: "https://h", environment: world.environment(stage.dials) });
    room = client.join("r", { token: "t" });
    stage.last.welcome();
  });
  const published = () => stage.last.sent.filter(({ name }) => name === "publish").map(({ body }) => body);

  test("waits for the join, resolves with the number, and measures the way", async () => {
    const answer = room.publish("gift", { name: "rose" }, { key: "rose", amount: 2 });
    assert.deepEqual(published(), []);
    stage.last.say("joined", joined());
    const [{ id, ...body }] = published();
    assert.deepEqual(body, { room: "r", kind: "gift", payload: { name: "rose" }, key: "rose", amount: 2 });
    await world.run(40);
    stage.last.say("accepted", { id, seq: 8 });
    assert.deepEqual(await answer, { id, seq: 8, admission: undefined });
    assert.equal(client.stats.rttMs, 0, "the join was answered at once");
  });

  test("is refused with the server's code and when to try again", async () => {
    stage.last.say("joined", joined());
    const answer = room.publish("chat", "x");
    stage.last.say("rejected", { id: published()[0].id, code: "rate_limited", reason: "slow down", retry_after_ms: 50 });
    await assert.rejects(answer, { name: "Rejected", code: "rate_limited", reason: "slow down", retryAfterMs: 50, room: "r" });
  });

  test("is sent again with the same id after a break, and when the server was leaving", async () => {
    stage.last.say("joined", joined());
    const answer = room.publish("chat", "x");
    const [first] = published();
    stage.last.say("rejected", { id: first.id, code: "draining", reason: "leaving", retry_after_ms: 1_000 });
    stage.last.say("goaway", { reconnect_after_ms: 10 });
    stage.last.end(3000);
    await world.run(10);
    stage.last.welcome();
    stage.last.say("joined", joined({ recovered: true }));
    assert.deepEqual(published(), [first]);
    stage.last.say("accepted", { id: first.id, seq: 5 });
    assert.equal((await answer).seq, 5);
  });

  test("keeps below the server's limit of messages, in order", async () => {
    stage.last.say("joined", joined());
    const answers = Array.from({ length: 60 }, (_, i) => room.publish("chat", i));
    assert.equal(published().length, 30);
    await world.run(1_000);
    assert.ok(published().length <= 46 && published().length >= 44, `${published().length}`);
    await world.run(2_000);
    assert.deepEqual(published().map(({ payload }) => payload), Array.from({ length: 60 }, (_, i) => i));
    for (const { id } of published()) stage.last.say("accepted", { id });
    assert.equal((await Promise.all(answers)).length, 60);
  });

  test("ends by itself when no answer comes, and when too much waits", async () => {
    const answer = room.publish("chat", "x");
    const others = Array.from({ length: 99 }, () => room.publish("chat", "y").catch((failure) => failure.code));
    await assert.rejects(room.publish("chat", "z"), { code: "queue_full", temporary: true });
    const failed = assert.rejects(answer, { code: "timeout", temporary: true });
    await world.run(30_000);
    await failed;
    assert.deepEqual([...new Set(await Promise.all(others))], ["timeout"]);
  });
});
