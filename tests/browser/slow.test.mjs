// A slow viewer on the demo page: real Chromium, real `tidegate serve`, and between them a
// line that stops. What the page says on every rung, and that it is what the server did.
import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { join } from "node:path";
import { openBrowser, Server, shots } from "./harness.mjs";
import { Relay, UDP } from "./relay.mjs";

let browser;
before(async () => (browser = await openBrowser()));
after(() => browser?.close());

/** The stage of the test that runs: one that fails leaves it to be taken down here. */
let standing;
afterEach(() => standing?.takeDown());

const RUNGS = ["no_sampled", "totals_only", "important_only", "rebase"];
const NEVER = 100_000;
/** Kinds of the default configuration that have no number. */
const SAMPLED = new Set(["like", "enter", "follow", "fansclub", "stats"]);

/** Bounds by frames alone, so that no clock decides when a rung is reached. */
function bounds(frames, more = {}) {
  const settings = {
    // A busy machine makes a server that has little to do refuse for queueing.
    TIDEGATE__ADMISSION__DRY_RUN: "true",
    // Long enough to look at each rung on the way down.
    TIDEGATE__DELIVERY__RECOVER_MS: "2000",
    TIDEGATE__ROOMS__SMALL_ROOM_VIEWERS: "1000",
    ...more,
  };
  RUNGS.forEach((rung, i) => {
    const name = `TIDEGATE__DELIVERY__${rung.toUpperCase()}`;
    settings[`${name}_FRAMES`] = String(frames[i] ?? NEVER);
    settings[`${name}_BYTES`] = "100000000";
    settings[`${name}_MS`] = "3600000";
  });
  return settings;
}

/** In the page: every rung that it showed, and every word about it, in order. */
function watch() {
  window.rungs = [];
  window.words = [];
  window.packets = 0;
  addEventListener("DOMContentLoaded", () => {
    const ladder = document.querySelector("#ladder");
    const slow = document.querySelector("#slow");
    new MutationObserver(() => {
      const now = ladder.querySelector("[aria-current]")?.dataset.rung;
      if (now && now !== window.rungs.at(-1)) window.rungs.push(now);
    }).observe(ladder, { subtree: true, attributes: true, attributeFilter: ["aria-current"] });
    // The list keeps the newest lines only.
    new MutationObserver((changes) => {
      const lines = changes.flatMap(({ addedNodes }) => [...addedNodes]);
      window.packets += lines.filter((line) => line.textContent.endsWith("sent a red packet.")).length;
    }).observe(document.querySelector("#chat"), { childList: true });
    new MutationObserver(() => window.words.push(slow.textContent)).observe(slow, { childList: true });
  });
}

/** A server, a page behind a line, and somebody who fills the room. */
class Stage {
  static async open(settings, { direct = false } = {}) {
    const stage = new Stage();
    standing = stage;
    stage.server = await Server.create(settings);
    stage.line = await Relay.create(stage.server.port, UDP.refused);
    stage.context = await browser.newContext({ viewport: { width: 1440, height: 1250 } });
    stage.page = await stage.context.newPage();
    stage.complaints = [];
    stage.page.on("pageerror", (error) => stage.complaints.push(error.stack ?? error.message));
    await stage.page.addInitScript(watch);
    const session = await (await fetch(`${stage.server.url}/demo/session`)).json();
    Object.assign(stage, { room: session.room, token: session.publisher_token, batches: 0, packets: [] });
    await stage.page.goto(`${(direct ? stage.server : stage.line).url}/?transport=websocket`);
    await stage.pill("live · WebSocket");
    return stage;
  }

  async takeDown() {
    standing = undefined;
    await this.context?.close();
    this.line?.close();
    await this.server?.remove();
  }

  async close() {
    await this.takeDown();
    assert.deepEqual(this.complaints, []);
  }

  until(holds, argument, timeout = 40_000) {
    return this.page.waitForFunction(holds, argument, { timeout, polling: 50 });
  }

  pill(text) {
    return this.until((expected) => document.querySelector("#state-text").textContent === expected, text);
  }

  /** What the page says of a rung. */
  told(rung) {
    return this.page.locator(`#ladder [data-rung="${rung}"] .told`).textContent();
  }

  toldOf(rung) {
    return this.until((name) => document.querySelector(`#ladder [data-rung="${name}"] .told`).textContent !== "", rung);
  }

  /** Until it has shown this rung, however shortly: a busy machine may be past it. */
  on(rung) {
    return this.until((name) => window.rungs.includes(name), rung);
  }

  words() {
    return this.page.evaluate(() => window.words.join());
  }

  shot(name) {
    return this.page.screenshot({ path: join(shots, `slow-${name}.png`) });
  }

  /** Two long chats, one entrance, three likes; every fourth time a red packet. */
  async batch() {
    this.batches += 1;
    const n = this.batches;
    const long = () => Array.from({ length: 260 }, () => Math.random().toString(36).slice(2, 17)).join("");
    const events = [
      { kind: "chat", payload: long() },
      { kind: "chat", payload: long() },
      { kind: "like", payload: null, amount: 3 },
      { kind: "enter", payload: null },
    ];
    if (n % 4 === 0) {
      this.packets.push(`packet ${n}`);
      events.push({ kind: "red_packet", payload: { title: `packet ${n}`, amount: "1.00", seconds: 3 } });
    }
    const answer = await fetch(`${this.server.url}/v1/rooms/${this.room}/events`, {
      method: "POST",
      headers: { authorization: `Bearer ${this.token}`, "content-type": "application/json" },
      body: JSON.stringify({ events: events.map((event) => ({ id: crypto.randomUUID(), user: "crowd", ...event })) }),
    });
    const { results } = await answer.json();
    for (const result of results) assert.equal(result.status, "accepted", JSON.stringify(result));
  }

  /** Until a metric is at least one, and a little more. */
  async fill(series) {
    const until = Date.now() + 60_000;
    while ((await this.server.metric(series)) < 1) {
      assert.ok(Date.now() < until, `${series} stays at 0`);
      await this.batch();
    }
    for (let i = 0; i < 8; i += 1) await this.batch();
  }

  climb(rung) {
    return this.fill(`tidegate_slow_viewer_climbs_total{rung="${rung}"}`);
  }

  /** Waits until the page has been told that everything is sent again. */
  async recovered() {
    await this.until(() => window.rungs.at(-1) === "nothing" && document.querySelector("#slow").hidden);
  }
}

const count = (text, kind) => Number(new RegExp(`([\\d,]+) ${kind}`).exec(text)?.[1].replaceAll(",", "") ?? 0);

describe("a slow viewer sees on the page", () => {
  test("that samples are left out, and nothing else", { timeout: 120_000 }, async () => {
    const stage = await Stage.open(bounds([6]));
    stage.line.hold();
    await stage.climb("no_sampled");
    stage.line.release();
    await stage.on("sampled");
    assert.match(await stage.told("sampled"), /withheld 1/);
    assert.match(await stage.words(), /no entrances/);
    await stage.shot("sampled");
    await stage.recovered();
    assert.match(await stage.told("nothing"), /everything again/);
    assert.deepEqual([await stage.told("totals"), await stage.told("ordered"), await stage.told("rebase")], ["", "", ""]);
    assert.equal(await stage.page.locator("#n-missed").textContent(), "0");
    await stage.close();
  });

  test("that totals wait, and then the newest", { timeout: 120_000 }, async () => {
    const stage = await Stage.open(bounds([6, 10]));
    stage.line.hold();
    await stage.climb("totals_only");
    const likes = (await (await fetch(`${stage.server.url}/v1/rooms/${stage.room}`, {
      headers: { authorization: `Bearer ${stage.token}` },
    })).json()).totals?.find(({ kind }) => kind === "like")?.sum;
    stage.line.release();
    await stage.on("totals");
    assert.match(await stage.words(), /no counts/);
    await stage.shot("totals");
    await stage.on("sampled");
    await stage.recovered();
    assert.ok((await stage.server.metric("tidegate_viewer_refreshes_total")) >= 1);
    assert.ok(likes >= stage.batches * 3, `the room counts ${likes} likes`);
    const shown = await stage.page.locator("#like").getAttribute("aria-label");
    assert.ok(count(shown.replace("Like, ", ""), "so far") >= likes, shown);
    assert.deepEqual([await stage.told("ordered"), await stage.told("rebase")], ["", ""]);
    await stage.close();
  });

  test("how many of each kind are left out", { timeout: 120_000 }, async () => {
    const stage = await Stage.open(bounds([6, 8, 10]));
    stage.line.hold();
    await stage.climb("important_only");
    stage.line.release();
    await stage.on("ordered");
    await stage.toldOf("ordered");
    await stage.shot("ordered");
    await stage.recovered();
    assert.match(await stage.told("ordered"), /gap in seq \d+ to \d+, without .*\d+ chat/);
    const notes = await stage.page.locator("#chat .note", { hasText: "too slow for" }).allTextContents();
    const told = notes.reduce((sum, note) => sum + count(note, "chat"), 0);
    assert.ok(told >= 16, notes.join());
    const dropped = 'tidegate_viewer_dropped_events_total{rung="important_only",lane="ordered"}';
    // Entrances have no number, but while chat is left out they are counted as well.
    const lost = notes.flatMap((note) => [...note.matchAll(/([\d,]+) ([a-z_]+)/g)]);
    const ordered = lost.filter(([, , kind]) => !SAMPLED.has(kind));
    const all = ordered.reduce((sum, [, n]) => sum + Number(n.replaceAll(",", "")), 0);
    assert.equal(all, await stage.server.metric(dropped));
    await stage.close();
  });

  test("that it skips ahead, with nothing important lost", { timeout: 120_000 }, async () => {
    const stage = await Stage.open(bounds([4, 5, 6, 8]));
    const first = Number((await stage.page.locator("#n-important").textContent()).replaceAll(",", "")) || 0;
    stage.line.hold();
    await stage.climb("rebase");
    stage.line.release();
    await stage.toldOf("rebase");
    await stage.on("rebase");
    await stage.shot("rebase");
    assert.match(await stage.told("rebase"), /the room as of seq [\d,]+/);
    await stage.recovered();
    for (const rung of ["totals", "sampled", "nothing"]) assert.match(await stage.told(rung), /told/, rung);
    const owed = await stage.server.metric("tidegate_viewer_owed_events_total");
    assert.ok(owed >= 1);
    assert.equal(await stage.server.metric("tidegate_viewer_repaid_events_total"), owed);
    const least = first + stage.packets.length;
    await stage.until((n) => Number(document.querySelector("#n-important").textContent.replaceAll(",", "")) >= n, least);
    assert.ok((await stage.page.evaluate(() => window.packets)) >= stage.packets.length);
    assert.equal(await stage.page.locator("#chat .note", { hasText: "no longer has" }).count(), 0);
    await stage.close();
  });

  test("that it was closed, and comes back", { timeout: 120_000 }, async () => {
    const stage = await Stage.open(bounds([4, 5, 6, 8], { TIDEGATE__DELIVERY__DRAIN_TIMEOUT_MS: "1000" }));
    stage.line.hold();
    await stage.climb("rebase");
    const until = Date.now() + 30_000;
    const closes = 'tidegate_closes_total{reason="slow"}';
    while ((await stage.server.metric(closes)) < 1) {
      assert.ok(Date.now() < until, "it is not given up");
      await new Promise((done) => setTimeout(done, 50));
    }
    // It lingers for three seconds, so the close frame still comes.
    stage.line.release();
    await stage.toldOf("closed");
    assert.match(await stage.told("closed"), /3008 slow, come back/);
    await stage.pill("live · WebSocket");
    await stage.recovered();
    await stage.shot("closed");
    assert.equal(await stage.page.locator("#chat .note", { hasText: "no longer has" }).count(), 0);
    await stage.close();
  });

  test("all of it by its own choice to read nothing", { timeout: 120_000 }, async () => {
    const stage = await Stage.open(bounds([4, 5, 6, 8]), { direct: true });
    const { page } = stage;
    // Another connection of the page, which joins and then reads nothing.
    await page.selectOption("#pace", "0");
    await page.click("#crowd");
    const until = Date.now() + 60_000;
    while ((await stage.server.metric('tidegate_slow_viewer_climbs_total{rung="rebase"}')) < 1) {
      assert.ok(Date.now() < until, "the browser reads on");
      await new Promise((done) => setTimeout(done, 100));
    }
    await page.click("#crowd");
    await page.selectOption("#pace", "Infinity");
    await stage.toldOf("rebase");
    await stage.recovered();
    await stage.shot("chosen");
    await stage.close();
  });
});
