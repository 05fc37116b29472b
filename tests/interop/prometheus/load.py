"""Everything that a server can be asked, well and badly, until it is stopped."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import socket
import sys

import websockets

URL, ROOM, GOOD, WATCH, EXPIRED = sys.argv[1:6]
HOST, PORT = URL.removeprefix("http://").split(":")
WS = f"ws://{HOST}:{PORT}/v1/ws"
numbers = itertools.count()


def event(kind, payload=None, **fields):
    return {"id": f"load-{os.getpid()}-{next(numbers)}", "kind": kind, "payload": payload, **fields}


async def request(reader, writer, method, path, body=None, token=GOOD):
    """One request on a kept connection; the status."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: application/json\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    writer.write(head.encode() + b"\r\n" + data)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(answer.split("content-length:")[1].split("\r\n")[0])
    await reader.readexactly(length)
    return int(answer.split(" ")[1])


async def publisher():
    """A busy room: chat, likes, combos, entrances, cards, packets; and mistakes."""
    reader, writer = await asyncio.open_connection(HOST, PORT)
    path = f"/v1/rooms/{ROOM}/events"
    repeated = event("chat", "said twice", user="echo")
    for turn in itertools.count():
        events = [event("chat", "x" * random.randint(500, 3_900), user=f"u{i}") for i in range(12)]
        events += [event("like", None, amount=3) for _ in range(20)]
        events += [event("enter", None, user=f"e{turn}-{i}") for i in range(6)]
        events += [event("gift", {"name": "Rose"}, user="giver", key="rose", amount=1)]
        events += [event("stats", {"online": turn}, key="all"), repeated]
        if turn % 10 == 0:
            events.append(event("red_packet", {"title": "for all"}, user="host"))
            events.append(event("product_card", {"title": "lamp"}, key="pinned"))
            events.append(event("chat", "y" * 60_000))
            events.append(event("chat" * 40, "no such kind"))
            events.append({**event("chat", "no id"), "id": ""})
        await request(reader, writer, "POST", path, {"events": events})
        if turn % 10 == 5:
            await request(reader, writer, "POST", path, {"events": events[:1]}, token=EXPIRED)
            await request(reader, writer, "POST", path, b'{"events": 7}')
            await request(reader, writer, "GET", f"/v1/rooms/{ROOM}")
            await request(reader, writer, "GET", f"{path}?important_after=0")
            await request(reader, writer, "GET", "/v1/openapi.json")
            await request(reader, writer, "GET", "/nothing")
        await asyncio.sleep(0.05)


async def viewer(compression):
    """Reads everything, speaks now and then, leaves and comes back."""
    while True:
        with contextlib.suppress(websockets.WebSocketException, OSError):
            async with websockets.connect(
                WS, subprotocols=["tidegate.v1.json"], compression=compression, max_size=None
            ) as ws:
                await ws.send(json.dumps({"join": {"room": ROOM, "token": WATCH}}))
                async with asyncio.timeout(random.uniform(4, 20)):
                    async for message in ws:
                        name, body = next(iter(json.loads(message).items()))
                        if name == "ping":
                            await ws.send('{"pong":{}}')
                        if name == "frame" and random.random() < 0.2:
                            await say(ws, body)
        await asyncio.sleep(random.uniform(0, 0.5))


async def say(ws, frame):
    chat = {"room": ROOM, **event("chat", "hello")}
    await ws.send(json.dumps({"publish": chat}))
    await ws.send(json.dumps({"ack": {"room": ROOM, "important": frame["important"]}}))
    if random.random() < 0.1:
        packet = {"room": ROOM, **event("red_packet", "not allowed")}
        await ws.send(json.dumps({"publish": packet}))
        await ws.send(json.dumps({"pull": {"room": ROOM, "from": 1, "to": 2}}))


async def stranger():
    """Connections that get nowhere."""
    while True:
        with contextlib.suppress(websockets.WebSocketException, OSError):
            async with websockets.connect(WS, subprotocols=["tidegate.v1.json"]) as ws:
                await ws.send(json.dumps({"join": {"room": ROOM, "token": EXPIRED}}))
                await ws.recv()
                await ws.recv()
                await ws.send("not a message")
                await ws.recv()
        for wrong in (
            {"subprotocols": ["tidegate.v1.json"], "origin": "https://elsewhere.example"},
            {"subprotocols": ["no.such.protocol"]},
        ):
            with contextlib.suppress(websockets.WebSocketException, OSError):
                async with websockets.connect(WS, **wrong):
                    pass
        await asyncio.sleep(0.5)


async def sluggish(pause):
    """Joins with a tiny receive buffer, reads nothing for a while, then all."""
    loop = asyncio.get_running_loop()
    while True:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        with contextlib.suppress(OSError, TimeoutError):
            await loop.sock_connect(sock, (HOST, int(PORT)))
            key = base64.b64encode(os.urandom(16)).decode()
            upgrade = (
                f"GET /v1/ws HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                "Sec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n"
            )
            await loop.sock_sendall(sock, upgrade.encode() + masked({"join": {"room": ROOM, "token": WATCH}}))
            await asyncio.sleep(pause)
            async with asyncio.timeout(3):
                while await loop.sock_recv(sock, 65536):
                    pass
        sock.close()


def masked(message):
    """A client's text frame; the mask is zero, which changes nothing."""
    data = json.dumps(message).encode()
    return bytes([0x81, 0x80 | 126]) + len(data).to_bytes(2, "big") + bytes(4) + data


async def main():
    tasks = [publisher(), stranger(), sluggish(4), sluggish(7), sluggish(60)]
    tasks += [viewer("deflate") for _ in range(4)] + [viewer(None) for _ in range(8)]
    await asyncio.gather(*tasks)


asyncio.run(main())
