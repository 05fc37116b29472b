"""One direction of a link, without I/O: what is lost, what waits, what arrives when.

`now` comes in, packets go out. The order of things is that of a real line: a packet
that does not fit into the queue in front of the line is dropped; the line takes its
packets one after another at its rate; some are lost on the way; the others arrive
`delay` later, in order. Whether the n-th packet on the line is lost follows from the
seed, the direction and n alone, so a run can be repeated, and a test can say which
packets must have come.

On radio, losses come together: with `burst_ms` the line is well or broken by turns, for
times drawn from an exponential distribution (Gilbert, 1960), and loses everything while
it is broken. Then the moments, counted from the first packet, follow from the seed, and
which packets meet them from when they are sent.
"""

import math
from collections import deque
from dataclasses import dataclass, field

MASK = (1 << 64) - 1
# Packets and bytes on their way at most: what a line of 1 Gbit/s holds in half a second.
IN_FLIGHT_BYTES = 64 << 20


def draw(seed, direction, number):
    """64 bits that look random: SplitMix64 (Steele, Lea and Flood, 2014) at a place."""
    z = (seed * 0x9E3779B97F4A7C15 + direction * 0xD1B54A32D192ED03 + number) & MASK
    for _ in range(2):
        z = (z + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
    return z


def is_lost(seed, direction, number, percent):
    """Whether the `number`-th packet (from 0) of a direction is lost."""
    return draw(seed, direction, number) * 100 < percent * (MASK + 1)


def periods(seed, direction, percent, burst_ms):
    """Lengths in seconds of how long the line is well and broken, by turns, for ever.

    It is broken for `burst_ms` at a time and for `percent` of the time, on average.
    """
    well_ms = burst_ms * (100 - percent) / percent
    number = 0
    while True:
        for mean_ms in (well_ms, burst_ms):
            # Above 0 and at most 1, so that its logarithm is finite.
            share = (draw(seed, direction + 2, number) + 1) / (MASK + 1)
            yield -math.log(share) * mean_ms / 1000
            number += 1


@dataclass
class Rules:
    """What a direction does to packets. None: no limit."""

    delay_ms: float = 0.0
    loss_percent: float = 0.0
    rate_mbit: float | None = None
    queue_kib: float = 256.0
    burst_ms: float | None = None

    def check(self):
        """Raises ValueError for what no line can be."""
        if self.delay_ms < 0 or not 0 <= self.loss_percent <= 100:
            raise ValueError("a delay is not negative, a loss is 0 to 100 percent")
        if self.rate_mbit is not None and self.rate_mbit <= 0:
            raise ValueError("a rate is above 0")
        if self.queue_kib * 1024 < 2048:
            raise ValueError("a queue holds at least a packet: 2 KiB")
        if self.burst_ms is not None and not (self.burst_ms > 0 and 0 < self.loss_percent < 100):
            raise ValueError("bursts last longer than 0 and make a loss of 0 to 100 percent")


@dataclass
class Counts:
    """What became of the packets offered."""

    offered: int = 0
    offered_bytes: int = 0
    lost: int = 0
    queue_full: int = 0
    blocked: int = 0
    arrived: int = 0
    arrived_bytes: int = 0


@dataclass
class Direction:
    """See the module. Times are seconds of one clock that does not go back."""

    rules: Rules
    seed: int
    index: int
    counts: Counts = field(default_factory=Counts)
    _entered: int = 0
    _free_at: float = 0.0
    _line: deque = field(default_factory=deque)
    _queue: deque = field(default_factory=deque)
    _queued_bytes: int = 0
    _flying_bytes: int = 0
    _periods: object = None
    _broken: bool = True
    _changes_at: float = 0.0

    def _loses(self, sent_at, number):
        """Whether a packet is lost. They are asked about in the order of sending."""
        rules = self.rules
        if not rules.loss_percent:
            return False
        if rules.burst_ms is None:
            return is_lost(self.seed, self.index, number, rules.loss_percent)
        if self._periods is None:
            self._periods = periods(self.seed, self.index, rules.loss_percent, rules.burst_ms)
            self._changes_at = sent_at
        while self._changes_at <= sent_at:
            self._changes_at += next(self._periods)
            self._broken = not self._broken
        return self._broken

    def offer(self, now, packet):
        """A packet comes to the near end."""
        rules, counts, size = self.rules, self.counts, len(packet)
        counts.offered += 1
        counts.offered_bytes += size
        sent_at = now
        if rules.rate_mbit is not None:
            queue = self._queue
            while queue and queue[0][0] <= now:
                self._queued_bytes -= queue.popleft()[1]
            if self._queued_bytes + size > rules.queue_kib * 1024:
                counts.queue_full += 1
                return
            sent_at = max(now, self._free_at) + size * 8 / (rules.rate_mbit * 1e6)
            self._free_at = sent_at
            queue.append((sent_at, size))
            self._queued_bytes += size
        elif self._flying_bytes + size > IN_FLIGHT_BYTES:
            counts.queue_full += 1
            return
        number = self._entered
        self._entered += 1
        if self._loses(sent_at, number):
            counts.lost += 1
            return
        self._flying_bytes += size
        self._line.append((sent_at + rules.delay_ms / 1000, packet))

    def next_arrival(self):
        """When `arrivals` has something; None: nothing is on its way."""
        return self._line[0][0] if self._line else None

    def arrivals(self, now):
        """The packets that come to the far end by `now`, in order."""
        line, counts = self._line, self.counts
        while line and line[0][0] <= now:
            packet = line.popleft()[1]
            self._flying_bytes -= len(packet)
            counts.arrived += 1
            counts.arrived_bytes += len(packet)
            yield packet
