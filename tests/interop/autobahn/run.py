"""Installs a suite, runs it against the echo example, judges its report."""

import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from tidegate import ROOT, TARGET, bound_to_parent, free_port, stop, wait_for  # noqa: E402

PASSES = {"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"}
QUICK = os.environ.get("AUTOBAHN_QUICK", "") not in ("", "0")
# Every size class and every window size once, without the repetitions.
QUICK_CASES = [
    *(f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 10)),
    "9.1.*",
    "9.2.1",
    "9.3.5",
    "9.5.3",
    "12.1.1",
    "12.1.10",
    "12.2.5",
    "12.3.5",
    "12.4.5",
    "12.5.5",
    *(f"13.{part}.{case}" for part in range(1, 8) for case in (1, 10)),
]
CASES = QUICK_CASES if QUICK else ["*"]
LIMIT_SECONDS = float(os.environ.get("AUTOBAHN_LIMIT_SECONDS", "1500"))


def python2():
    """A Python 2.7 with pip, if this machine has one."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    candidates = sorted(pyenv.glob("versions/2.7*/bin/python2.7"))
    found = shutil.which("python2.7")
    for candidate in [*candidates, *([found] if found else [])]:
        works = subprocess.run([candidate, "-m", "pip", "--version"], capture_output=True)
        if works.returncode == 0:
            return str(candidate)
    return None


def install_original(python):
    """The suite under `target`, once."""
    packages = TARGET / "autobahn-suite"
    if not (packages / "zope/__init__.py").exists():
        shutil.rmtree(packages, ignore_errors=True)
        command = [python, "-m", "pip", "install", "--quiet", "--target", packages]
        subprocess.run([*command, "autobahntestsuite==0.8.2"], check=True)
        # pip leaves a namespace package that Python 2 does not find by itself.
        (packages / "zope/__init__.py").touch()
    return packages


def original(python, port, report):
    """Command and environment of the suite itself."""
    packages = install_original(python)
    spec = report / "fuzzingclient.json"
    spec.write_text(
        json.dumps(
            {
                "outdir": str(report),
                "servers": [{"agent": "tidegate", "url": f"ws://127.0.0.1:{port}"}],
                "cases": CASES,
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
        )
    )
    command = [python, "-W", "ignore", packages / "bin/wstest", "-m", "fuzzingclient", "-s", spec]
    return command, {**os.environ, "PYTHONPATH": str(packages)}


def kosoku(port, report):
    """Command and environment of the runner of today."""
    venv = subprocess.run([HERE.parent / "venv.sh"], check=True, capture_output=True, text=True)
    command = [pathlib.Path(venv.stdout.strip()) / "bin/kosoku", f"127.0.0.1:{port}"]
    command += ["--outdir", report]
    for case in [] if CASES == ["*"] else CASES:
        command += ["--include", case]
    return command, dict(os.environ)


def echo():
    """The echo example, built if need be."""
    path = TARGET / "release/examples/echo"
    if not path.exists():
        subprocess.run(["cargo", "build", "--release", "--example", "echo"], cwd=ROOT, check=True)
    return path


def judge(report):
    """Counts by group; the failures by name."""
    (cases,) = json.loads((report / "index.json").read_text()).values()
    groups = collections.defaultdict(collections.Counter)
    failures = []
    for case, result in sorted(cases.items(), key=lambda item: [int(n) for n in item[0].split(".")]):
        behaviors = (result["behavior"], result["behaviorClose"])
        groups[int(case.split(".")[0])][behaviors[0]] += 1
        if not PASSES.issuperset(behaviors):
            failures.append(f"{case}: {behaviors[0]}, closing {behaviors[1]}")
    for group, counts in sorted(groups.items()):
        print(f"group {group:>2}: " + ", ".join(f"{n} {b}" for b, n in counts.most_common()))
    for failure in failures:
        print(f"FAILED {failure}")
    missing = {1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 13} - set(groups)
    if missing:
        failures.append(f"groups {sorted(missing)} did not run")
        print(f"FAILED {failures[-1]}")
    return len(cases), len(failures)


def main():
    report = TARGET / "autobahn"
    shutil.rmtree(report, ignore_errors=True)
    report.mkdir(parents=True)
    port = free_port()
    python = python2()
    suite = os.environ.get("AUTOBAHN_SUITE", "original" if python else "kosoku")
    if suite == "original" and not python:
        raise SystemExit("AUTOBAHN_SUITE=original takes a Python 2.7 with pip")
    command, environment = (
        original(python, port, report) if suite == "original" else kosoku(port, report)
    )
    server = subprocess.Popen([echo(), "--port", str(port)], preexec_fn=bound_to_parent)
    started = time.monotonic()
    log = report / "suite.log"
    try:
        wait_for("the echo server", lambda: listens(port))
        with open(log, "w") as output:
            subprocess.run(
                [str(part) for part in command],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_SECONDS,
                preexec_fn=bound_to_parent,
            )
        died = server.poll() is not None
    except subprocess.TimeoutExpired:
        print(log.read_text()[-2000:])
        raise SystemExit(f"the suite took longer than {LIMIT_SECONDS:.0f} s")
    finally:
        stop(server)
    if not (report / "index.json").exists():
        print(log.read_text()[-4000:])
        raise SystemExit("the suite left no report")
    total, failed = judge(report)
    if died:
        failed += 1
        print("FAILED the echo server ended during the suite")
    print(f"suite {suite}{', quick' if QUICK else ''}, {time.monotonic() - started:.0f} s")
    print(f"{total - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def listens(port):
    import socket

    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


main()
