"""A viewer: rooms over a connection, with everything that a client has to do by itself."""

import asyncio
import time

from room import CONTROL, Room
from sockets import WebSocket
from transports import PATIENCE


class Viewer:
    """Joins rooms over one connection at a time; `rooms` outlive it."""

    def __init__(self, kind, server, token, datagrams=True):
        self.kind, self.server, self.token, self.datagrams = kind, server, token, datagrams
        self.rooms, self.answers = {}, {}
        self.connection, self.welcome, self.goaway = None, None, None
        self.heard, self.errors = [], []
        self.faults = []
        self.silent = False
        self._changed = asyncio.Event()
        self._task = None

    async def connect(self):
        """Connects; rooms known before are joined again from where they were."""
        self.connection = await self.kind.dial(self.server, self.datagrams)
        self.welcome = self.goaway = None
        self.on_control = 0
        self._task = asyncio.ensure_future(self._run(self.connection))
        for room in self.rooms.values():
            self._join(room)
        return self

    def _join(self, room):
        fields = {"room": room.name, "token": self.token, "acks": room.acks}
        if position := room.position():
            fields["resume"] = position
        self.connection.say("join", **fields)

    async def join(self, name, acks=True):
        """A room, joined."""
        streams = not issubclass(self.kind, WebSocket)
        room = self.rooms.setdefault(name, Room(name, acks, streams))
        self._join(room)
        await self.until(lambda: room.joined or self.errors, f"joined {name}")
        return room

    async def publish(self, room, event_id, kind, payload=b"null", **more):
        """The answer: its name and fields."""
        fields = {"room": room, "id": event_id, "kind": kind, "payload": payload, **more}
        self.answers.pop(event_id, None)
        self.connection.say("publish", **fields)
        await self.until(lambda: event_id in self.answers, f"an answer to {event_id}")
        return self.answers[event_id]

    async def until(self, holds, what, seconds=PATIENCE):
        """Waits until something holds that messages bring about."""
        deadline = time.monotonic() + seconds
        while not holds():
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"not within {seconds} s: {what}; heard {self.heard[-5:]}")
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), min(left, 1.0))
            except asyncio.TimeoutError:
                pass

    async def ended(self):
        """How the connection ended."""
        return await asyncio.wait_for(asyncio.shield(self.connection.end), PATIENCE)

    async def _run(self, connection):
        while True:
            dues = [at for room in self.rooms.values() if (at := room.next_due()) is not None]
            wait = max(0.0, min(dues) - time.monotonic()) if dues else None
            try:
                lane, name, message = await asyncio.wait_for(connection.inbox.get(), wait)
            except asyncio.TimeoutError:
                lane = name = message = None
            now = time.monotonic()
            if name == "end":
                for room in self.rooms.values():
                    room.broken()
                self._changed.set()
                return
            if name:
                self._hear(connection, lane, name, message, now)
            for room in self.rooms.values():
                for say, fields in room.due(now):
                    if not self.silent:
                        connection.say(say, **fields)
            self._changed.set()

    def _hear(self, connection, lane, name, message, now):
        self.heard.append((lane, name, message))
        if lane == CONTROL and name != "welcome":
            self.on_control += 1
        if name == "welcome":
            self.welcome = message
            if self.on_control:
                self.faults.append("welcome was not the first on the control stream")
            for room in self.rooms.values():
                room.slot = message["ack_slot"]
        elif name == "ping":
            connection.say("pong")
        elif name in ("accepted", "rejected"):
            self.answers[message["id"]] = (name, message)
        elif name == "goaway":
            self.goaway = message
        elif name == "error":
            self.errors.append(message)
        room = self.rooms.get(message.get("room", ""))
        if name == "left" and room:
            room.broken()
        elif room:
            room.slot = self.welcome["ack_slot"] if self.welcome else 0
            for say, fields in room.take(lane, name, message, now):
                if not self.silent:
                    connection.say(say, **fields)

    def all_faults(self):
        """What the server did that the document does not have."""
        found = list(self.faults) + (self.connection.faults if self.connection else [])
        return found + [fault for room in self.rooms.values() for fault in room.faults]

    async def leave(self):
        """Ends the connection, and waits until it has ended."""
        if self.connection and not self.connection.end.done():
            self.connection.leave()
        if self._task:
            await asyncio.wait({self._task}, timeout=PATIENCE)
