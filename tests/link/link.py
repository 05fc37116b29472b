"""Two network namespaces with a line between them that delays, loses and limits.

Each namespace has one TUN device; a process of its own carries packets from one to
the other by the rules of `wire`. The namespaces have no name and belong to this
process: whatever ends it, the kernel takes them away, and what runs in them is bound
to it as well. IPv6 is off in them, so that nothing but the traffic of the test counts.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import struct
import subprocess
import time

from wire import Direction, Rules

NEAR, FAR = "10.201.0.1", "10.201.0.2"
# Exit code of a test that could not run here, as in automake.
SKIPPED = 77

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
UDP = 17
MTU = 1500
# Packets that the kernel keeps for the carrier at most.
KERNEL_QUEUE = 10_000
# Packets read from one end before the other has its turn.
BATCH = 64

libc = ctypes.CDLL(None, use_errno=True)


class NotPermitted(Exception):
    """Namespaces or TUN devices cannot be made here."""


def _check(result, what):
    if result != 0:
        number = ctypes.get_errno()
        message = f"{what}: {os.strerror(number)}"
        if number in (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EINVAL, errno.ENOSPC):
            raise NotPermitted(f"{message}; network namespaces need root (CAP_SYS_ADMIN)")
        raise OSError(number, message)


def _namespace_here():
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(namespace):
    _check(libc.setns(namespace, CLONE_NEWNET), "setns")


def _configure(address, peer):
    """In a new namespace: its TUN device, up; returns the device."""
    for scope in ("all", "default"):
        with contextlib.suppress(FileNotFoundError):
            with open(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "w") as file:
                file.write("1")
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotPermitted(f"/dev/net/tun: {error.strerror}") from error
    name = struct.pack("16sH22x", b"line", IFF_TUN | IFF_NO_PI)
    fcntl.ioctl(tun, TUNSETIFF, name)
    for command in (
        "ip link set lo up",
        f"ip address add {address} peer {peer} dev line",
        f"ip link set dev line mtu {MTU} txqueuelen {KERNEL_QUEUE} up",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
    return tun


def _is_udp(packet):
    return len(packet) > 9 and packet[0] >> 4 == 4 and packet[9] == UDP


def _carry(near_tun, far_tun, up, down, blocked, report):
    """The carrier process: until SIGTERM. `up` is far to near, `down` near to far."""
    state = {"over": False, "blocked": blocked}
    signal.signal(signal.SIGTERM, lambda *_: state.update(over=True))
    signal.signal(signal.SIGUSR1, lambda *_: state.update(blocked=True))
    signal.signal(signal.SIGUSR2, lambda *_: state.update(blocked=False))
    ends = ((far_tun, near_tun, up), (near_tun, far_tun, down))
    read, write, clock = os.read, os.write, time.monotonic
    while not state["over"]:
        arrivals = [at for at in (up.next_arrival(), down.next_arrival()) if at is not None]
        wait = max(0.0, min(arrivals) - clock()) if arrivals else 1.0
        readable = select.select((near_tun, far_tun), (), (), wait)[0]
        for source, target, direction in ends:
            if source in readable:
                for _ in range(BATCH):
                    try:
                        packet = read(source, 2048)
                    except BlockingIOError:
                        break
                    if state["blocked"] and _is_udp(packet):
                        direction.counts.blocked += 1
                    else:
                        direction.offer(clock(), packet)
            for packet in direction.arrivals(clock()):
                # A namespace whose socket buffers are full drops like any network.
                with contextlib.suppress(BlockingIOError):
                    write(target, packet)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    summary = {
        "up": vars(up.counts),
        "down": vars(down.counts),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
    }
    os.write(report, json.dumps(summary).encode())


class Link:
    """A context manager. `up` are the rules from far to near, `down` the others."""

    def __init__(self, up=None, down=None, seed=1, block_udp=False):
        self.up, self.down = up or Rules(), down or Rules()
        self.up.check()
        self.down.check()
        self.seed, self.blocked = seed, block_udp
        self.summary = None
        self._open = []

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self._drop()
            raise
        return self

    def _make(self):
        home = self._own(_namespace_here())
        tuns = []
        self.namespaces = {}
        try:
            for side, address, peer in (("near", NEAR, FAR), ("far", FAR, NEAR)):
                _check(libc.unshare(CLONE_NEWNET), "unshare")
                self.namespaces[side] = self._own(_namespace_here())
                tuns.append(self._own(_configure(address, peer)))
        finally:
            _enter(home)
        directions = Direction(self.up, self.seed, 0), Direction(self.down, self.seed, 1)
        self._report, report = os.pipe()
        self._own(self._report)
        parent = os.getpid()
        self.carrier = os.fork()
        if self.carrier == 0:
            # Nothing of the parent's clean-up may run in the child.
            status = 1
            try:
                self._bind_to(parent)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                _carry(*tuns, *directions, self.blocked, report)
                status = 0
            finally:
                os._exit(status)
        os.close(report)

    def _own(self, descriptor):
        self._open.append(descriptor)
        return descriptor

    def _drop(self):
        for descriptor in self._open:
            os.close(descriptor)
        self._open = []

    @staticmethod
    def _bind_to(parent):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    def path(self, side):
        """For `nsenter --net=PATH`, as long as this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.namespaces[side]}"

    def environment(self):
        """What a command needs to know to find its way."""
        return {
            "LINK_NEAR": NEAR,
            "LINK_FAR": FAR,
            "LINK_NEAR_NS": self.path("near"),
            "LINK_FAR_NS": self.path("far"),
            "LINK_PID": str(self.carrier),
        }

    def start(self, side, command, **options):
        """A process in one of the namespaces that does not outlive this one."""
        namespace, parent = self.namespaces[side], os.getpid()

        def prepare():
            self._bind_to(parent)
            _enter(namespace)

        environment = {**os.environ, **self.environment(), **options.pop("env", {})}
        return subprocess.Popen(command, preexec_fn=prepare, env=environment, **options)

    @contextlib.contextmanager
    def inside(self, side):
        """This thread in a namespace: sockets made meanwhile belong to it."""
        home = _namespace_here()
        try:
            _enter(self.namespaces[side])
            yield
        finally:
            _enter(home)
            os.close(home)

    def block_udp(self, blocked=True):
        """From the next packets on."""
        os.kill(self.carrier, signal.SIGUSR1 if blocked else signal.SIGUSR2)

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.carrier, signal.SIGTERM)
        os.waitpid(self.carrier, 0)
        text = os.read(self._report, 65_536)
        self.summary = json.loads(text) if text else None
        self._drop()
