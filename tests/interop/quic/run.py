"""Runs the checks of good.py and bad.py against a server with two shards."""

import asyncio
import pathlib
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import bad  # noqa: E402
import good  # noqa: E402
from good import Place  # noqa: E402
from tidegate import Server, fetch  # noqa: E402

# Two shards, so that packets must find theirs by connection id; times short enough to wait for.
TWO_SHARDS = "shards = 2"
GOOD = """
[websocket]
ping_interval_ms = 4000
pong_timeout_ms = 3000

[rooms]
carry_after_ms = 300
carries = 2
online_interval_ms = 500
"""
BAD = """
[websocket]
join_timeout_ms = 3000

[quic]
handshake_timeout_ms = 2000
"""


# Every address must prove itself first.
RETRY = """
[quic]
retry_above = 0
"""


class Run:
    """Counts and shows."""

    def __init__(self, wanted):
        self.wanted, self.passed, self.failed = wanted, 0, 0

    def wants(self, name):
        """Whether it was asked for."""
        return not self.wanted or any(part in name for part in self.wanted)

    async def check(self, name, work, after=None):
        """`work()` is awaited; a viewer that it returns must have seen no fault."""
        begun = time.monotonic()
        try:
            viewer = await asyncio.wait_for(work(), 120)
            if viewer:
                faults = viewer.all_faults()
                await viewer.leave()
                assert not faults, faults
            if after:
                await after()
        except Exception as error:  # noqa: BLE001: every check is judged by itself
            self.failed += 1
            print(f"FAILED {name}: {type(error).__name__}: {error}"[:2000])
            traceback.print_exc(limit=-4)
        else:
            self.passed += 1
            print(f"ok {name} ({time.monotonic() - begun:.1f} s)")
        sys.stdout.flush()


class Witness:
    """A viewer of each kind that stays through everything: nobody may harm it."""

    def __init__(self, place):
        self.place, self.viewers, self.sessions = place, [], []

    async def arrive(self):
        for variant in good.VARIANTS:
            viewer = await self.place.viewer(variant, f"witness-{variant}").connect()
            await viewer.join("witness")
            self.viewers.append(viewer)

    async def look(self):
        """All of them still have their connection, and an event reaches them."""
        (event,) = await self.place.post("witness", "coupon")
        for viewer in self.viewers:
            room = viewer.rooms["witness"]
            await viewer.until(lambda: event in good.ids(room), "the witness's event")
            assert not viewer.connection.end.done(), viewer.connection.end.result()
            assert room.important == len(good.ids(room)), "a hole"
            assert not viewer.all_faults(), viewer.all_faults()


def behaviours(place):
    """(name, work) of every check of good.py."""
    for variant in list(good.VARIANTS):
        checks = good.CHECKS + (good.STREAM_CHECKS if variant in good.STREAMS else [])
        for check in checks:
            yield f"{variant} {check.__name__}", lambda: check(place, variant)
    streams = [variant for variant in good.VARIANTS if variant in good.STREAMS]
    sockets = [variant for variant in good.VARIANTS if variant not in good.STREAMS]
    for sure, how in ((False, "SIGTERM"), (True, "SIGKILL")):
        for variants in (streams, sockets):
            name = f"returning after {how}: {', '.join(variants)}"
            yield name, lambda: good.returning(place, variants, sure)


def mistakes(place):
    """(name, work) of every check of bad.py."""
    kinds = {name: kind for name, kind in bad.KINDS.items() if name in good.VARIANTS}
    for name, kind in kinds.items():
        for check in bad.BOTH:
            yield f"bad {name} {check.__name__}", lambda: check(place, kind)
    for check in bad.QUIC + (bad.WEBTRANSPORT if "webtransport" in kinds else []):
        yield f"bad {check.__name__}", lambda: check(place)


async def proven(place, variant):
    """A handshake with Retry, which the server counts."""

    def retries():
        name = 'tidegate_quic_handshakes_total{result="retry"} '
        lines = fetch(f"{place.server.admin_url}/metrics").splitlines()
        return sum(int(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = retries()
    viewer = await good.three_lanes(place, variant)
    # Shards tell their counters once a second.
    await viewer.until(lambda: retries() > before, "a retry that is counted")
    return viewer


async def run_all(run):
    with Server(GOOD, TWO_SHARDS) as server:
        for name, work in behaviours(Place(server)):
            if run.wants(name):
                await run.check(name, work)
    with Server(RETRY, TWO_SHARDS) as server:
        place = Place(server)
        for variant in [variant for variant in good.VARIANTS if variant in good.STREAMS]:
            name = f"{variant} three_lanes after Retry"
            if run.wants(name):
                await run.check(name, lambda: proven(place, variant))
    if not any(run.wants(name) for name, _ in mistakes(None)):
        return
    with Server(BAD, TWO_SHARDS) as server:
        witness = Witness(Place(server))
        await witness.arrive()
        for name, work in mistakes(witness.place):
            if run.wants(name):
                await run.check(name, work, witness.look)
        for viewer in witness.viewers:
            await viewer.leave()
        assert server.process.poll() is None, server.said()


def main():
    wanted = sys.argv[1:]
    while "--without" in wanted:
        at = wanted.index("--without")
        del good.VARIANTS[wanted[at + 1]]
        del wanted[at : at + 2]
    run = Run(wanted)
    print(f"seed {bad.SEED} (TIDEGATE_SEED replays it)")
    asyncio.run(run_all(run))
    print(f"{run.passed} passed, {run.failed} failed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
