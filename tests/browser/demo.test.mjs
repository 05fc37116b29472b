// The demo page against a real `tidegate serve`, at the size of a phone and of a desk.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { join } from "node:path";
import { openBrowser, Server, shots } from "./harness.mjs";

const SIZES = {
  phone: {
    viewport: { width: 390, height: 844 },
    deviceScaleFactor: 2,
    isMobile: true,
    hasTouch: true,
  },
  desk: { viewport: { width: 1440, height: 900 } },
};

const MARKUP = `<img src=x onerror="window.broken=1"><b>bold</b>`;

let server;
let browser;

before(async () => {
  server = await Server.create();
  browser = await openBrowser();
});

after(async () => {
  await browser?.close();
  await server?.remove();
});

for (const [size, options] of Object.entries(SIZES)) {
  describe(`demo page, ${size}`, () => {
    let context;
    let page;
    let outage = false;
    const complaints = [];

    const shot = (name) => page.screenshot({ path: join(shots, `${size}-${name}.png`) });
    const text = (selector) => page.locator(selector).textContent();
    const number = async (selector) => Number((await text(selector)).replaceAll(",", ""));
    const state = (name, timeout = 10_000) =>
      page.locator(`#state[data-state="${name}"]`).waitFor({ timeout });
    const chatLine = (part) => page.locator("#chat li", { hasText: part }).last();
    const until = (holds, argument, timeout = 10_000) =>
      page.waitForFunction(holds, argument, { timeout, polling: 50 });

    /** On a phone the panel is a sheet. */
    async function withPanel(work) {
      if (size === "phone") await page.click("#panel-toggle");
      await work();
      if (size === "phone") await page.click("#panel-close");
    }

    /** Publishes as the IM service, through the session's publisher token. */
    async function publish(...events) {
      const session = await (await fetch(`${server.url}/demo/session`)).json();
      const answer = await fetch(`${server.url}/v1/rooms/${session.room}/events`, {
        method: "POST",
        headers: {
          authorization: `Bearer ${session.publisher_token}`,
          "content-type": "application/json",
        },
        body: JSON.stringify({
          events: events.map((event) => ({ id: crypto.randomUUID(), user: "tester", ...event })),
        }),
      });
      const body = await answer.json();
      assert.equal(answer.status, 200, JSON.stringify(body));
      for (const result of body.results) assert.equal(result.status, "accepted", JSON.stringify(result));
      return body.results;
    }

    before(async () => {
      context = await browser.newContext(options);
      page = await context.newPage();
      page.on("console", (message) => {
        if (message.type() === "error" && !outage) complaints.push(`${message.text()} ${message.location().url}`);
      });
      page.on("pageerror", (error) => complaints.push(error.stack ?? error.message));
    });

    after(() => context?.close());

    test("becomes live, alone in its room", async () => {
      await page.goto(`${server.url}/?transport=websocket`);
      await state("live");
      await until(() => document.querySelector("#online").textContent === "1");
      assert.equal(await text("#state-text"), "live · WebSocket");
    });

    test("shows what the demo feed says", async () => {
      await until(() => document.querySelectorAll("#chat li").length > 0, null, 20_000);
      await until(() => /^\d/.test(document.querySelector("#age").textContent), null, 20_000);
      await until(() => document.querySelector("#merge").textContent.includes("→"), null, 20_000);
      await until(() => Number(document.querySelector("#n-seq").textContent.replaceAll(",", "")) > 0);
    });

    test("sends a chat with the keyboard and sees it come back", async () => {
      const words = `hello from the ${size} ${Date.now()}`;
      await page.focus("#say");
      await page.keyboard.type(words);
      await page.keyboard.press("Enter");
      await chatLine(words).waitFor({ timeout: 10_000 });
      assert.equal(await page.inputValue("#say"), "");
      assert.ok(await chatLine(words).evaluate((line) => line.classList.contains("mine")));
    });

    test("shows markup as text, wherever it comes from", async () => {
      await page.fill("#say", MARKUP);
      await page.keyboard.press("Enter");
      await chatLine(MARKUP).waitFor({ timeout: 10_000 });
      await publish(
        { kind: "chat", user: MARKUP, payload: "from markup" },
        { kind: "gift", user: MARKUP, key: MARKUP, amount: 1, payload: { name: MARKUP } },
        { kind: "enter", user: MARKUP, payload: null },
        { kind: "no_such_kind", user: MARKUP, payload: { text: MARKUP } },
      );
      await chatLine("from markup").waitFor({ timeout: 10_000 });
      assert.equal(await page.locator("img").count(), 0);
      assert.equal(await page.locator(".stage li b, .stage li img").count(), 0);
      assert.equal(await page.evaluate(() => window.broken), undefined);
    });

    test("merges likes: many taps and events, few frames", async () => {
      const total = await number("#like-total");
      for (let i = 0; i < 5; i += 1) await page.click("#like");
      await until((least) => Number(document.querySelector("#like-total").textContent.replaceAll(",", "")) >= least, total + 5);
      const frames = await number("#n-frames");
      await publish(...Array.from({ length: 500 }, () => ({ kind: "like", payload: null, amount: 1 })));
      await until((least) => Number(document.querySelector("#like-total").textContent.replaceAll(",", "")) >= least, total + 505);
      await page.locator("#hearts .plus").first().waitFor({ state: "attached" });
      const more = (await number("#n-frames")) - frames;
      assert.ok(more < 100, `500 likes came in ${more} frames`);
    });

    test("counts a gift combo up", async () => {
      const combo = Array.from({ length: 12 }, () => ({
        kind: "gift",
        user: `giver-${size}`,
        key: "rose",
        amount: 1,
        payload: { name: "Rose", value: 10 },
      }));
      await publish(...combo);
      const banner = page.locator(".banner", { hasText: `giver-${size}` });
      await banner.waitFor({ timeout: 10_000 });
      await until(
        (user) => [...document.querySelectorAll(".banner")].some((b) => b.textContent.includes(user) && b.textContent.includes("×12")),
        `giver-${size}`,
      );
      assert.match(await banner.textContent(), /Rose/);
      await shot("live");
    });

    test("pins a card and clears it", async () => {
      const title = `Lantern ${size} ${Date.now() % 1000}`;
      await withPanel(async () => {
        await page.fill('#form-card input[name="title"]', title);
        await page.click('#form-card button[type="submit"]');
        await until((t) => document.querySelector("#card-title").textContent === t, title);
        await until(() => /accepted 1 of 1/.test(document.querySelector("#answer").textContent));
        assert.ok(await page.locator("#card").isVisible());
        await page.click("#card-clear");
        await page.locator("#card").waitFor({ state: "hidden", timeout: 5_000 });
      });
    });

    test("shows a red packet, counts it down, opens it", async () => {
      const title = `Fortune ${size} ${MARKUP}`;
      await publish({ kind: "red_packet", payload: { title, amount: "88.00" } });
      for (let tries = 0; tries < 6; tries += 1) {
        await page.locator("#packet").waitFor({ timeout: 10_000 });
        if ((await text("#packet-title")) === title) break;
        await page.click("#packet-close");
      }
      assert.equal(await text("#packet-title"), title);
      assert.match(await text("#packet-proof"), /important \d+ · seq \d+/);
      const left = await number("#packet-count");
      await until((before) => Number(document.querySelector("#packet-count").textContent) < before, left);
      await shot("packet");
      // It beckons for ever, so it is never "stable".
      await page.click("#packet-open", { force: true });
      await page.locator("#packet-sum", { hasText: "88.00" }).waitFor();
      await page.keyboard.press("Escape");
      assert.equal(await page.locator("img").count(), 0);
    });

    test("shows the last frames as JSON", async () => {
      await withPanel(async () => {
        await page.click("#follow");
        await page.locator("#frames button").first().click();
        assert.match(await text("#json"), /"(frame|accepted|joined)"/);
        await page.click('[data-burst="chats"]');
        await until(() => /accepted 200 of 200/.test(document.querySelector("#answer").textContent));
        await page.click("#follow");
        await page.waitForTimeout(400);
        await shot("panel");
      });
      assert.ok((await page.locator("#chat li").count()) <= 150);
      assert.equal(await number("#n-missed"), 0);
    });

    test("every control has a name and motion can be switched off", async () => {
      const nameless = await page.evaluate(() =>
        [...document.querySelectorAll("button, input, textarea")]
          .filter((node) => !node.hidden && node.offsetParent !== null)
          .filter((node) => !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length))
          .map((node) => node.outerHTML.slice(0, 80)),
      );
      assert.deepEqual(nameless, []);
      assert.equal(await page.getAttribute("#chat", "aria-live"), "polite");
      await page.emulateMedia({ reducedMotion: "reduce" });
      const duration = await page.$eval(".wave", (node) => getComputedStyle(node).animationDuration);
      assert.ok(parseFloat(duration) < 0.1, duration);
      await page.emulateMedia({ reducedMotion: null });
    });

    for (const signal of ["SIGTERM", "SIGKILL"]) {
      test(`comes back after ${signal}`, { timeout: 60_000 }, async () => {
        outage = true;
        await server.stop(signal);
        await state("reconnecting", 15_000);
        if (signal === "SIGKILL") await shot("reconnecting");
        await server.start();
        await state("live", 30_000);
        outage = false;
        await until(() => document.querySelector("#online").textContent === "1");
        const words = `after ${signal} ${size} ${Date.now()}`;
        await page.fill("#say", words);
        await page.press("#say", "Enter");
        await chatLine(words).waitFor({ timeout: 10_000 });
      });
    }

    test("complained about nothing", () => {
      assert.deepEqual(complaints, []);
    });
  });
}
