"""A command behind a slow and lossy line; see `run --help`."""

import argparse
import json
import shlex
import signal
import subprocess
import sys

from link import FAR, NEAR, SKIPPED, Link, NotPermitted
from wire import Rules

ABOUT = f"""Runs COMMAND in a network namespace (address {FAR}) that a line connects
with another (address {NEAR}). In the environment: LINK_NEAR and LINK_FAR, the addresses;
LINK_NEAR_NS and LINK_FAR_NS, for `nsenter --net=…`; LINK_PID, the process that carries
packets: SIGUSR1 makes it drop UDP, SIGUSR2 lets UDP pass. Needs root and Linux with TUN;
without, exits with {SKIPPED}. The seed is printed: the n-th packet of a direction is lost
or not by seed and n. Exits as COMMAND does."""


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="tests/link/run", description=ABOUT)
    both = "both ways, or one: "
    parser.add_argument("--delay", type=float, metavar="MS", default=0, help=f"{both}--up-delay")
    parser.add_argument("--loss", type=float, metavar="PERCENT", default=0, help=f"{both}--up-loss")
    parser.add_argument("--rate", type=float, metavar="MBIT", help="default: no limit")
    parser.add_argument("--queue", type=float, metavar="KIB", default=256, help="in front of it")
    parser.add_argument("--burst", type=float, metavar="MS", help="losses come together for so long")
    units = {"delay": "MS", "loss": "PERCENT", "rate": "MBIT", "queue": "KIB", "burst": "MS"}
    for way, meaning in (("up", "far to near"), ("down", "near to far")):
        for name, unit in units.items():
            parser.add_argument(f"--{way}-{name}", type=float, metavar=unit, help=meaning)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--block-udp", action="store_true", help="drop UDP from the start")
    parser.add_argument("--near", metavar="COMMAND", help="runs at the near end meanwhile")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    return parser.parse_args()


def rules(given, way):
    """Of one direction: its own options before those for both."""

    def pick(name):
        own = getattr(given, f"{way}_{name}")
        return own if own is not None else getattr(given, name)

    return Rules(pick("delay"), pick("loss"), pick("rate"), pick("queue"), pick("burst"))


def end(process):
    """SIGTERM, then SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main():
    given = arguments()
    link = Link(rules(given, "up"), rules(given, "down"), given.seed, given.block_udp)

    def say(text):
        print(f"link: {text}", file=sys.stderr, flush=True)

    say(f"up {link.up}, down {link.down}, seed {given.seed}")
    # Ended by a signal: the processes are told, then everything is taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with link:
            near = link.start("near", shlex.split(given.near)) if given.near else None
            far = link.start("far", given.command)
            try:
                status = far.wait()
            finally:
                end(far)
                if near:
                    end(near)
    except NotPermitted as error:
        say(f"skipped: {error}")
        return SKIPPED
    say(json.dumps(link.summary))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
