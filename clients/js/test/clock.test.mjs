import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ServerClock } from "../build/clock.js";
import { chance, seeds } from "./kit/world.mjs";

describe("the server's clock", () => {
  test("is unknown before a frame, and then not behind any frame that came", () => {
    const clock = new ServerClock();
    assert.equal(clock.serverTime(0), undefined);
    clock.stamped(1_000_000, 50);
    assert.equal(clock.serverTime(60), 1_000_010);
  });

  test("one slow answer moves nothing", () => {
    const clock = new ServerClock();
    clock.stamped(1_000, 10);
    clock.answered(1_500, 10);
    assert.deepEqual([clock.serverTime(10), clock.rttMs], [1_000, 1_500]);
    for (let i = 0; i < 4; i += 1) clock.answered(40, 10);
    assert.equal(clock.serverTime(10), 1_020);
  });

  test("is met within the unevenness of the way, wherever this clock stands", () => {
    for (const seed of seeds(100)) {
      const random = chance(seed);
      const offset = random.below(2_000_000_000);
      const oneWay = 5 + random.below(100);
      const clock = new ServerClock();
      let now = 0;
      for (let i = 0; i < 200; i += 1) {
        now += random.below(1_000);
        clock.stamped(now + offset - oneWay - random.below(300), now);
        if (random.odds(0.2)) clock.answered(2 * oneWay + random.below(40), now);
      }
      const error = clock.serverTime(now) - (now + offset);
      assert.ok(Math.abs(error) <= 60, `TIDEGATE_SEED=${seed}: ${error} ms off`);
    }
  });

  test("follows a clock that drifts, and forgets what is long ago", () => {
    const clock = new ServerClock();
    // 200 ppm: 360 ms in half an hour.
    for (let now = 0; now <= 1_800_000; now += 1_000) clock.stamped(now * 0.9998, now);
    const error = clock.serverTime(1_800_000) - 1_800_000 * 0.9998;
    assert.ok(error >= 0 && error <= 600_000 * 0.0002 + 1, `${error}`);
    clock.stamped(5_000_000 - 700, 5_000_000);
    assert.equal(clock.serverTime(5_000_000), 5_000_000 - 700);
  });
});
