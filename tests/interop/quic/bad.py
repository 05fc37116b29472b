"""What a client may not do: the table at the end of docs/protocol.md, line by line."""

import asyncio
import os
import random
import socket
import time

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from messages import client_message, framed, put_field, put_fields, put_length
from transports import PATIENCE, NoConnection, RawQuic, Refused, WebTransport, dial

SEED = int(os.environ.get("TIDEGATE_SEED", random.SystemRandom().randrange(1 << 32)))
MAX_MESSAGE = 16_384
STREAM_LIMIT_ERROR, FLOW_CONTROL_ERROR, NO_ALPN = 0x04, 0x03, 0x178
KINDS = {"raw": RawQuic, "webtransport": WebTransport}


async def ends(connection, code, reason, by="close code"):
    """The connection ends so, in time; what was heard before."""
    end = await asyncio.wait_for(asyncio.shield(connection.end), PATIENCE)
    assert (end.by, end.code) == (by, code) and reason in (None, end.reason), end
    heard = []
    while not connection.inbox.empty():
        heard.append(connection.inbox.get_nowait()[1:])
    assert not connection.faults, connection.faults
    return heard


async def hears(connection, name):
    """The next message of this name."""
    while True:
        _, got, message = await asyncio.wait_for(connection.inbox.get(), PATIENCE)
        if got == name:
            return message
        assert got != "end", message


def join(place):
    """A good join."""
    return client_message("join", {"room": "bad", "token": place.token, "acks": True})


# ---- messages, over both transports ------------------------------------------


async def no_messages(place, kind):
    """Bytes that are no message: error bad_message, then 3500."""
    unknown = put_field(99, 2, b"what is this")
    for data in (b"", b"\xff\xff", unknown, b"\x0a\xff\x01", os.urandom(300)):
        connection = await dial(kind, place.address)
        connection.send(framed(data))
        heard = await ends(connection, 3500, "bad_message")
        errors = [message for name, message in heard if name == "error"]
        assert errors and errors[0]["code"] == "bad_message", (data, heard)


async def too_long(place, kind):
    """Lengths beyond the limit: 1009, before anything of the message comes."""
    for length in (MAX_MESSAGE + 1, 1 << 29, (1 << 62) - 1):
        connection = await dial(kind, place.address)
        connection.send(put_length(length))
        await ends(connection, 1009, "message_too_large")


async def odd_but_right(place, kind):
    """Lengths longer than needed, a byte at a time, unknown fields: all of it is heard."""
    for size in (2, 4, 8):
        connection = await dial(kind, place.address)
        for byte in framed(join(place), size):
            connection.send(bytes([byte]))
        assert (await hears(connection, "joined"))["room"] == "bad"
        connection.leave()
    # A field that this server does not know.
    inner = put_fields("join", {"room": "bad", "token": place.token, "acks": True})
    connection = await dial(kind, place.address)
    connection.send(framed(put_field(1, 2, inner + put_field(77, 2, b"new"))))
    assert (await hears(connection, "joined"))["room"] == "bad"
    # Several messages in one write.
    connection.send(framed(client_message("pong", {})) * 3)
    connection.send(framed(client_message("leave", {"room": "bad"})))
    await hears(connection, "left")
    connection.leave()


async def as_long_as_may_be(place, kind):
    """Messages of exactly the limit, more of them than all windows hold: heard."""
    connection = await dial(kind, place.address)
    connection.send(framed(join(place)))
    await hears(connection, "joined")
    # A pong with a field that no server knows.
    padding = MAX_MESSAGE
    while len(pong := put_field(6, 2, put_field(77, 2, bytes(padding)))) > MAX_MESSAGE:
        padding -= 1
    assert len(pong) == MAX_MESSAGE
    for _ in range(20):
        connection.send(framed(pong))
    connection.send(framed(client_message("leave", {"room": "bad"})))
    await hears(connection, "left")
    connection.leave()


async def never_finished(place, kind):
    """A message that is begun and not finished: 3003."""
    for begun in (put_length(100) + b"abc", b"\x40", put_length(MAX_MESSAGE)):
        connection = await dial(kind, place.address)
        connection.send(framed(join(place)))
        await hears(connection, "joined")
        connection.send(begun)
        await ends(connection, 3003, "message_timeout")


async def nothing_joined(place, kind):
    """A control stream without a join: 3002."""
    connection = await dial(kind, place.address)
    connection.send(framed(client_message("pong", {})))
    await ends(connection, 3002, "join_timeout")


async def without_end(place, kind):
    """Messages without end: rate_limited, then 3501."""
    connection = await dial(kind, place.address)
    connection.send(framed(join(place)))
    await hears(connection, "joined")
    leave = framed(client_message("leave", {"room": "elsewhere"}))
    connection.send(leave * 300)
    heard = await ends(connection, 3501, "too_many_messages")
    codes = {message["code"] for name, message in heard if name == "error"}
    assert codes == {"not_joined", "rate_limited"}, codes


async def goodbye(place, kind):
    """The control stream's end, or its reset, is a goodbye: 1000."""
    connection = await dial(kind, place.address)
    connection.send(framed(join(place)))
    await hears(connection, "joined")
    connection.send(b"", fin=True)
    await ends(connection, 1000, "peer")
    connection = await dial(kind, place.address)
    connection.send(framed(join(place)))
    await hears(connection, "joined")
    connection._quic.reset_stream(connection.control, 0)
    connection.transmit()
    await ends(connection, 1000, "peer")
    # In the middle of a message it is no different.
    connection = await dial(kind, place.address)
    connection.send(put_length(100) + b"abc", fin=True)
    await ends(connection, 1000, "peer")


async def datagram_flood(place, kind):
    """Datagrams from the client, at any rate: dropped; the connection goes on."""
    connection = await dial(kind, place.address)
    connection.send(framed(join(place)))
    await hears(connection, "joined")
    for number in range(5000):
        data = os.urandom(random.Random(SEED + number).randrange(1, 1000))
        if kind is WebTransport:
            connection.http.send_datagram(connection.session, data)
        else:
            connection._quic.send_datagram_frame(data)
        if number % 50 == 49:
            connection.transmit()
            await asyncio.sleep(0)
    await asyncio.wait_for(connection.ping(), PATIENCE)
    connection.send(framed(client_message("leave", {"room": "bad"})))
    await hears(connection, "left")
    connection.leave()


BOTH = [
    no_messages,
    too_long,
    odd_but_right,
    as_long_as_may_be,
    never_finished,
    nothing_joined,
    without_end,
    goodbye,
    datagram_flood,
]

# ---- QUIC itself --------------------------------------------------------------


async def more_streams(place):
    """A second bidirectional stream, or a unidirectional one: 1002."""
    for unidirectional in (False, True):
        connection = await dial(RawQuic, place.address)
        connection.send(framed(join(place)))
        await hears(connection, "joined")
        stream = connection._quic.get_next_available_stream_id(unidirectional)
        connection._quic.send_stream_data(stream, b"x")
        connection.transmit()
        await ends(connection, 1002, "protocol_error")


async def streams_without_end(place):
    """Streams opened whatever the limits say: STREAM_LIMIT_ERROR."""
    for unidirectional in (False, True):
        connection = await dial(RawQuic, place.address)
        connection.send(framed(join(place)))
        await hears(connection, "joined")
        # aioquic would wait for permission.
        quic = connection._quic
        quic._remote_max_streams_bidi = quic._remote_max_streams_uni = 10_000
        # The last one first: it lies beyond any limit.
        stream = quic.get_next_available_stream_id(unidirectional) + 4 * 5000
        quic._local_next_stream_id_bidi = quic._local_next_stream_id_uni = stream
        quic.send_stream_data(stream, b"x")
        quic._streams[stream].max_stream_data_remote = 1 << 30
        connection.transmit()
        await ends(connection, STREAM_LIMIT_ERROR, None, "quic")


async def stopped(place):
    """STOP_SENDING: on the control stream a goodbye, on the important stream a mistake."""
    for lane, code in ((0, 1000), (3, 1002)):
        connection = await dial(RawQuic, place.address)
        connection.send(framed(join(place)))
        await hears(connection, "joined")
        if lane == 3:
            await place.post("bad", "coupon")
            while (await asyncio.wait_for(connection.inbox.get(), PATIENCE))[0] != "important":
                pass
        connection._quic.stop_stream(lane, 0)
        connection.transmit()
        end = await asyncio.wait_for(asyncio.shield(connection.end), PATIENCE)
        assert (end.by, end.code) == ("close code", code), end


async def beyond_the_window(place):
    """Bytes that flow control does not allow: FLOW_CONTROL_ERROR."""
    connection = await dial(RawQuic, place.address)
    connection.send(framed(join(place)))
    await hears(connection, "joined")
    stream = connection._quic._streams[0]
    connection._quic._remote_max_data = 1 << 40
    stream.max_stream_data_remote = 1 << 40
    # Everything so far has arrived; go on far beyond it.
    await asyncio.wait_for(connection.ping(), PATIENCE)
    sender, far = stream.sender, 1 << 30
    sender._buffer, sender._buffer_start, sender._buffer_stop = bytearray(), far, far
    connection.send(b"x")
    await ends(connection, FLOW_CONTROL_ERROR, None, "quic")


async def wrong_alpn(place):
    """Another ALPN: no_application_protocol."""
    for alpn in ("h2", "http/1.1", "tidegate/0", "tidegate/2", "hq-interop"):
        try:
            await dial(RawQuic, place.address, alpn=alpn)
        except NoConnection as refused:
            end = refused.end
            assert (end.by, end.code) == ("quic", NO_ALPN), (alpn, end)
        else:
            raise AssertionError(f"{alpn} was accepted")


def udp(place):
    """A socket that talks to the server."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.connect(place.address)
    made.setblocking(False)
    return made


async def garbage(place):
    """UDP packets that are no QUIC: dropped. An unknown version: Version Negotiation. Never
    more bytes back than three times those that came."""
    chance = random.Random(SEED)
    made = udp(place)
    for _ in range(3000):
        made.send(chance.randbytes(chance.choice((0, 1, 20, 100, 1199, 1200, 1472))))
    # A long header with a version that nobody has.
    unknown = bytes([0xC3]) + b"\x1a\x2a\x3a\x4a" + b"\x08ABCDEFGH\x08abcdefgh"
    deadline, negotiated = time.monotonic() + PATIENCE, False
    while not negotiated and time.monotonic() < deadline:
        # Again and again: what came before may have filled a buffer on the way.
        made.send(unknown + bytes(1200 - len(unknown)))
        await asyncio.sleep(0.02)
        try:
            while True:
                answer = made.recv(2048)
                negotiated |= answer[0] & 0x80 and answer[1:5] == bytes(4) and b"abcdefgh" in answer
        except BlockingIOError:
            pass
    made.close()
    assert negotiated, "no Version Negotiation"


async def first_packets_only(place):
    """Initials without anything after them, from many ports: the answer to one is within
    three times its size (RFC 9000, section 8.1), and nobody else notices."""
    for _ in range(200):
        configuration = QuicConfiguration(alpn_protocols=["tidegate/1"], server_name="localhost")
        quic = QuicConnection(configuration=configuration)
        now = time.monotonic()
        quic.connect(place.address, now=now)
        made, sent, came = udp(place), 0, 0
        for data, _ in quic.datagrams_to_send(now=now):
            made.send(data)
            sent += len(data)
        await asyncio.sleep(0.005)
        try:
            while True:
                came += len(made.recv(2048))
        except BlockingIOError:
            pass
        made.close()
        assert came <= 3 * sent, f"{came} bytes for {sent}"


async def mangled(place):
    """Packets of a real connection with flipped bits, cut off, twice: dropped."""
    connection = await dial(RawQuic, place.address)
    chance, send = random.Random(SEED), connection._transport.sendto

    def mangle(data, address):
        send(data, address)
        other = bytearray(data)
        other[chance.randrange(len(other))] ^= 1 << chance.randrange(8)
        for copy in (bytes(other), data[: chance.randrange(1, len(data) + 1)], data):
            send(copy, address)

    class Mangling:
        def __getattr__(self, name):
            return mangle if name == "sendto" else getattr(original, name)

    original = connection._transport
    connection._transport = Mangling()
    connection.send(framed(join(place)))
    await hears(connection, "joined")
    for _ in range(20):
        await asyncio.wait_for(connection.ping(), PATIENCE)
    connection.send(framed(client_message("leave", {"room": "bad"})))
    await hears(connection, "left")
    connection._transport = original
    connection.leave()


async def nothing_said(place):
    """A handshake, and then nothing: 3003."""
    connection = await dial(RawQuic, place.address, open_=False)
    await ends(connection, 3003, "message_timeout")


QUIC = [
    more_streams,
    streams_without_end,
    stopped,
    beyond_the_window,
    wrong_alpn,
    garbage,
    first_packets_only,
    mangled,
    nothing_said,
]

# ---- WebTransport -------------------------------------------------------------


async def refusals(place):
    """Origins, paths and methods: 403, 404, 405, 400; and a good one behind each."""
    own = f"https://{place.address[0]}:{place.address[1]}"
    for attributes, status in (
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": f"{own}.evil.example"}, 403),
        ({"path": "/v1/ws"}, 404),
        ({"path": "/"}, 404),
        ({"path": "/v1/wt/more"}, 404),
        ({"origin": own}, 200),
        ({}, 200),
    ):
        try:
            connection = await dial(WebTransport, place.address, **attributes)
        except Refused as refused:
            assert refused.status == status, (attributes, refused)
        else:
            assert status == 200, f"{attributes} was accepted"
            connection.send(framed(join(place)))
            await hears(connection, "joined")
            connection.leave()
    connection = await dial(WebTransport, place.address, open_=False)
    statuses = [
        await connection.get("/v1/wt"),
        await connection.get("/v1/wt", "POST"),
        await connection.get("/"),
        await connection.get("/metrics"),
    ]
    assert statuses == [405, 405, 404, 404], statuses
    connection.close()
    connection = await dial(WebTransport, place.address, open_=False)
    statuses = [await connection.connect_session(protocol) for protocol in (None, "websocket")]
    assert statuses == [400, 400], statuses
    connection.close()


async def second_session(place):
    """One session per connection: the second is refused, the first goes on."""
    connection = await dial(WebTransport, place.address)
    connection.send(framed(join(place)))
    await hears(connection, "joined")
    first = connection.session
    assert await connection.connect_session() == 429
    assert connection.session == first
    connection.send(framed(client_message("leave", {"room": "bad"})))
    await hears(connection, "left")
    connection.leave()


async def more_session_streams(place):
    """Further streams of the session: reset (or not allowed); the control stream goes on."""
    connection = await dial(WebTransport, place.address)
    connection.send(framed(join(place)))
    await hears(connection, "joined")
    opened = []
    for unidirectional in (False, True):
        stream = connection.http.create_webtransport_stream(connection.session, unidirectional)
        connection._quic.send_stream_data(stream, framed(client_message("pong", {})))
        opened.append(stream)
    connection.transmit()
    await asyncio.wait_for(connection.ping(), PATIENCE)
    for stream in opened:
        blocked = connection._quic._streams[stream].is_blocked if stream in connection._quic._streams else False
        deadline = time.monotonic() + PATIENCE
        while not blocked and stream not in connection.resets and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert blocked or stream in connection.resets, f"stream {stream} was taken"
    connection.send(framed(client_message("leave", {"room": "bad"})))
    await hears(connection, "left")
    connection.leave()


async def half_open(place):
    """HTTP/3 without a session, and a session without a control stream: both end."""
    silent = await dial(WebTransport, place.address, open_=False)
    asked = await dial(WebTransport, place.address, open_=False)
    assert await asked.connect_session() == 200
    for connection in (silent, asked):
        end = await asyncio.wait_for(asyncio.shield(connection.end), PATIENCE)
        assert end.by != "lost", end


async def many_half_open(place):
    """A hundred of them at once keep nobody out."""
    connections = []
    for _ in range(100):
        connections.append(await dial(WebTransport, place.address, open_=False))
    good = await dial(WebTransport, place.address)
    good.send(framed(join(place)))
    await hears(good, "joined")
    good.leave()
    for connection in connections:
        await asyncio.wait_for(asyncio.shield(connection.end), PATIENCE)


async def bad_http(place):
    """Frames that HTTP/3 does not allow where they come: an error of HTTP/3."""
    # DATA on the control stream; SETTINGS on a request stream (RFC 9114, section 7.2).
    connection = await dial(WebTransport, place.address, open_=False)
    connection._quic.send_stream_data(connection.http._local_control_stream_id, b"\x00\x01x")
    connection.transmit()
    await ends(connection, 0x105, None, "h3")
    connection = await dial(WebTransport, place.address, open_=False)
    stream = connection._quic.get_next_available_stream_id()
    connection._quic.send_stream_data(stream, b"\x04\x00")
    connection.transmit()
    await ends(connection, 0x105, None, "h3")


WEBTRANSPORT = [
    refusals,
    second_session,
    more_session_streams,
    half_open,
    many_half_open,
    bad_http,
]
