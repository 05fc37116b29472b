/**
 * How old a message is, by the server's clock as seen from here.
 *
 * A frame says when the server made it, so receipt minus that is the difference of the
 * clocks plus the time on the way. The least difference seen belongs to the frame that
 * was on the way for the shortest; half the shortest round trip seen is about how long
 * that was. One answer proves little, since joins wait in line and pages are busy while
 * they load; before there are some, the age is that beyond the fastest frame. Minima
 * are kept for five to ten minutes, so that clocks may drift.
 */

const KEPT_MS = 300_000;
/** Round trips whose least is taken for that of an idle network. */
const ENOUGH_TRIPS = 5;

/** The least of what was seen lately. */
class Least {
  private best = [Infinity, Infinity];
  private since = -Infinity;

  see(value: number, now: number): void {
    if (now - this.since >= KEPT_MS) {
      // After a long silence nothing that was seen is of lately.
      this.best = [Infinity, now - this.since < 2 * KEPT_MS ? this.best[0]! : Infinity];
      this.since = now;
    }
    this.best[0] = Math.min(this.best[0]!, value);
  }

  get value(): number {
    return Math.min(this.best[0]!, this.best[1]!);
  }
}

export class ServerClock {
  private readonly lag = new Least();
  private readonly trips = new Least();
  private tripsSeen = 0;

  /** A message made at `timeMs`, the server's Unix time, came at `now`. */
  stamped(timeMs: number, now: number): void {
    this.lag.see(now - timeMs, now);
  }

  /** Something was answered after so long. */
  answered(ms: number, now: number): void {
    this.trips.see(ms, now);
    this.tripsSeen += 1;
  }

  /** The shortest round trip seen lately, `undefined` before any. */
  get rttMs(): number | undefined {
    return Number.isFinite(this.trips.value) ? this.trips.value : undefined;
  }

  /** The server's Unix time at `now`; `undefined` before the first frame. */
  serverTime(now: number): number | undefined {
    const least = this.lag.value;
    const way = this.tripsSeen < ENOUGH_TRIPS ? 0 : (this.rttMs ?? 0) / 2;
    return Number.isFinite(least) ? now - least + way : undefined;
  }
}
