// The browser library and the demo page over WebTransport, in a real Chromium against
// a real `tidegate serve`.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { join } from "node:path";
import { openBrowser, Server, shots } from "./harness.mjs";
import { Relay, UDP } from "./relay.mjs";

let server;
let browser;

before(async () => {
  server = await Server.create();
  browser = await openBrowser({ quic: true });
});

after(async () => {
  await browser?.close();
  await server?.remove();
});

/** Publishes as the IM service. */
async function publish(...events) {
  const session = await (await fetch(`${server.url}/demo/session`)).json();
  const answer = await fetch(`${server.url}/v1/rooms/${session.room}/events`, {
    method: "POST",
    headers: { authorization: `Bearer ${session.publisher_token}`, "content-type": "application/json" },
    body: JSON.stringify({ events: events.map((event) => ({ id: crypto.randomUUID(), user: "tester", ...event })) }),
  });
  const { results } = await answer.json();
  for (const result of results) assert.equal(result.status, "accepted", JSON.stringify(result));
  return results;
}

const packet = (title) => ({ kind: "red_packet", payload: { title, amount: "1.00", seconds: 3 } });

/** Opens the demo page, and beside it a client of the library's own in `window.seen`. */
async function open(url, transports) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  const page = await context.newPage();
  await page.goto(url);
  await page.evaluate(async (transports) => {
    const { connect } = await import("/demo/tidegate.js");
    const session = await (await fetch("/demo/session")).json();
    const certificateHashes = async () => {
      const { sha256 } = await (await fetch("/demo/certificate")).json();
      return [Uint8Array.from(atob(sha256), (letter) => letter.charCodeAt(0))];
    };
    const seen = { important: [], titles: [], ordered: [], lanes: {}, bytes: [], states: [], opened: [], closed: [], gone: [], errors: [] };
    const client = connect({ certificateHashes, race: { headStartMs: 2_000 }, ...(transports && { transports }) });
    client.on("open", (transport) => seen.opened.push(transport));
    client.on("close", ({ code, reason, returns }) => seen.closed.push({ code, reason, returns }));
    client.on("message", (message, { lane }) => {
      if (message.name !== "frame") return;
      for (const { kind } of [...message.body.events, ...message.body.totals]) (seen.lanes[kind] ??= []).push(lane);
    });
    const room = client.join(session.room, {
      token: async () => (await (await fetch("/demo/session")).json()).viewer_token,
      onState: ({ recovered, epoch, important }) => seen.states.push({ recovered, epoch, important }),
      onEvent: ({ important, seq, payload }) => {
        if (important !== undefined) {
          seen.important.push(important);
          if (payload?.title) seen.titles.push(payload.title);
        } else if (seq !== undefined) {
          seen.ordered.push(seq);
          if (payload instanceof Uint8Array) seen.bytes.push([...payload]);
        }
      },
      onMissed: (missed) => missed.gone && seen.gone.push(missed),
      onError: ({ code, message }) => seen.errors.push(`${code} ${message}`),
    });
    Object.assign(window, { seen, client, room });
  }, transports);
  const until = (holds, argument, timeout = 30_000) =>
    page.waitForFunction(holds, argument, { timeout, polling: 50 });
  await until(() => window.seen.states.length > 0);
  const seen = () => page.evaluate(() => window.seen);
  const pill = (text, timeout = 30_000) => until((expected) => document.querySelector("#state-text").textContent === expected, text, timeout);
  return { page, until, seen, pill, close: () => context.close(), shot: (name) => page.screenshot({ path: join(shots, `webtransport-${name}.png`) }) };
}

/** Nothing came twice, nothing is missing, nothing is out of order. */
function whole({ important, ordered, gone, errors }) {
  important.forEach((number, i) => assert.equal(number, important[0] + i, important.join()));
  ordered.forEach((number, i) => assert.ok(i === 0 || number > ordered[i - 1], ordered.join()));
  assert.deepEqual([gone, errors], [[], []]);
}

describe("over WebTransport", () => {
  let view;
  before(async () => (view = await open(server.url, ["webtransport"])));
  after(() => view?.close());

  test("a page joins without being told to", async () => {
    await view.pill("live · WebTransport");
      });

  test("every lane comes on its own stream", async () => {
    await publish(packet("lane"), { kind: "chat", payload: "ordered" }, { kind: "like", payload: null, amount: 5 });
    await view.until(() => window.seen.titles.includes("lane") && window.seen.lanes.chat && window.seen.lanes.like);
    const { lanes, ...rest } = await view.seen();
    assert.deepEqual([...new Set(lanes.red_packet)], ["important"]);
    assert.deepEqual([...new Set(lanes.chat)], ["control"]);
    assert.ok(lanes.like.includes("datagram"), lanes.like.join());
    whole(rest);
    await view.page.locator("#packet").waitFor({ timeout: 10_000 });
    await view.shot("live");
  });

  test("what this viewer says is accepted, and bytes are bytes", async () => {
    const { seq } = await view.page.evaluate(() => window.room.publish("chat", Uint8Array.of(0, 159, 255)));
    await view.until((seq) => window.seen.ordered.includes(seq), seq);
    assert.deepEqual((await view.seen()).bytes, [[0, 159, 255]]);
    const refusal = await view.page.evaluate(() => window.room.publish("red_packet", "mine").catch(({ name, code }) => ({ name, code })));
    assert.deepEqual(refusal, { name: "Rejected", code: "forbidden_kind" });
  });

  test("two hundred important events in a storm of talk, in order", async () => {
    const { length } = (await view.seen()).important;
    for (let i = 0; i < 10; i += 1) {
      const talk = Array.from({ length: 60 }, (_, n) => ({ kind: "chat", payload: `${i}-${n} ${"x".repeat(200)}` }));
      await publish(...talk, ...Array.from({ length: 20 }, (_, n) => packet(`storm ${i * 20 + n}`)));
    }
    await view.until((least) => window.seen.important.length >= least, length + 200);
    const seen = await view.seen();
    whole(seen);
    const storm = seen.titles.filter((title) => title.startsWith("storm"));
    assert.deepEqual(storm, Array.from({ length: 200 }, (_, i) => `storm ${i}`));
  });

  for (const signal of ["SIGTERM", "SIGKILL"]) {
    test(`resumes after ${signal}, nothing missing`, { timeout: 120_000 }, async () => {
      const before = await view.seen();
      await server.stop(signal);
      await server.start();
      const titles = Array.from({ length: 5 }, (_, i) => `${signal} ${i}`);
      for (const title of titles) await publish(packet(title));
      await view.until((last) => window.seen.titles.includes(last), titles.at(-1), 90_000);
      const seen = await view.seen();
      whole(seen);
      assert.deepEqual(seen.titles.filter((title) => title.startsWith(signal)), titles);
      assert.equal(seen.states.at(-1).epoch, before.states.at(-1).epoch, "one numbering");
      assert.ok(seen.opened.length > before.opened.length);
      assert.equal(seen.opened.at(-1), "webtransport");
      assert.equal(seen.closed.at(-1).returns, true);
      await view.until(() => document.querySelector("#state").dataset.state === "live", null, 60_000);
      await view.shot(`after-${signal.toLowerCase()}`);
    });
  }

  test("the page's select changes the transport", async () => {
    await view.page.selectOption("#transport", "websocket");
    await view.pill("live · WebSocket");
    await view.page.selectOption("#transport", "webtransport");
    await view.pill("live · WebTransport");
  });
});

describe("a change of address", () => {
  let relay;
  let view;
  before(async () => {
    relay = await Relay.create(server.port);
    view = await open(relay.url, ["webtransport"]);
  });
  after(async () => {
    await view?.close();
    relay?.close();
  });

  test("costs nothing and needs no reconnect", { timeout: 60_000 }, async () => {
    for (let i = 0; i < 5; i += 1) {
      await publish(packet(`moved ${i}`), { kind: "chat", payload: `moved ${i}` });
      assert.ok(relay.rebind() > 0, "nothing went through the relay");
      // Whoever moved says so by speaking: a server cannot know where to.
      await view.page.evaluate((text) => window.room.publish("chat", text), `here ${i}`);
      await view.until((title) => window.seen.titles.includes(title), `moved ${i}`);
    }
    const seen = await view.seen();
    whole(seen);
    assert.deepEqual([seen.opened, seen.closed], [["webtransport"], []]);
  });
});

for (const udp of [UDP.swallowed, UDP.refused]) {
  describe(`where UDP is ${udp}`, () => {
    let relay;
    let view;
    before(async () => {
      relay = await Relay.create(server.port, udp);
      view = await open(relay.url);
    });
    after(async () => {
      await view?.close();
      relay?.close();
    });

    test("the page falls back to WebSocket, and remembers it", async () => {
      await view.pill("live · WebSocket", 10_000);
      if (udp === UDP.swallowed) assert.ok(relay.tried.size > 0, "WebTransport was never tried");
      await publish(packet(`without UDP, ${udp}`));
      await view.until((title) => window.seen.titles.includes(title), `without UDP, ${udp}`);
      const seen = await view.seen();
      whole(seen);
      assert.deepEqual(seen.opened, ["websocket"]);
      await view.shot(`udp-${udp}`);
      const tried = relay.tried.size;
      await view.page.reload();
      await view.pill("live · WebSocket", 10_000);
      assert.equal(relay.tried.size, tried, "what was learned is not tried again at once");
    });
  });
}
