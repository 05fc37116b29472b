"""What a client may do, over each transport."""

import asyncio
import json

from room import CONTROL, DATAGRAM, IMPORTANT
from sockets import JsonWebSocket, WebSocket
from transports import PATIENCE, RawQuic, WebTransport, dial
from viewer import Viewer

# Whether there are streams beside each other, and whether datagrams are allowed.
VARIANTS = {
    "websocket-json": (JsonWebSocket, False),
    "websocket-proto": (WebSocket, False),
    "raw": (RawQuic, True),
    "raw-no-datagrams": (RawQuic, False),
    "webtransport": (WebTransport, True),
}
# Port changes in the test of the address change: with two shards, all of these lead to one
# and the same shard once in 2,048 runs.
REBINDS = 12


STREAMS = ("raw", "raw-no-datagrams", "webtransport")


def lane_of_important(variant):
    """Where important events come when they come first."""
    return IMPORTANT if variant in STREAMS else CONTROL


class Place:
    """A server, and what is needed to use it."""

    def __init__(self, server):
        self.server, self.number = server, 0
        self.address = ("127.0.0.1", server.port)
        self.publisher = server.token("im", "publisher")
        self.token = server.token("somebody")

    def viewer(self, variant, user="mara", **options):
        kind, datagrams = VARIANTS[variant]
        token = self.server.token(user, **options)
        return Viewer(kind, self.address, token, datagrams)

    async def post(self, room, kind, count=1, payload=None, **more):
        """Publishes events; their ids."""
        events = []
        for _ in range(count):
            self.number += 1
            event = {"id": f"e{self.number}", "kind": kind, "user": "im", "payload": payload}
            events.append({**event, **more})
        status, answer = await asyncio.to_thread(
            self.server.post, room, {"events": events}, self.publisher
        )
        refused = [one for one in answer.get("results", []) if one["status"] != "accepted"]
        assert status == 200 and not refused, (status, answer)
        return [event["id"] for event in events]


def ids(room, lanes=(CONTROL, IMPORTANT, DATAGRAM)):
    """Ids of the events shown on these lanes."""
    return [event["id"] for lane, event in room.shown if lane in lanes]


def frames(viewer, lane):
    """Frames heard on a lane."""
    return [m for at, name, m in viewer.heard if at == lane and name == "frame"]


async def three_lanes(place, variant):
    """Important on its stream, ordered on the control stream, sampled in datagrams."""
    viewer = await place.viewer(variant).connect()
    room = await viewer.join(f"lanes-{variant}")
    loose = DATAGRAM if VARIANTS[variant][1] else CONTROL
    assert viewer.heard[0][1] == "welcome" and viewer.heard[1][1] == "joined", viewer.heard
    (chat,) = await place.post(room.name, "chat", payload="hello")
    (packet,) = await place.post(room.name, "red_packet", payload={"id": 7})
    await place.post(room.name, "gift", key="rose", amount=3)
    await viewer.until(lambda: {chat, packet} <= set(ids(room)), "chat and red packet")
    assert chat in ids(room, (CONTROL,)) and packet in ids(room, (lane_of_important(variant),)), room.shown
    gift = ("gift", "rose", "im")
    await viewer.until(lambda: room.totals.get(gift) == 3, "the gift's total")
    # A datagram may be lost: the next one has the sum as well.
    for liked in range(1, 50):
        await place.post(room.name, "like", key="heart", amount=1)
        try:
            await viewer.until(lambda: room.totals.get(("like", "heart", None)) == liked, "like", 1)
            break
        except AssertionError:
            continue
    sums = [total for frame in frames(viewer, loose) for total in frame["totals"]]
    assert any(total["kind"] == "like" for total in sums), (loose, viewer.heard)
    event = next(event for _, event in room.shown if event["id"] == packet)
    assert json.loads(event["payload"]) == {"id": 7} and event["user"] == "im", event
    # What does not fit into a datagram comes in order with the rest.
    (large,) = await place.post(room.name, "stats", payload="x" * 3000, key="k")
    await viewer.until(lambda: large in ids(room), "a large sampled event")
    assert large in ids(room, (CONTROL,)), "too large for a datagram"
    if loose == CONTROL:
        assert viewer.connection.datagrams == 0
    return viewer


async def speaking(place, variant):
    """publish: accepted with its number, taken once, or refused with a code."""
    viewer = await place.viewer(variant).connect()
    room = await viewer.join(f"speaking-{variant}")
    name, first = await viewer.publish(room.name, "a", "chat", b'"hello"')
    assert name == "accepted" and first["seq"] > 0, first
    assert await viewer.publish(room.name, "a", "chat", b'"hello"') == ("accepted", first)
    await viewer.until(lambda: ids(room) == ["a"], "its own chat line, once")
    assert await viewer.publish(room.name, "b", "like", amount=2) == ("accepted", {"id": "b"})
    for event, kind, where, code in (
        ("c", "coupon", room.name, "forbidden_kind"),
        ("d", "chat", "elsewhere", "not_joined"),
        ("e", "", room.name, "bad_kind"),
        ("f", "x" * 65, room.name, "bad_kind"),
    ):
        name, answer = await viewer.publish(where, event, kind)
        assert (name, answer["code"]) == ("rejected", code), answer
        assert "retry_after_ms" not in answer, answer
    name, answer = await viewer.publish(room.name, "g", "chat", b"x" * 5000)
    assert (name, answer["code"]) == ("rejected", "payload_too_large"), answer
    # What is no JSON is bytes here.
    name, answer = await viewer.publish(room.name, "h", "chat", b"\x00\xff")
    await viewer.until(lambda: "h" in ids(room), "bytes")
    assert next(e for _, e in room.shown if e["id"] == "h")["payload"] == b"\x00\xff"
    return viewer


async def pulling(place, variant):
    """pull: important events again, on the control stream, in a frame without numbers."""
    viewer = await place.viewer(variant).connect()
    room = await viewer.join(f"pulling-{variant}")
    packets = await place.post(room.name, "red_packet", 5)
    await viewer.until(lambda: ids(room) == packets, "five red packets in order")
    viewer.connection.say("pull", room=room.name, **{"from": 2, "to": 4})
    await viewer.until(lambda: len(room.repeated) == 3, "three again")
    assert [(lane, e["id"]) for lane, e in room.repeated] == [
        (CONTROL, packet) for packet in packets[1:4]
    ]
    last = frames(viewer, CONTROL)[-1]
    assert last["first_seq"] == last["last_seq"] + 1, last
    viewer.connection.say("pull", room="elsewhere", **{"from": 1, "to": 2})
    await viewer.until(lambda: viewer.errors, "an error")
    assert viewer.errors[0]["code"] == "not_joined" and viewer.errors[0]["room"] == "elsewhere"
    # Who joins now finds nothing missing, and can have the past.
    late = await place.viewer(variant, "late").connect()
    there = await late.join(room.name)
    assert (there.important, ids(there)) == (5, [])
    late.connection.say("pull", room=room.name, **{"from": 1, "to": 5})
    await late.until(lambda: len(there.repeated) == 5, "all five")
    await late.leave()
    return viewer


async def acknowledging(place, variant):
    """ack as told; who is silent is sent the events again, then hears missed."""
    viewer = await place.viewer(variant).connect()
    room = await viewer.join(f"acks-{variant}")
    await place.post(room.name, "coupon", 3)
    await viewer.until(lambda: room.acked and room.important == 3, "an ack asked for and sent")
    assert any("ack" in frame for frame in frames(viewer, lane_of_important(variant))), viewer.heard
    silent = place.viewer(variant, "silent")
    silent.silent = True
    await silent.connect()
    quiet = await silent.join(room.name)
    await place.post(room.name, "coupon")
    missed = lambda: [m for _, name, m in silent.heard if name == "missed"]  # noqa: E731
    await silent.until(missed, "missed, after being sent it again")
    assert (missed()[0]["from"], missed()[0]["to"]) == (4, 4), missed()
    assert len(quiet.repeated) >= 1 and quiet.important == 4, quiet.repeated
    # From here on it does as told: it pulls what it was told to.
    before = len(quiet.repeated)
    silent.silent = False
    await place.post(room.name, "coupon")
    quiet._plan(0, "again", 4, 4)
    await silent.until(lambda: len(quiet.repeated) > before, "pulled again")
    # What was acknowledged is not sent again.
    assert not [e for _, e in room.repeated if e["important"] <= 3], room.repeated
    await silent.leave()
    return viewer


async def comparing(place, variant):
    """digest: silence if both sides agree, missed if not."""
    viewer = await place.viewer(variant).connect()
    room = await viewer.join(f"digest-{variant}")
    await place.post(room.name, "coupon", 4)
    await viewer.until(lambda: room.important == 4, "four")
    ((say, right),) = room.digest(1)
    viewer.connection.say(say, **right)
    viewer.connection.say(say, **{**right, "from": 0})
    viewer.connection.say(say, **{**right, "xor": right["xor"] ^ 1, "from": 2})
    missed = lambda: [m for _, name, m in viewer.heard if name == "missed"]  # noqa: E731
    await viewer.until(missed, "missed")
    assert [(m["from"], m["to"]) for m in missed()] == [(2, 4)], missed()
    await viewer.until(lambda: len(room.repeated) >= 3, "pulled as told")
    return viewer


async def coming_and_going(place, variant):
    """Several rooms, leave and join again, and every refusal of a join."""
    viewer = await place.viewer(variant, rooms=["go-*"]).connect()
    names = [f"go-{variant}-{number}" for number in range(8)]
    rooms = [await viewer.join(name) for name in names]
    refused = []

    async def join(name, token=viewer.token):
        """Expects an error; its code."""
        viewer.errors.clear()
        viewer.connection.say("join", room=name, token=token, acks=True)
        await viewer.until(lambda: viewer.errors, f"an error for {name}")
        error = viewer.errors.pop()
        refused.append(error)
        assert error["room"] == name and not error["temporary"], error
        return error["code"]

    assert await join(names[0]) == "already_joined"
    assert await join("go-too-many") == "too_many_rooms"
    assert await join("stay") == "forbidden_room"
    assert await join("no room/name") == "forbidden_room"
    assert await join("go-x", "not.a.token") == "token_malformed"
    assert await join("go-x", "x" * 5000) == "token_too_large"
    viewer.connection.say("leave", room=names[0])
    await viewer.until(lambda: not rooms[0].joined, "left")
    # Of how many are online it may have heard while it was there.
    of_it = lambda: [f for f in frames(viewer, CONTROL) if f["room"] == names[0]]  # noqa: E731
    before = len(of_it())
    assert await join(names[0], place.server.token("other")) == "other_user"
    (lost,) = await place.post(names[0], "coupon")
    (found,) = await place.post(names[1], "coupon")
    await viewer.until(lambda: ids(rooms[1]) == [found], "the other room's event")
    assert ids(rooms[0]) == [] and len(of_it()) == before, of_it()
    # Joining again with where it left off brings it.
    await viewer.join(names[0])
    await viewer.until(lambda: ids(rooms[0]) == [lost], "what it missed while away")
    viewer.connection.say("leave", room="never joined")
    await viewer.until(lambda: viewer.errors, "an error")
    assert viewer.errors[0]["code"] == "not_joined"
    return viewer


async def pinging(place, variant):
    """ping, and 3001 for who does not answer."""
    viewer = await place.viewer(variant).connect()
    await viewer.join(f"ping-{variant}")
    mute = place.viewer(variant, "mute")
    await mute.connect()
    await mute.join(f"ping-{variant}")
    mute.connection.say = lambda *_, **__: None
    end = await mute.ended()
    assert (end.by, end.code, end.reason) == ("close code", 3001, "pong_timeout"), end
    await viewer.until(lambda: any(n == "ping" for _, n, _ in viewer.heard), "ping")
    await place.post(f"ping-{variant}", "coupon")
    await viewer.until(lambda: viewer.rooms[f"ping-{variant}"].important == 1, "still there")
    return viewer


async def moving(place, variant):
    """The client's address changes in mid-flight: nothing lost, the same connection."""
    viewer = await place.viewer(variant).connect()
    room = await viewer.join(f"moving-{variant}")
    session, ports, packets, lines = viewer.welcome["session"], set(), [], []
    for round_ in range(REBINDS):
        packets += await place.post(room.name, "red_packet", 2)
        moved = asyncio.ensure_future(viewer.connection.rebind(new_id=round_ % 2 == 1))
        lines += await place.post(room.name, "chat", 3)
        ports.add(await moved)
        packets += await place.post(room.name, "red_packet")
    name, _ = await viewer.publish(room.name, "mine", "chat")
    assert name == "accepted"
    await viewer.until(lambda: room.important == len(packets), "every red packet")
    await viewer.until(lambda: "mine" in ids(room), "every line")
    shown = ids(room)
    assert sorted(shown) == sorted(packets + lines + ["mine"]), shown
    assert [one for one in shown if one in set(lines)] == lines, "in order"
    assert len(ports) == REBINDS and not viewer.connection.end.done()
    welcomes = [m for _, n, m in viewer.heard if n == "welcome"]
    assert [w["session"] for w in welcomes] == [session] and not room.gaps, room.gaps
    return viewer


async def known_before(place, variant):
    """A TLS session is resumed, without data before the handshake's end (0-RTT)."""
    kind, datagrams = VARIANTS[variant]
    tickets = []
    first = await dial(kind, place.address, datagrams, tickets=tickets.append)
    viewer = place.viewer(variant)
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not tickets and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    assert tickets, "no ticket"
    assert not tickets[0].max_early_data_size, tickets[0]
    first.leave()

    def resume(configuration):
        configuration.session_ticket = tickets[0]

    again = await dial(kind, place.address, datagrams, configure=resume)
    handshake = again.ready.result()
    assert handshake.session_resumed and not handshake.early_data_accepted, handshake
    again.say("join", room=f"known-{variant}", token=viewer.token, acks=True)
    names = [(await asyncio.wait_for(again.inbox.get(), PATIENCE))[1] for _ in range(2)]
    assert names == ["welcome", "joined"], names
    again.leave()


async def leaving(place, variant):
    """The client closes: the server has one viewer less, and others see it."""
    stays = await place.viewer(variant, "stays").connect()
    room = await stays.join(f"leaving-{variant}")
    goes = await place.viewer(variant, "goes").connect()
    await goes.join(room.name)
    await stays.until(lambda: room.online == 2, "two online")
    await goes.leave()
    await stays.until(lambda: room.online == 1, "one online")
    return stays


async def returning(place, variants, sure):
    """A restart of the server, by SIGTERM or (`sure`) SIGKILL: every viewer comes back,
    and has each important event once."""
    viewers, home = {}, f"home-{variants[0]}-{sure}"
    for variant in variants:
        viewers[variant] = await place.viewer(variant).connect()
        await viewers[variant].join(home)
    packets = await place.post(home, "red_packet", 3)
    lines = await place.post(home, "chat", 3)
    for viewer in viewers.values():
        room = viewer.rooms[home]
        await viewer.until(lambda: set(packets + lines) <= set(ids(room)), "before")
    await asyncio.to_thread(place.server.end, sure)
    for variant, viewer in viewers.items():
        if not sure:
            end = await viewer.ended()
            assert (end.by, end.code, end.reason) == ("close code", 3000, "drain"), (variant, end)
            assert 0 <= viewer.goaway["reconnect_after_ms"] <= 500, (variant, viewer.goaway)
    await asyncio.to_thread(place.server.__enter__)
    if sure:
        for variant, viewer in viewers.items():
            if variant in STREAMS:
                # With its next packet a client learns that it is not known any more.
                viewer.connection.speak()
                end = await viewer.ended()
                assert end.by == "stateless reset", (variant, end)
            else:
                assert (await viewer.ended()).by == "lost", variant
    packets += await place.post(home, "red_packet", 4)
    lines += await place.post(home, "chat", 1)
    for viewer in viewers.values():
        await viewer.connect()
    packets += await place.post(home, "red_packet", 2)
    faults = []
    for variant, viewer in viewers.items():
        room = viewer.rooms[home]
        await viewer.until(lambda: set(packets) <= set(ids(room)), f"{variant}: every packet")
        shown = [one for one in ids(room) if one in set(packets)]
        # A stream beside the other may be quicker; a single one keeps the order.
        ordered = sorted(shown, key=packets.index) if variant in STREAMS else shown
        assert ordered == packets and room.important == len(packets), (variant, shown)
        joined = [m for _, n, m in viewer.heard if n == "joined"]
        assert joined[0]["epoch"] == joined[1]["epoch"], (variant, joined)
        name, answer = await viewer.publish(home, lines[0], "chat")
        assert name == "accepted", (variant, answer)
        await viewer.leave()
        faults += viewer.all_faults()
    assert not faults, faults


async def coming_back_soon(place, variant):
    """The connection breaks without a word: resume brings all that was missed."""
    viewer = await place.viewer(variant).connect()
    room = await viewer.join(f"soon-{variant}")
    wanted = await place.post(room.name, "chat", 2) + await place.post(room.name, "coupon", 2)
    await viewer.until(lambda: sorted(ids(room)) == sorted(wanted), "before")
    viewer.connection.drop()
    await viewer.ended()
    for kind in ("chat", "coupon", "chat"):
        wanted += await place.post(room.name, kind)
    await viewer.connect()
    await viewer.until(lambda: sorted(ids(room)) == sorted(wanted), "with what was missed")
    joined = [m for _, n, m in viewer.heard if n == "joined"]
    assert joined[1]["recovered"] and not room.repeated, joined[1]
    return viewer


CHECKS = [
    three_lanes,
    speaking,
    pulling,
    acknowledging,
    comparing,
    coming_and_going,
    pinging,
    leaving,
    coming_back_soon,
]
# Over QUIC.
STREAM_CHECKS = [moving, known_before]
