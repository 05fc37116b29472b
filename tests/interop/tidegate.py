"""A real server for the interoperability tests: own ports, own key, own folder."""

import contextlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def binary():
    """The release build, or what TIDEGATE_BIN names."""
    named = os.environ.get("TIDEGATE_BIN")
    candidates = [pathlib.Path(named)] if named else []
    candidates += [TARGET / "release/tidegate", TARGET / "debug/tidegate"]
    for path in candidates:
        if path.exists():
            return path
    raise SystemExit("no tidegate binary: run `cargo build --release`, or set TIDEGATE_BIN")


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def bound_to_parent():
    """In the child: end when the parent ends, however it does."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def fetch(url, timeout=5):
    """The body of a GET."""
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def wait_for(what, holds, seconds=20):
    """Polls until `holds()` is true; connection errors count as not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if holds():
                return
        time.sleep(0.1)
    raise SystemExit(f"{what}: not within {seconds} s")


def stop(process, seconds=15):
    """SIGTERM, then SIGKILL after a while."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Server:
    """`tidegate serve --config …`; a context manager."""

    def __init__(self, overrides="", server=""):
        """`overrides`: sections of the configuration; `server`: more of `[server]`."""
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-interop-"))
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self.config = self.folder / "tidegate.toml"
        self.config.write_text(
            f"""[server]
listen = "127.0.0.1:{self.port}"
admin_listen = "127.0.0.1:{self.admin_port}"
drain_timeout_ms = 2000
reconnect_spread_ms = 500
{server}

[[auth.keys]]
id = "interop"
algorithm = "HS256"
secret = "{secrets.token_hex(32)}"

{overrides}"""
        )

    def __enter__(self):
        self.log = open(self.folder / "server.log", "a+")
        self.process = subprocess.Popen(
            [binary(), "serve", "--config", self.config],
            cwd=self.folder,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            preexec_fn=bound_to_parent,
        )
        try:
            wait_for("tidegate", self._ready)
        except SystemExit:
            print(self.said())
            self.__exit__(None, None, None)
            raise
        return self

    def said(self):
        """The end of its log."""
        return (self.folder / "server.log").read_text()[-4000:]

    def _ready(self):
        if self.process.poll() is not None:
            raise SystemExit(f"tidegate ended with {self.process.returncode}")
        return bool(fetch(f"{self.admin_url}/readyz") or True)

    def end(self, sure=False):
        """SIGTERM, or with `sure` SIGKILL; entering again starts it where it was."""
        if sure:
            self.process.kill()
        stop(self.process)
        self.log.close()

    def __exit__(self, *_):
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def token(self, user, role="viewer", rooms=("*",), ttl="1h"):
        """What `tidegate token` mints."""
        rooms = [argument for room in rooms for argument in ("--room", room)]
        command = [binary(), "token", "--config", self.config, "--user", user, "--role", role]
        output = subprocess.run([*command, "--ttl", ttl, *rooms], check=True, capture_output=True)
        return output.stdout.decode().strip()

    def post(self, room, body, token=None):
        """Status and JSON answer of a publish."""
        request = urllib.request.Request(
            f"{self.url}/v1/rooms/{room}/events",
            data=body if isinstance(body, bytes) else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.load(refusal)
