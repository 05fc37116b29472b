"""The link does what it says: by itself under virtual time, and between namespaces.

What comes back over a lossy line is compared with the seeded sequence packet by packet,
not by shares. Without root, or where there are no namespaces, the second half is skipped.
"""

import hashlib
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

from link import FAR, NEAR, Link, NotPermitted
from wire import Direction, Rules, is_lost

HERE = pathlib.Path(__file__).resolve().parent
PORT = 9000
# So long a test waits for what must come, before it fails.
PATIENCE = 30


def sent_over(rules, offers, seed=7):
    """Offers (time, size) to a direction; the arrivals as (time, number of the packet)."""
    line = Direction(rules, seed, 0)
    arrived = []

    def take(until):
        while (at := line.next_arrival()) is not None and at <= until:
            arrived.extend((at, struct.unpack("!I", p[:4])[0]) for p in line.arrivals(at))

    for number, (now, size) in enumerate(offers):
        take(now)
        line.offer(now, struct.pack("!I", number) + bytes(size - 4))
    take(float("inf"))
    return arrived, line.counts


class VirtualTime(unittest.TestCase):
    def test_a_delay_is_the_same_for_every_packet_and_keeps_order(self):
        offers = [(number * 0.001, 100) for number in range(50)]
        arrived, _ = sent_over(Rules(delay_ms=100), offers)
        self.assertEqual([number for _, number in arrived], list(range(50)))
        for (at, _), (offered, _) in zip(arrived, offers):
            self.assertAlmostEqual(at - offered, 0.1)

    def test_a_rate_spaces_packets_and_its_queue_is_bounded(self):
        # 1,250 bytes at 1 Mbit/s take 10 ms; 4 KiB hold three of them.
        offers = [(0.0, 1250)] * 5 + [(0.031, 1250)]
        arrived, counts = sent_over(Rules(rate_mbit=1, queue_kib=4, delay_ms=5), offers)
        self.assertEqual([number for _, number in arrived], [0, 1, 2, 5])
        for (at, _), due in zip(arrived, (0.015, 0.025, 0.035, 0.046)):
            self.assertAlmostEqual(at, due)
        self.assertEqual((counts.queue_full, counts.offered), (2, 6))

    def test_losses_follow_from_seed_and_number_whatever_the_times(self):
        quick = sent_over(Rules(loss_percent=5), [(0.0, 100)] * 1000)[0]
        slow = sent_over(
            Rules(loss_percent=5, delay_ms=9), [(number * 0.01, 900) for number in range(1000)]
        )[0]
        self.assertEqual([number for _, number in quick], [number for _, number in slow])
        expected = [number for number in range(1000) if not is_lost(7, 0, number, 5)]
        self.assertEqual([number for _, number in quick], expected)

    def test_seeds_directions_and_shares_differ_as_they_should(self):
        lost = lambda seed, way, percent: [  # noqa: E731
            number for number in range(20_000) if is_lost(seed, way, number, percent)
        ]
        # Three standard deviations of a fair draw around 1,000 are 92.
        self.assertLess(abs(len(lost(1, 0, 5)) - 1000), 92)
        self.assertNotEqual(lost(1, 0, 5), lost(2, 0, 5))
        self.assertNotEqual(lost(1, 0, 5), lost(1, 1, 5))
        self.assertEqual((lost(3, 0, 0), len(lost(3, 0, 100))), ([], 20_000))

    def test_bursts_lose_what_is_sent_in_them_and_as_much_in_all(self):
        offers = [(number * 0.001, 100) for number in range(100_000)]
        rules = Rules(loss_percent=5, burst_ms=20)
        arrived, counts = sent_over(rules, offers)
        numbers = [number for _, number in arrived]
        # Some 250 bursts of 20 ms; three standard deviations of a sum of as many
        # exponential times are a fifth of it.
        self.assertLess(abs(counts.lost - 5_000), 1_000)
        holes = [b - a - 1 for a, b in zip(numbers, numbers[1:]) if b - a > 1]
        self.assertLess(abs(sum(holes) / len(holes) - 20), 5)
        # By time, not by number: half as many packets lose half as many.
        half, _ = sent_over(rules, offers[::2])
        self.assertEqual([2 * n for _, n in half], [n for n in numbers if n % 2 == 0])
        other, _ = sent_over(rules, offers, seed=8)
        self.assertNotEqual(other, arrived)

    def test_what_is_on_its_way_is_bounded_without_a_rate_too(self):
        arrived, counts = sent_over(Rules(delay_ms=1000), [(0.0, 1 << 20)] * 70)
        self.assertEqual((len(arrived), counts.queue_full), (64, 6))


def bound(link, side, address, kind=socket.SOCK_DGRAM):
    """A socket in one of the namespaces."""
    with link.inside(side):
        made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_DGRAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.bind((address, PORT))
    made.settimeout(PATIENCE)
    return made


class Namespaces(unittest.TestCase):
    def echo(self, link, count, gap=0.0):
        """Sends numbered packets from far, which near echoes; round trips by number.

        One behind the other until as many came back as the seed lets through, so that no
        pause decides what counts as lost.
        """
        up, down, seed = link.up.loss_percent, link.down.loss_percent, link.seed
        through = [n for n in range(count) if not is_lost(seed, 0, n, up)]
        expected = [n for place, n in enumerate(through) if not is_lost(seed, 1, place, down)]
        near, far = bound(link, "near", NEAR), bound(link, "far", FAR)
        trips, sent = {}, {}

        def answer():
            for _ in through:
                packet, peer = near.recvfrom(2048)
                near.sendto(packet, peer)

        def take():
            number = struct.unpack("!I", far.recv(2048)[:4])[0]
            trips[number] = time.monotonic() - sent[number]

        echoing = threading.Thread(target=answer, daemon=True)
        echoing.start()
        for number in range(count):
            sent[number] = time.monotonic()
            far.sendto(struct.pack("!I", number) + bytes(200), (NEAR, PORT))
            while select.select([far], [], [], gap)[0]:
                take()
        while len(trips) < len(expected):
            take()
        echoing.join(PATIENCE)
        # What must not come would be here by now: behind it came everything else.
        near.close()
        far.close()
        return trips, expected

    def test_exactly_the_seeded_packets_are_lost(self):
        for seed in (1, 20261):
            with Link(Rules(loss_percent=5), Rules(loss_percent=20), seed) as link:
                trips, expected = self.echo(link, 2000, 0.0002)
            self.assertEqual(sorted(trips), expected, f"seed {seed}")
            self.assertLess(len(expected), 2000)
            counts = link.summary["up"], link.summary["down"]
            self.assertEqual([count["queue_full"] for count in counts], [0, 0])
            self.assertEqual(counts[0]["offered"], 2000)
            self.assertEqual(counts[1]["arrived"], len(expected))

    def test_every_packet_takes_the_delay_of_both_ways(self):
        with Link(Rules(delay_ms=40), Rules(delay_ms=60)) as link:
            trips, expected = self.echo(link, 100)
        self.assertEqual(sorted(trips), expected)
        self.assertGreaterEqual(min(trips.values()), 0.1)
        # Only the quickest: the machine may have held up any other.
        self.assertLess(min(trips.values()), 0.2)

    def test_tcp_carries_everything_over_a_lossy_line(self):
        data = os.urandom(300_000)
        with Link(Rules(5, 5), Rules(5, 5), seed=3) as link:
            server = bound(link, "near", NEAR, socket.SOCK_STREAM)
            server.listen(1)
            client = bound(link, "far", FAR, socket.SOCK_STREAM)
            client.connect((NEAR, PORT))
            taken = server.accept()[0]
            taken.settimeout(PATIENCE)
            sender = threading.Thread(
                target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)), daemon=True
            )
            sender.start()
            hashed, size = hashlib.sha256(), 0
            while chunk := taken.recv(65_536):
                hashed.update(chunk)
                size += len(chunk)
            for made in (server, client, taken):
                made.close()
        self.assertEqual(size, len(data))
        self.assertEqual(hashed.digest(), hashlib.sha256(data).digest())
        self.assertGreater(link.summary["up"]["lost"], 0)

    def test_udp_can_be_blocked_and_let_pass_while_tcp_goes_on(self):
        with Link(block_udp=True) as link:
            near, far = bound(link, "near", NEAR), bound(link, "far", FAR)
            server = bound(link, "near", NEAR, socket.SOCK_STREAM)
            server.listen(2)

            def tcp():
                """A round trip; UDP sent before it has come by then, or never will."""
                with link.inside("far"):
                    client = socket.create_connection((NEAR, PORT), PATIENCE)
                taken = server.accept()[0]
                taken.sendall(b"x")
                self.assertEqual(client.recv(1), b"x")
                client.close()
                taken.close()

            far.sendto(b"blocked", (NEAR, PORT))
            tcp()
            link.block_udp(False)
            far.sendto(b"passes", (NEAR, PORT))
            self.assertEqual(near.recv(100), b"passes")
            link.block_udp(True)
            far.sendto(b"blocked again", (NEAR, PORT))
            tcp()
            near.setblocking(False)
            self.assertRaises(BlockingIOError, near.recv, 100)
            for made in (near, far, server):
                made.close()
        self.assertEqual(link.summary["up"]["blocked"], 2)

    def test_20_mbit_each_way_lose_nothing_in_the_carrier(self):
        # 1,250 bytes of payload, paced by the clock: 2,000 packets a second are 20 Mbit/s.
        count, size, each = 3000, 1250, 0.0005
        with Link() as link:
            near, far = bound(link, "near", NEAR), bound(link, "far", FAR)
            begun = time.monotonic()
            for number in range(count):
                while time.monotonic() < begun + number * each:
                    time.sleep(each)
                near.sendto(bytes(size), (FAR, PORT))
                far.sendto(bytes(size), (NEAR, PORT))
            for made in (near, far):
                for _ in range(count):
                    self.assertEqual(len(made.recv(2048)), size)
                made.close()
        for way in ("up", "down"):
            self.assertEqual(link.summary[way]["arrived"], count)
            self.assertEqual(link.summary[way]["offered_bytes"], count * (size + 28))

    def test_the_command_line_runs_a_command_at_each_end(self):
        ends = "import socket; s = socket.socket(); "
        server = (
            ends + f"s.bind(('{NEAR}', {PORT})); s.listen(); c = s.accept()[0]; c.sendall(c.recv(9))"
        )
        client = (
            f"import socket, time\nfor _ in range({PATIENCE * 20}):\n try:\n"
            f"  s = socket.create_connection(('{NEAR}', {PORT}), {PATIENCE}); break\n"
            " except ConnectionRefusedError: time.sleep(0.05)\n"
            "s.sendall(b'hello'); assert s.recv(9) == b'hello'; raise SystemExit(3)"
        )
        near = f"{sys.executable} -c \"{server}\""
        command = [HERE / "run", "--delay", "5", "--near", near, "--", sys.executable, "-c", client]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 2)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("seed 1", done.stderr)

    def test_killed_it_leaves_nothing_behind(self):
        mark = f"{time.time_ns()}"
        sleeper = f"sleep {mark}"
        command = [HERE / "run", "--near", sleeper, "--", "sleep", mark]
        runner = subprocess.Popen(command, stderr=subprocess.DEVNULL)

        def alive():
            found = []
            for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = entry.read_bytes().split(b"\0")
                except OSError:
                    continue
                if words[0] == b"sleep" and mark.encode() in words:
                    found.append(int(entry.parent.name))
            return found

        def wait_until(holds):
            deadline = time.monotonic() + PATIENCE
            while not holds():
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)

        wait_until(lambda: len(alive()) == 2)
        carriers = self.children(runner.pid)
        self.assertEqual(len(carriers), 3)
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        wait_until(lambda: not alive())
        wait_until(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in carriers))

    @staticmethod
    def children(pid):
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(word) for word in text.split()]


def main():
    suites = [unittest.defaultTestLoader.loadTestsFromTestCase(VirtualTime)]
    try:
        with Link():
            pass
        suites.append(unittest.defaultTestLoader.loadTestsFromTestCase(Namespaces))
    except NotPermitted as reason:
        print(f"skipped between namespaces: {reason}")
    result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(suites))
    bad = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - bad} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
