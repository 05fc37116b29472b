"""What the carrier costs and what it can: 20 Mbit/s each way, then as much as it takes.

Measured when written, on two shared 2.5 GHz Xeon cores: see README.md.
"""

import json
import subprocess
import sys

from link import NEAR, Link
from wire import Rules

SECONDS = 5
# Sends and receives TCP at a rate (Mbit/s; 0: no limit) for some seconds; prints what came.
TALK = """
import socket, sys, threading, time
role, address, mbit, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
if role == "near":
    server = socket.create_server((address, 9100)); peer = server.accept()[0]
else:
    for _ in range(100):
        try: peer = socket.create_connection((address, 9100)); break
        except ConnectionRefusedError: time.sleep(0.05)
came = 0
def take():
    global came
    while chunk := peer.recv(262144): came += len(chunk)
taker = threading.Thread(target=take); taker.start()
begun, sent, piece = time.monotonic(), 0, bytes(25_000)
while (passed := time.monotonic() - begun) < seconds:
    if mbit and sent * 8 > mbit * 1e6 * passed: time.sleep(0.005)
    else: peer.sendall(piece); sent += len(piece)
peer.shutdown(socket.SHUT_WR); taker.join()
print(came * 8 / 1e6 / (time.monotonic() - begun))
"""


def talk(mbit, rules):
    """Mbit/s that came at each end, and what the carrier counted."""
    with Link(rules, rules) as link:
        say = lambda side: link.start(  # noqa: E731
            side,
            [sys.executable, "-c", TALK, side, NEAR, str(mbit), str(SECONDS)],
            stdout=subprocess.PIPE,
            text=True,
        )
        near, far = say("near"), say("far")
        came = [float(process.communicate()[0]) for process in (near, far)]
    return came, link.summary


def main():
    for mbit, rules in ((20, Rules()), (20, Rules(delay_ms=100)), (0, Rules())):
        came, summary = talk(mbit, rules)
        packets = sum(summary[way]["offered"] for way in ("up", "down"))
        cpu = summary["cpu_seconds"]
        print(
            json.dumps(
                {
                    "wanted_mbit_each_way": mbit or "all",
                    "delay_ms": rules.delay_ms,
                    "came_mbit": [round(one, 1) for one in came],
                    "packets": packets,
                    "carrier_cpu_percent": round(100 * cpu / SECONDS, 1),
                    "carrier_us_per_packet": round(1e6 * cpu / packets, 1),
                    "dropped": sum(summary[way]["queue_full"] for way in ("up", "down")),
                }
            )
        )


if __name__ == "__main__":
    main()
