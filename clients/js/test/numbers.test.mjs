import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Numbers, digestHash } from "../build/numbers.js";
import { event, frame, joined } from "./kit/world.mjs";

/** A room that joined at seq 4 and important 2; every draw is the half. */
function room({ split = false, slot = 0 } = {}) {
  const numbers = new Numbers("r", () => 0.5);
  numbers.connected(split, slot);
  numbers.joined(joined(), 0);
  return numbers;
}

const important = (...numbers) => numbers.map((number) => event({ important: number, seq: number + 2 }));
const shown = (news) => news.events.map((e) => e.important ?? e.seq);
const say = (numbers, now) => numbers.due(now).map(({ name, body }) => [name, body.important ?? body.from, body.to]);

describe("important events", () => {
  test("are given once, in order, whatever comes twice", () => {
    const numbers = room();
    assert.deepEqual(shown(numbers.frame(frame(5, 6, 4, important(3, 4)), "control", 0)), [3, 4]);
    assert.deepEqual(shown(numbers.frame(frame(7, 6, 4, important(3, 4)), "control", 0)), []);
    assert.equal(numbers.tally.duplicates, 2);
    assert.deepEqual(numbers.position, { epoch: 7, seq: 6, important: 4 });
    assert.equal(numbers.deadline, undefined);
  });

  test("behind a hole are held until a pull has filled it", () => {
    const numbers = room();
    assert.deepEqual(shown(numbers.frame(frame(5, 7, 5, important(4, 5)), "control", 10)), []);
    assert.equal(numbers.complete, false);
    assert.equal(numbers.deadline, 10, "one stream: it is not on its way");
    assert.deepEqual(say(numbers, 10), [["pull", 3, 3]]);
    assert.deepEqual(say(numbers, 11), [], "asked already");
    assert.deepEqual(shown(numbers.frame(frame(8, 7, 5, important(3)), "control", 20)), [3, 4, 5]);
    assert.equal(numbers.deadline, undefined);
  });

  test("that are named on a split transport are waited for a second first", () => {
    const numbers = room({ split: true });
    numbers.frame(frame(5, 5, 3, [event({ seq: 5 })]), "control", 100);
    assert.equal(numbers.deadline, 1_100);
    assert.deepEqual(shown(numbers.frame(frame(6, 5, 3, important(3)), "important", 300)), [3]);
    assert.equal(numbers.deadline, undefined);
    assert.deepEqual(say(numbers, 2_000), []);
  });

  test("are pulled in parts, and again when no answer comes, less and less often", () => {
    const numbers = room();
    numbers.frame(frame(5, 5, 302), "control", 0);
    assert.deepEqual(say(numbers, 0), [["pull", 3, 202]]);
    assert.equal(numbers.deadline, 3_000);
    assert.deepEqual(say(numbers, 3_000), [["pull", 3, 202]]);
    assert.equal(numbers.deadline, 9_000);
    const part = important(...Array.from({ length: 200 }, (_, i) => i + 3));
    assert.equal(shown(numbers.frame(frame(6, 5, 302, part), "control", 4_000)).length, 200);
    assert.deepEqual(say(numbers, 4_000), [["pull", 203, 302]]);
  });

  test("a pull that the server puts off is repeated when it says", () => {
    const numbers = room();
    numbers.frame(frame(5, 5, 4), "control", 0);
    numbers.due(0);
    numbers.pullLimited(700, 50);
    assert.equal(numbers.deadline, 750);
    assert.deepEqual(say(numbers, 750), [["pull", 3, 4]]);
  });

  test("that the server no longer has are given up, and it is said", () => {
    const numbers = room();
    numbers.frame(frame(5, 5, 9, important(5)), "control", 0);
    numbers.due(0);
    numbers.historyGone();
    const refresh = frame(6, 5, 9, [], { totals: [{ kind: "like", key: "", sum: 1, delta: 0 }] });
    assert.equal(numbers.frame(refresh, "control", 1).lost, undefined, "totals answer no pull");
    const news = numbers.frame(frame(6, 5, 9, important(8, 9)), "control", 1);
    assert.deepEqual([news.lost, shown(news)], [{ from: 3, to: 7 }, [5, 8, 9]]);
    assert.deepEqual(numbers.farewell()[0].body.from, 8, "a digest begins behind what is lost");
  });

  test("that come by datagram and on their stream are given once and acknowledged once", () => {
    const ack = { ack: { one_in: 1, within_ms: 0 } };
    for (const [first, second] of [["datagram", "important"], ["important", "datagram"]]) {
      const numbers = room({ split: true });
      assert.deepEqual(shown(numbers.frame(frame(5, 4, 3, important(3), ack), first, 0)), [3]);
      assert.deepEqual(say(numbers, 0), [["ack", 3, undefined]]);
      assert.deepEqual(shown(numbers.frame(frame(5, 4, 3, important(3), ack), second, 300)), []);
      assert.deepEqual(say(numbers, 300), [], `it was said when it came by ${first}`);
      numbers.frame(frame(5, 4, 3, important(3), ack), "control", 900);
      assert.deepEqual(say(numbers, 900), [["ack", 3, undefined]], "sent again for want of an answer");
    }
  });

  test("of which only copies come are given in order, and nothing is pulled", () => {
    const numbers = room({ split: true });
    const copy = (number, now) => shown(numbers.frame(frame(5, 4, number, important(number)), "datagram", now));
    assert.deepEqual(copy(3, 0), [3]);
    assert.deepEqual(copy(5, 10), [], "behind a hole it is held");
    assert.deepEqual(copy(4, 20), [4, 5]);
    assert.equal(numbers.deadline, undefined);
    assert.deepEqual(shown(numbers.frame(frame(5, 4, 5, important(3, 4, 5)), "important", 500)), []);
    assert.equal(numbers.position.important, 5);
  });

  test("on their own stream say nothing of what a pull brings", () => {
    const numbers = room({ split: true });
    numbers.frame(frame(5, 5, 6), "control", 0);
    assert.deepEqual(say(numbers, 1_000), [["pull", 3, 6]]);
    numbers.historyGone();
    const live = numbers.frame(frame(6, 5, 7, important(7)), "important", 1_001);
    assert.deepEqual([live.lost, shown(live)], [undefined, []]);
    const answer = numbers.frame(frame(6, 5, 7, important(5, 6)), "control", 1_002);
    assert.deepEqual([answer.lost, shown(answer)], [{ from: 3, to: 4 }, [5, 6, 7]]);
  });

  test("of a numbering that began later are all new; of a room first seen none is", () => {
    const numbers = room();
    numbers.connected(false, 0);
    numbers.joined(joined({ epoch: 8, important: 3 }), 100);
    assert.equal(numbers.deadline, 600, "many may come back at once");
    assert.deepEqual(say(numbers, 600), [["pull", 1, 3]]);
    assert.deepEqual(shown(numbers.frame(frame(5, 4, 3, important(1, 2, 3), { epoch: 8 }), "control", 700)), [1, 2, 3]);
    assert.equal(numbers.frame(frame(5, 5, 3), "control", 800), undefined, "of the old numbering");
  });

  test("missed ones are pulled within the time told, or confirmed once more", () => {
    const numbers = room();
    assert.equal(numbers.missed({ from: 1, to: 2, within_ms: 100 }, 0), false);
    assert.deepEqual(say(numbers, 50), [["ack", 2, undefined]]);
    assert.equal(numbers.missed({ from: 3, to: 4, within_ms: 100 }, 100), true);
    assert.equal(numbers.deadline, 150);
    assert.deepEqual(say(numbers, 150), [["pull", 3, 4]]);
  });
});

describe("the ordered stream", () => {
  const talk = (...numbers) => numbers.map((seq) => event({ seq }));

  test("is given once; what a single stream skips is told, what a split one skips is elsewhere", () => {
    const single = room();
    assert.equal(single.frame(frame(5, 6, 2, talk(5, 6)), "control", 0).gap, undefined);
    assert.deepEqual(shown(single.frame(frame(5, 7, 2, talk(6, 7)), "control", 0)), [7]);
    const { gap } = single.frame(frame(10, 10, 2, talk(10)), "control", 0);
    assert.deepEqual([gap.first_seq, gap.last_seq, gap.cause], [8, 9, "skipped"]);
    assert.equal(room({ split: true }).frame(frame(9, 9, 2, talk(9)), "control", 0).gap, undefined);
  });

  test("an important event that the disk held up comes behind its number", () => {
    const numbers = room();
    numbers.frame(frame(5, 8, 2, talk(5, 8)), "control", 0);
    assert.deepEqual(shown(numbers.frame(frame(9, 9, 3, [event({ seq: 6, important: 3 }), ...talk(9)]), "control", 0)), [3, 9]);
  });

  test("a gap moves the number, a fresh join names what went by", () => {
    const numbers = room();
    assert.equal(numbers.gap({ room: "r", first_seq: 5, last_seq: 9, dropped: { chat: 5 } }).gap.cause, "told");
    assert.equal(numbers.frame(frame(10, 10, 2, talk(10)), "control", 0).gap, undefined);
    numbers.connected(false, 0);
    assert.equal(numbers.joined(joined({ seq: 12, recovered: true }), 0).gap, undefined);
    assert.deepEqual(shown(numbers.frame(frame(11, 12, 2, talk(11, 12)), "control", 0)), [11, 12]);
    numbers.connected(false, 0);
    const { gap } = numbers.joined(joined({ seq: 20 }), 0);
    assert.deepEqual([gap.first_seq, gap.last_seq, gap.cause], [13, 20, "away"]);
  });

  test("rebased moves no baseline and is no gap of its own", () => {
    const numbers = room();
    const { gap } = numbers.joined(joined({ seq: 30, important: 3, rebased: true }), 0);
    assert.equal(gap, undefined);
    assert.deepEqual(numbers.position, { epoch: 7, seq: 30, important: 2 });
    assert.ok(numbers.deadline >= 1_000, "what is owed may be on its way");
  });
});

describe("datagrams", () => {
  const total = (sum) => ({ kind: "like", key: "", sum, delta: 1 });

  test("the newest wins, for each sum by itself, also when it came on the control stream", () => {
    const numbers = room({ split: true });
    const at = (time_ms, totals, fields = {}) => frame(1, 0, 2, [], { time_ms, totals, ...fields });
    assert.equal(numbers.frame(at(20, [total(9)], { online: 5 }), "datagram", 0).totals.length, 1);
    const late = numbers.frame(at(10, [total(8), { ...total(1), key: "b" }], { online: 4 }), "datagram", 0);
    assert.deepEqual(late.totals.map((t) => t.key), ["b"]);
    assert.equal(late.online, undefined);
    assert.equal(numbers.frame(at(30, [total(11)]), "control", 0).totals.length, 1);
    assert.equal(numbers.frame(at(25, [total(10)]), "datagram", 0).totals.length, 0);
    assert.equal(numbers.tally.stale, 2);
  });

  test("an old value of a kind and key does not follow a newer one", () => {
    const numbers = room({ split: true });
    const stats = (time_ms, payload) => frame(1, 0, 2, [event({ kind: "stats", key: "k", payload })], { time_ms });
    assert.equal(numbers.frame(stats(20, "new"), "datagram", 0).events.length, 1);
    assert.equal(numbers.frame(stats(10, "old"), "datagram", 0).events.length, 0);
  });

  test("name no important event of which the time to come has not begun", () => {
    const numbers = room({ split: true });
    numbers.frame(frame(1, 0, 3), "datagram", 50);
    assert.equal(numbers.deadline, 1_050);
  });
});

describe("acknowledging", () => {
  const asking = (one_in, within_ms, more = {}) => frame(5, 5, 3, important(3), { ack: { one_in, within_ms, ...more } });

  test("within the time told, by those who are asked", () => {
    const numbers = room({ slot: 20_000 });
    numbers.frame(asking(2, 100), "control", 0);
    assert.deepEqual([numbers.deadline, say(numbers, 49), say(numbers, 50)], [50, [], [["ack", 3, undefined]]]);
    const other = room({ slot: 40_000 });
    other.frame(asking(2, 100), "control", 0);
    assert.equal(other.deadline, undefined);
  });

  test("what was asked across a hole when that is filled", () => {
    const numbers = room();
    numbers.frame(frame(5, 6, 4, important(4), { ack: { one_in: 1, within_ms: 0 } }), "control", 0);
    assert.deepEqual(say(numbers, 0), [["pull", 3, 3]]);
    numbers.frame(frame(7, 6, 4, important(3)), "control", 5);
    assert.deepEqual(say(numbers, 5), [["ack", 4, undefined]]);
  });

  test("a digest covers what has come here without a hole", () => {
    const numbers = room();
    assert.deepEqual(numbers.farewell(), [], "nothing came");
    const events = [event({ important: 3, id: "a" }), event({ important: 4, id: "b" }), event({ important: 6, id: "d" })];
    numbers.frame(frame(5, 9, 6, events, { ack: { one_in: 1, within_ms: 0, digest_from: 1 } }), "control", 0);
    const [digest] = numbers.due(0).filter(({ name }) => name === "digest");
    const xor = (digestHash(3, "a") ^ digestHash(4, "b")) >>> 0;
    assert.deepEqual(digest.body, { room: "r", from: 3, to: 4, count: 2, xor });
    assert.equal(digestHash(1, "a"), 0x342479c9, "the example of docs/delivery.md");
    assert.equal(digestHash(42, "red-packet-7"), 0x6d204359);
  });
});
