"""The same protocol over WebSocket, both subprotocols: docs/protocol.md, "WebSocket".

What holds for every transport is checked with these as well; they have the shape of
`transports.Connection`.
"""

import asyncio
import base64
import contextlib
import json

import websockets
from websockets.asyncio.client import connect

from messages import TABLES, ZERO, Malformed, client_message, server_message
from room import CONTROL
from transports import PATIENCE, End


def from_json(message, given):
    """The fields of a JSON message as `messages.take_fields` has them."""
    names = {name.rstrip("?*%"): (name, kind) for _, name, kind in TABLES[message]}
    if message == "event":
        given = dict(given)
        payload, encoding = given["payload"], given.pop("encoding", None)
        if encoding == "base64":
            given["payload"] = base64.b64decode(payload)
        else:
            given["payload"] = b"" if encoding else json.dumps(payload).encode()
    if unknown := set(given) - set(names):
        raise Malformed(f"{message} has {unknown}, which docs/protocol.md does not")
    out = {}
    for bare, (name, kind) in names.items():
        if bare not in given:
            if name.endswith("*"):
                raise Malformed(f"{message} has no {bare}")
            if name.endswith("%"):
                out[bare] = {}
            elif not name.endswith("?"):
                # Left out, where the document says so.
                if (message, bare) not in (("joined", "rebased"), ("total", "delta")):
                    raise Malformed(f"{message} has no {bare}")
                out[bare] = ZERO[kind]
        elif name.endswith("*"):
            out[bare] = [from_json(kind, one) for one in given[bare]]
        elif kind in TABLES:
            out[bare] = from_json(kind, given[bare])
        else:
            out[bare] = given[bare]
    return out


class WebSocket:
    """Subprotocol tidegate.v1.proto."""

    subprotocol = "tidegate.v1.proto"

    def __init__(self, socket):
        self.socket = socket
        self.inbox = asyncio.Queue()
        self.end = asyncio.get_running_loop().create_future()
        self.faults, self.datagrams = [], 0
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def dial(cls, server, _datagrams=True):
        """Connected, with the subprotocol agreed."""
        host, port = server
        url = f"ws://{host}:{port}/v1/ws"
        socket = await asyncio.wait_for(
            connect(url, subprotocols=[cls.subprotocol], max_size=None, max_queue=None, proxy=None),
            PATIENCE,
        )
        assert socket.subprotocol == cls.subprotocol
        return cls(socket)

    async def _read(self):
        try:
            async for data in self.socket:
                try:
                    name, message = self.read(data)
                except (Malformed, KeyError, ValueError) as error:
                    self.faults.append(f"{type(error).__name__}: {error}")
                    continue
                self.inbox.put_nowait((CONTROL, name, message))
        except websockets.ConnectionClosedError:
            pass
        closed = self.socket.protocol.close_rcvd
        by = "close code" if closed else "lost"
        self._ends(End(by, closed and closed.code, closed.reason if closed else ""))

    def _ends(self, end):
        if not self.end.done():
            self.end.set_result(end)
            self.inbox.put_nowait((None, "end", end))

    def read(self, data):
        """Name and fields of a message."""
        if not isinstance(data, bytes):
            raise Malformed("text where the subprotocol is binary")
        return server_message(data)

    def write(self, name, fields):
        """A message."""
        return client_message(name, fields)

    def say(self, name, **fields):
        asyncio.ensure_future(self._send(self.write(name, fields)))

    async def _send(self, data):
        # What is said to a connection that is ending is lost with it.
        with contextlib.suppress(websockets.ConnectionClosed):
            await self.socket.send(data)

    def leave(self):
        asyncio.ensure_future(self.socket.close())

    def drop(self):
        self.socket.transport.abort()
        self._ends(End("lost", None, "dropped here"))


class JsonWebSocket(WebSocket):
    """Subprotocol tidegate.v1.json."""

    subprotocol = "tidegate.v1.json"

    def read(self, data):
        if not isinstance(data, str):
            raise Malformed("binary where the subprotocol is text")
        ((name, fields),) = json.loads(data).items()
        return name, from_json(name, fields)

    def write(self, name, fields):
        fields = dict(fields)
        if "payload" in fields:
            payload = fields["payload"]
            try:
                fields["payload"] = json.loads(payload)
            except ValueError:
                fields["payload"] = base64.b64encode(payload).decode()
                fields["encoding"] = "base64"
        return json.dumps({name: fields})
