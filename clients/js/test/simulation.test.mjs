// The client against a model of the server, over links that go wrong, under virtual
// time. A failure prints its seed; TIDEGATE_SEED=n replays it.
import assert from "node:assert/strict";
import { test } from "node:test";
import { connect } from "../build/index.js";
import { ModelServer } from "./kit/model_server.mjs";
import { chance, seeds, World } from "./kit/world.mjs";

const TRANSPORTS = [["websocket"], ["webtransport"], ["webtransport", "websocket"]];

async function run(seed, { transports, forgets }) {
  const world = new World(seed);
  const random = chance(seed ^ 0x2545f491);
  const server = new ModelServer(world, random, { forgets });
  const dials = Object.fromEntries(transports.map((name) => [name, server.dial(name)]));
  const seen = { first: undefined, important: [], ordered: [], gaps: [], lost: [], sums: new Map(), errors: [] };
  const upTo = () => seen.important.at(-1) ?? seen.first;
  server.said = ({ name, body }) => {
    if (name === "ack") assert.ok(body.important <= Math.max(upTo(), ...seen.lost.map(({ to }) => to)), "acknowledged what was not shown");
  };
  let tokens = 0;
  const client = connect({ url: "https://h", transports, environment: world.environment(dials) });
  const room = client.join("r", {
    token: async () => `${(tokens += 1)}`,
    onState: ({ important }) => (seen.first ??= important),
    onEvent: ({ important, seq }) => {
      if (important !== undefined) seen.important.push(important);
      else if (seq !== undefined) seen.ordered.push(seq);
    },
    onTotals: (totals) => totals.forEach(({ key, sum }) => seen.sums.set(key, sum)),
    onGap: (gap) => seen.gaps.push(gap),
    onMissed: (missed) => missed.gone && seen.lost.push(missed),
    onError: ({ code, fatal }) => seen.errors.push([code, fatal]),
  });
  let began;
  const published = [];
  for (let at = 0; at < 40_000; ) {
    const step = 20 + random.below(200);
    at += step;
    await world.run(step);
    began ??= room.position?.seq;
    if (server.up) server.flush();
    if (random.odds(0.03)) server.mischief();
    if (random.odds(0.1)) {
      const id = `mine-${published.length}`;
      published.push(room.publish("chat", at, { id }).then(() => ({ id }), (failure) => ({ id, failure })));
    }
  }
  server.calm = true;
  await world.run(60_000);
  for (let i = 0; i < 3; i += 1) {
    server.flush();
    await world.run(1_000);
  }
  server.flush(true);
  await world.run(40_000);
  return { client, room, server, seen, began, published: await Promise.all(published) };
}

function judge({ client, room, server, seen, began, published }) {
  const last = server.important.length;
  assert.equal(room.phase, "joined");
  // Every important event since the join, once, in order, none missing.
  const lost = new Set(seen.lost.flatMap(({ from, to }) => Array.from({ length: to - from + 1 }, (_, i) => from + i)));
  const due = Array.from({ length: last - seen.first }, (_, i) => seen.first + 1 + i);
  assert.deepEqual(seen.important, due.filter((number) => !lost.has(number) || seen.important.includes(number)));
  if (server.forgets === 0) assert.deepEqual(seen.lost, []);
  for (const number of lost) assert.ok(number <= server.goneTo, "called gone while it was held");
  // Talk in order, each once, and what did not come is in a notice.
  seen.ordered.forEach((seq, i) => assert.ok(i === 0 || seq > seen.ordered[i - 1], `${seq} after ${seen.ordered[i - 1]}`));
  const excused = (seq) => seen.gaps.some(({ firstSeq, lastSeq }) => firstSeq <= seq && seq <= lastSeq);
  const came = new Set(seen.ordered);
  for (const seq of server.talked) if (seq > began) assert.ok(came.has(seq) || excused(seq), `${seq} went missing without a word`);
  assert.deepEqual(seen.gaps.filter(({ cause }) => cause === "skipped"), []);
  assert.deepEqual([...seen.sums].sort(), [...server.sums].sort());
  // What was published took place once, and what was refused did not.
  for (const { id, failure } of published) {
    if (failure === undefined) assert.ok(server.ids.has(id), id);
    else if (failure.code === "rate_limited") assert.ok(!server.ids.has(id), id);
    else assert.equal(failure.code, "timeout");
  }
  assert.deepEqual(seen.errors.filter(([, fatal]) => fatal), []);
  return client.stats;
}

for (const transports of TRANSPORTS) {
  for (const forgets of [0, 25]) {
    const name = `${transports.join(" and ")}${forgets ? ", the server forgets" : ""}`;
    test(name, { timeout: 300_000 }, async () => {
      const sum = {};
      for (const seed of seeds(Number(process.env.TIDEGATE_SEEDS ?? 25))) {
        try {
          const result = await run(seed, { transports, forgets });
          const stats = judge(result);
          for (const [key, n] of Object.entries({ ...result.server.counts, held: stats.held, duplicates: stats.duplicates, stale: stats.stale })) {
            sum[key] = (sum[key] ?? 0) + n;
          }
          result.client.close();
        } catch (failure) {
          failure.message = `TIDEGATE_SEED=${seed}: ${failure.message}`;
          throw failure;
        }
      }
      // Nothing was proved if none of it happened.
      if (process.env.TIDEGATE_SEED === undefined) {
        for (const key of ["pulls", "resumes", "rebases", "gaps", "acks", "digests", "breaks", "refused", "duplicates"]) {
          assert.ok(sum[key] > 0, `${key} never happened`);
        }
        if (forgets > 0) assert.ok(sum.gone > 0, "nothing was ever gone");
        if (transports.length === 1 && transports[0] === "webtransport") assert.ok(sum.held > 0 && sum.stale > 0);
      }
      console.log(`${name}: ${JSON.stringify(sum)}`);
    });
  }
}
