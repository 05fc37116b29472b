"""What a client keeps of a room, without I/O: docs/protocol.md, "A client in steps".

Every message of the room goes in with the lane it came on and the time; what is to be
sent comes out of `take` and `due`. It checks the server as well: whatever the document
says cannot happen is put into `faults`.
"""

import random

CONTROL, IMPORTANT, DATAGRAM = "control", "important", "datagram"
# Over several streams a number may name an event that is on its way.
PATIENCE = 1.0
HELD_BEFORE_JOINED = 100


def event_hash(number, event_id):
    """32-bit FNV-1a of "number:id"."""
    value = 0x811C9DC5
    for byte in f"{number}:{event_id}".encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


assert event_hash(1, "a") == 0x342479C9 and event_hash(42, "red-packet-7") == 0x6D204359


class Room:
    """One room, over any number of connections."""

    def __init__(self, name, acks=True, streams=True, seed=1):
        self.name, self.acks = name, acks
        # Whether there are several; on a single one nothing is left out or on its way.
        self.streams = streams
        self.random = random.Random(seed)
        self.joined = False
        self.epoch, self.seq, self.important = None, 0, 0
        self.beyond, self.hashes, self.first = set(), {}, 1
        self.slot = 0
        self.held, self.later = [], []
        self.state, self.totals, self.newest = {}, {}, {}
        self.online, self.online_at = None, 0
        self.shown, self.repeated, self.gaps, self.faults = [], [], [], []
        self.pulled, self.acked, self.carried = 0, 0, 0

    def position(self):
        """For `resume`; None before the first `joined`."""
        if self.epoch is None:
            return None
        return {"epoch": self.epoch, "seq": self.seq, "important": self.important}

    def broken(self):
        """The connection is gone."""
        self.joined, self.held, self.later = False, [], []

    def fault(self, text):
        self.faults.append(text)

    def take(self, lane, name, message, now):
        """A message of this room. Returns what to send at once."""
        out = []
        if name == "joined":
            self._joined(message, now, out)
            held, self.held = self.held, []
            for early in held:
                self._frame(IMPORTANT, early, now, out)
        elif name == "frame":
            if self.joined:
                self._frame(lane, message, now, out)
            elif lane == IMPORTANT and len(self.held) < HELD_BEFORE_JOINED:
                self.held.append(message)
            elif lane == CONTROL:
                self.fault("a frame on the control stream before joined")
        elif name == "gap":
            self.gaps.append(message)
            self.seq = max(self.seq, message["last_seq"])
        elif name == "missed":
            within = message["within_ms"] / 1000
            self._plan(now + self.random.random() * within, "again", message["from"], message["to"])
        elif name == "error" and message["code"] == "pull_limited":
            self._plan(now + message["retry_after_ms"] / 1000, "pull", 0, 0)
        elif name == "error" and message["code"] == "history_gone":
            self.gone = True
        return out

    gone = False

    def _plan(self, at, what, first, last):
        self.later.append((at, what, first, last))

    def next_due(self):
        """When `due` has something; None: nothing is planned."""
        return min((at for at, *_ in self.later), default=None)

    def due(self, now):
        """What to send now."""
        ready = [entry for entry in self.later if entry[0] <= now]
        self.later = [entry for entry in self.later if entry[0] > now]
        out = []
        for _, what, first, last in ready:
            if what == "ack":
                self.acked += 1
                out.append(("ack", {"room": self.name, "important": self.important}))
            elif what == "digest":
                out += self.digest(first)
            elif what == "again":
                out.append(("pull", {"room": self.name, "from": first, "to": last}))
            elif self.latest > self.important:
                self.pulled += 1
                where = {"room": self.name, "from": self.important + 1, "to": self.latest}
                out.append(("pull", where))
                self._plan(now + 3 * PATIENCE, "pull", 0, 0)
        return out

    latest = 0

    def digest(self, first):
        """Of what has come from a number on, without a hole."""
        first = max(first, self.first, self.important - 999)
        if first > self.important:
            return []
        numbers = range(first, self.important + 1)
        xor = 0
        for number in numbers:
            xor ^= self.hashes[number]
        where = {"room": self.name, "from": first, "to": self.important}
        return [("digest", {**where, "count": len(numbers), "xor": xor})]

    def _joined(self, message, now, out):
        before, self.epoch = self.epoch, message["epoch"]
        was_joined, self.joined = self.joined, True
        if message["rebased"] != (was_joined and before == self.epoch):
            self.fault(f"joined with rebased {message['rebased']}, joined before: {was_joined}")
        self.state = {(e["kind"], e.get("key", "")): e for e in message["state"]}
        self.totals = {(t["kind"], t["key"], t.get("user")): t["sum"] for t in message["totals"]}
        self.newest = {}
        self.online = message["online"]
        if before == self.epoch:
            if not message["recovered"]:
                self.seq = message["seq"]
                self.important = min(self.important, message["important"])
        else:
            self.seq = message["seq"]
            later = before is not None and before < self.epoch
            self._restart(0 if later else message["important"])
        missed = message.get("missed")
        if missed:
            out.append(("pull", {"room": self.name, "from": missed["from"], "to": missed["to"]}))
        self._look(message["important"], now)

    def _restart(self, important):
        self.important, self.first, self.latest = important, important + 1, important
        self.beyond, self.hashes = set(), {}

    def _frame(self, lane, frame, now, out):
        covers = frame["first_seq"] <= frame["last_seq"]
        if not covers and frame["first_seq"] != frame["last_seq"] + 1:
            self.fault(f"numbers {frame['first_seq']}..{frame['last_seq']}")
        if lane != CONTROL and (covers or frame["epoch"] != self.epoch):
            self.fault(f"on {lane}: numbers, or another epoch: {frame}")
        if frame["epoch"] != self.epoch:
            self.epoch, self.seq = frame["epoch"], frame["first_seq"] - 1
            self._restart(0)
        has_important = [e for e in frame["events"] if "important" in e]
        if lane == IMPORTANT and (
            not has_important
            or len(has_important) != len(frame["events"])
            or frame["totals"]
            or "online" in frame
        ):
            self.fault(f"on the important stream: {frame}")
        copied = lane == DATAGRAM and bool(has_important)
        if copied and (len(has_important) != len(frame["events"]) or frame["totals"]):
            self.fault(f"a copy with something else: {frame}")
        if lane == DATAGRAM and not copied and any("seq" in e for e in frame["events"]):
            self.fault(f"in a datagram: {frame}")
        if covers:
            # Numbers of important events may be left out, nothing may come twice.
            if frame["first_seq"] <= self.seq:
                self.fault(f"{frame['first_seq']} after {self.seq}")
            if not self.streams and frame["first_seq"] != self.seq + 1:
                self.fault(f"{frame['first_seq']} after {self.seq}: a hole without a gap")
            self.seq = max(self.seq, frame["last_seq"])
        for total in frame["totals"]:
            self._newest(("total", total["kind"], total["key"], total.get("user")), frame, lambda: (
                self.totals.__setitem__(
                    (total["kind"], total["key"], total.get("user")), total["sum"]
                )
            ))
        if "online" in frame:
            self._newest(("online",), frame, lambda: setattr(self, "online", frame["online"]))
        repeated = len(self.repeated)
        closed = self._events(lane, frame)
        known = len(self.repeated) - repeated == len(frame["events"])
        # Of an event and its copy the second asks for nothing.
        ack = None if lane != CONTROL and known else frame.get("ack")
        if self.acks and ack and has_important and self.slot < 65_536 // ack["one_in"]:
            delay = self.random.random() * ack["within_ms"] / 1000
            self._plan(now + delay, "ack", 0, 0)
            if "digest_from" in ack:
                self._plan(now + delay, "digest", ack["digest_from"], 0)
        elif self.acks and closed and not ack and not covers:
            out.append(("ack", {"room": self.name, "important": self.important}))
        if lane != DATAGRAM:
            self._look(frame["important"], now)

    def _newest(self, what, frame, take):
        if self.newest.get(what, 0) <= frame["time_ms"]:
            self.newest[what] = frame["time_ms"]
            take()

    def _events(self, lane, frame):
        """Shows what is new. Returns whether a hole was closed."""
        before, hole = self.important, bool(self.beyond) or self.latest > self.important
        numbers = [e["important"] for e in frame["events"] if "important" in e]
        if self.gone and numbers and frame["first_seq"] > frame["last_seq"]:
            self.gone = False
            self.important = max(self.important, min(numbers) - 1)
        for event in frame["events"]:
            number = event.get("important")
            if number is None:
                self.shown.append((lane, event))
                continue
            if number <= self.important or number in self.beyond:
                self.repeated.append((lane, event))
                continue
            self.shown.append((lane, event))
            self.hashes[number] = event_hash(number, event["id"])
            self.beyond.add(number)
            while self.important + 1 in self.beyond:
                self.important += 1
                self.beyond.remove(self.important)
        return hole and self.important > before

    def _look(self, latest, now):
        if latest > self.latest:
            self.latest = latest
        if self.latest > self.important and not any(e[1] == "pull" for e in self.later):
            self._plan(now + (PATIENCE if self.streams else 0), "pull", 0, 0)
