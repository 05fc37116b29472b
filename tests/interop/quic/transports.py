"""Raw QUIC and WebTransport with aioquic: docs/protocol.md, "Transports".

Both put (lane, name, message) into `inbox`, and end with `end`, an `End`. Whatever the
server does on the wire that the document does not have goes into `faults`.
"""

import asyncio
import socket
import ssl
import struct
from dataclasses import dataclass

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.h3 import events as h3
from aioquic.h3.connection import H3Connection
from aioquic.quic import events as quic
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from messages import Malformed, Unframe, client_message, framed, server_message
from room import CONTROL, DATAGRAM, IMPORTANT

RAW_ALPN, H3_ALPN = "tidegate/1", "h3"
PATH = "/v1/wt"
CLOSE_WEBTRANSPORT_SESSION = 0x2843
# So long anything may take that must happen.
PATIENCE = 20.0


@dataclass
class End:
    """How a connection ended. `by`: "close code", "quic" (the transport's own error),
    "h3", "stateless reset" or "lost"."""

    by: str
    code: int | None
    reason: str


class Refused(Exception):
    """A WebTransport session was answered with another status than 200."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


class Connection(QuicConnectionProtocol):
    """What both have in common."""

    def __init__(self, connection, **_):
        super().__init__(connection)
        self.inbox = asyncio.Queue()
        self.ready = asyncio.get_running_loop().create_future()
        self.end = asyncio.get_running_loop().create_future()
        self.faults, self.datagrams = [], 0
        self.unframe = {CONTROL: Unframe(), IMPORTANT: Unframe()}
        self.ended = set()

    @classmethod
    async def dial(cls, server, datagrams=True):
        """See `dial`."""
        return await dial(cls, server, datagrams)

    def ends(self, by, code, reason):
        if not self.end.done():
            self.end.set_result(End(by, code, reason))
            self.inbox.put_nowait((None, "end", self.end.result()))

    def arrives(self, lane, data, fin=False):
        """Bytes of a stream, or a datagram."""
        if lane == DATAGRAM:
            self.datagrams += 1
            self.hears(lane, data)
        else:
            for message in self.unframe[lane].feed(data):
                self.hears(lane, message)
            if fin:
                self.ended.add(lane)

    def hears(self, lane, data):
        try:
            name, message = server_message(data)
        except Malformed as error:
            self.faults.append(f"{lane}: {error}")
            return
        if lane != CONTROL and name != "frame":
            self.faults.append(f"{name} on {lane}")
        self.inbox.put_nowait((lane, name, message))

    def say(self, name, **fields):
        """A message on the control stream."""
        self.send(framed(client_message(name, fields)))

    async def rebind(self, new_id=False):
        """Goes on from another port, as after a change of network. With `new_id` under
        another connection id as well, as RFC 9000 section 9.5 wants it of a client that
        knows of the change; without, as behind a NAT that has forgotten."""
        old = self._transport
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((old.get_extra_info("sockname")[0], 0))
        port = made.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: Into(self), sock=made)
        old.close()
        if new_id:
            self.change_connection_id()
        await asyncio.wait_for(self.ping(), PATIENCE)
        return port

    def datagram_received(self, data, addr):
        # aioquic does not look for stateless resets (RFC 9000, section 10.3.1).
        known = [self._quic._peer_cid, *self._quic._peer_cid_available]
        tokens = [one.stateless_reset_token for one in known if one.stateless_reset_token]
        if len(data) >= 21 and data[-16:] in tokens:
            self._silence()
            self.ends("stateless reset", None, "")
        else:
            super().datagram_received(data, addr)

    def speak(self):
        """Sends a packet, if the connection has not ended."""
        if not self.end.done():
            self._quic.send_ping(0)
            self.transmit()

    def leave(self, code=0, reason=""):
        """Says goodbye as a client does."""
        self.close(code, reason)

    def drop(self):
        """Is gone without a word: no packet comes or goes any more."""
        self._silence()
        self.ends("lost", None, "dropped here")

    def _silence(self):
        self._transport.close()
        if self._timer:
            self._timer.cancel()


class Into(asyncio.DatagramProtocol):
    """A new socket's packets for an old connection."""

    def __init__(self, connection):
        self.connection = connection

    def datagram_received(self, data, addr):
        self.connection.datagram_received(data, addr)


class RawQuic(Connection):
    """ALPN tidegate/1."""

    alpn_wanted = RAW_ALPN

    async def open(self):
        """The control stream is there with its first byte."""
        self.control = self._quic.get_next_available_stream_id()
        if self.control != 0:
            self.faults.append(f"the first stream is {self.control}")

    def send(self, data, fin=False):
        self._quic.send_stream_data(self.control, data, fin)
        self.transmit()

    def quic_event_received(self, event):
        if isinstance(event, quic.HandshakeCompleted):
            self.ready.set_result(event)
        elif isinstance(event, quic.StreamDataReceived):
            lane = {0: CONTROL, 3: IMPORTANT}.get(event.stream_id)
            if lane:
                self.arrives(lane, event.data, event.end_stream)
            else:
                self.faults.append(f"the server opened stream {event.stream_id}")
        elif isinstance(event, quic.DatagramFrameReceived):
            self.arrives(DATAGRAM, event.data)
        elif isinstance(event, quic.StreamReset):
            self.faults.append(f"stream {event.stream_id} was reset: {event.error_code}")
        elif isinstance(event, quic.ConnectionTerminated):
            # Without a frame type it is the application's own.
            by = "close code" if event.frame_type is None else "quic"
            self.ends(by, event.error_code, event.reason_phrase)


class WebTransport(Connection):
    """ALPN h3, extended CONNECT."""

    alpn_wanted = H3_ALPN
    origin = None
    path = PATH

    def __init__(self, connection, **keywords):
        super().__init__(connection, **keywords)
        self.http = None
        self.session = self.control = self.important = None
        self.answers, self.data, self.capsules = {}, {}, b""
        self.foreign, self.resets = set(), {}

    async def open(self):
        """The session, and the control stream in it."""
        status = await self.connect_session()
        if status != 200:
            raise Refused(status)
        self.control = self.http.create_webtransport_stream(self.session)
        self.transmit()

    async def connect_session(self, protocol="webtransport", origin=None, path=None):
        """Asks for a session; the status."""
        headers = [
            (b":method", b"CONNECT"),
            (b":scheme", b"https"),
            (b":authority", f"{self.server[0]}:{self.server[1]}".encode()),
            (b":path", (path or self.path).encode()),
        ]
        if protocol:
            headers.append((b":protocol", protocol.encode()))
        origin = origin or self.origin
        if origin:
            headers.append((b"origin", origin.encode()))
        return await self.request(headers, fin=False, session=True)

    async def request(self, headers, fin=True, session=False):
        """Sends a request; the status of the answer."""
        stream = self._quic.get_next_available_stream_id()
        if session and self.session is None:
            self.session = stream
        answer = self.answers.setdefault(stream, asyncio.get_running_loop().create_future())
        self.http.send_headers(stream, headers, fin)
        self.transmit()
        ended = asyncio.ensure_future(asyncio.shield(self.end))
        await asyncio.wait({answer, ended}, return_when="FIRST_COMPLETED", timeout=PATIENCE)
        ended.cancel()
        if not answer.done():
            raise ConnectionError(f"no answer: {self.end.result() if self.end.done() else 'none'}")
        self.last_stream = stream
        return answer.result()

    async def get(self, path, method="GET"):
        """A plain request; the status."""
        authority = f"{self.server[0]}:{self.server[1]}".encode()
        headers = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", authority),
            (b":path", path.encode()),
        ]
        return await self.request(headers)

    def send(self, data, fin=False):
        self._quic.send_stream_data(self.control, data, fin)
        self.transmit()

    def leave(self, code=0, reason=""):
        capsule = struct.pack("!I", code) + reason.encode()
        data = encode_uint_var(CLOSE_WEBTRANSPORT_SESSION) + encode_uint_var(len(capsule)) + capsule
        self.http.send_data(self.session, data, True)
        self.transmit()

    def quic_event_received(self, event):
        if isinstance(event, quic.HandshakeCompleted):
            self.http = H3Connection(self._quic, enable_webtransport=True)
            self.ready.set_result(event)
        elif isinstance(event, quic.StreamReset):
            self.resets[event.stream_id] = event.error_code
            answer = self.answers.get(event.stream_id)
            if answer and not answer.done():
                answer.set_exception(ConnectionError(f"reset with {event.error_code:#x}"))
        elif isinstance(event, quic.StopSendingReceived):
            self.resets.setdefault(event.stream_id, event.error_code)
        elif isinstance(event, quic.ConnectionTerminated):
            by = "h3" if event.frame_type is None else "quic"
            self.ends(by, event.error_code, event.reason_phrase)
        if isinstance(event, quic.StreamDataReceived) and event.stream_id == self.control:
            # aioquic would look for HTTP/3 frames on a stream that it opened itself.
            self.arrives(CONTROL, event.data, event.end_stream)
        elif self.http:
            for one in self.http.handle_event(event):
                self.http_event(one)

    def http_event(self, event):
        if isinstance(event, h3.HeadersReceived):
            status = int(dict(event.headers)[b":status"])
            answer = self.answers.get(event.stream_id)
            if answer is None or answer.done():
                self.faults.append(f"headers on stream {event.stream_id}: {event.headers}")
            else:
                answer.set_result(status)
        elif isinstance(event, h3.DataReceived):
            if event.stream_id == self.session:
                self.capsules += event.data
                self.read_capsules()
                if event.stream_ended:
                    self.ends("close code", 0, "the session's stream ended")
            else:
                self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
        elif isinstance(event, h3.WebTransportStreamDataReceived):
            if event.session_id != self.session:
                self.faults.append(f"a stream of session {event.session_id}")
            elif event.stream_id % 4 == 3 and self.important in (None, event.stream_id):
                self.important = event.stream_id
                self.arrives(IMPORTANT, event.data, event.stream_ended)
            else:
                self.foreign.add(event.stream_id)
        elif isinstance(event, h3.DatagramReceived):
            if event.stream_id == self.session:
                self.arrives(DATAGRAM, event.data)
            else:
                self.faults.append(f"a datagram of session {event.stream_id}")

    def read_capsules(self):
        """RFC 9297, section 3.2: type, length, value."""
        while self.capsules:
            buffer = Buffer(data=self.capsules)
            try:
                kind, size = buffer.pull_uint_var(), buffer.pull_uint_var()
                value = buffer.pull_bytes(size)
            except Exception:  # Not all of it is there.
                return
            self.capsules = self.capsules[buffer.tell() :]
            if kind == CLOSE_WEBTRANSPORT_SESSION:
                code = struct.unpack("!I", value[:4])[0]
                self.ends("close code", code, value[4:].decode())


async def dial(
    kind,
    server,
    datagrams=True,
    alpn=None,
    open_=True,
    configure=None,
    tickets=None,
    **attributes,
):
    """A connection, its handshake done and (with `open_`) its control stream there."""
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=[alpn or kind.alpn_wanted],
        # WebTransport cannot be without datagrams.
        max_datagram_frame_size=65_536 if datagrams or kind is WebTransport else None,
        server_name="localhost",
        verify_mode=ssl.CERT_NONE,
        idle_timeout=30.0,
    )
    if configure:
        configure(configuration)
    loop = asyncio.get_running_loop()
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    connection = QuicConnection(configuration=configuration, session_ticket_handler=tickets)
    transport, protocol = await loop.create_datagram_endpoint(lambda: kind(connection), sock=made)
    protocol.server = server
    for name, value in attributes.items():
        setattr(protocol, name, value)
    try:
        protocol.connect(server)
        either = {protocol.ready, protocol.end}
        await asyncio.wait(either, return_when="FIRST_COMPLETED", timeout=PATIENCE)
        if not protocol.ready.done():
            end = protocol.end.result() if protocol.end.done() else End("lost", None, "no answer")
            raise NoConnection(end)
        if open_:
            await asyncio.wait_for(protocol.open(), PATIENCE)
    except BaseException:
        protocol.close()
        transport.close()
        raise
    return protocol


class NoConnection(Exception):
    """The handshake failed."""

    def __init__(self, end):
        super().__init__(str(end))
        self.end = end
