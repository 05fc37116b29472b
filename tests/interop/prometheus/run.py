"""Server, load, Prometheus; then every query of every dashboard."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from tidegate import ROOT, Server, bound_to_parent, fetch, free_port, stop, wait_for  # noqa: E402

LOAD_SECONDS = float(os.environ.get("PROMETHEUS_LOAD_SECONDS", "30"))
ROOM = "prometheus"
# Small backlogs and a short interval, so that a slow viewer is slow soon.
OVERRIDES = """
[rooms]
flush_interval_ms = 200
small_room_viewers = 0
frame_bytes = 65536

[delivery]
no_sampled_bytes = 65536
totals_only_bytes = 98304
important_only_bytes = 131072
rebase_bytes = 196608
rebase_ms = 10000
drain_timeout_ms = 5000
"""
VARIABLES = {
    "$__rate_interval": "10s",
    "$__interval": "1s",
    "$__range": "30s",
    "$job": ".+",
    "$instance": ".+",
}


def prometheus(server, folder):
    """Its process and address; it scrapes once a second."""
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s"},
                "scrape_configs": [
                    {
                        "job_name": "tidegate",
                        "static_configs": [{"targets": [f"127.0.0.1:{server.admin_port}"]}],
                    }
                ],
            }
        )
    )
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ],
        stdout=open(folder / "prometheus.log", "w"),
        stderr=subprocess.STDOUT,
        preexec_fn=bound_to_parent,
    )
    url = f"http://127.0.0.1:{port}"
    wait_for("prometheus", lambda: fetch(f"{url}/-/ready"))
    return process, url


def panels(dashboard):
    """Panels with queries, those inside rows too."""
    for panel in dashboard["panels"]:
        yield from panels(panel) if panel.get("panels") else []
        if panel.get("targets"):
            yield panel


def values(url, query):
    """Every value of a range query over the last seconds, and how many series."""
    for name, value in VARIABLES.items():
        query = query.replace("${" + name[1:] + "}", value).replace(name, value)
    now = time.time()
    parameters = {"query": query, "start": now - 12, "end": now, "step": 1}
    answer = json.loads(fetch(f"{url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"))
    series = answer["data"]["result"]
    return len(series), [float(value) for one in series for _, value in one["values"]]


def ask_everything(url):
    """Asks every query; the count, what failed, and what stayed at zero."""
    asked, failures, quiet = 0, [], []
    for file in sorted((ROOT / "dashboards").glob("*.json")):
        for panel in panels(json.loads(file.read_text())):
            moved = False
            for target in panel["targets"]:
                asked += 1
                where = f"{file.name}: {panel['title']}: {target['expr']}"
                try:
                    series, found = values(url, target["expr"])
                except OSError as error:
                    failures.append(f"{where}\n    {error}")
                    continue
                if series == 0:
                    failures.append(f"{where}\n    no series")
                elif all(math.isnan(value) for value in found):
                    failures.append(f"{where}\n    nothing but NaN")
                moved |= any(value != 0 and not math.isnan(value) for value in found)
            if not moved:
                quiet.append(panel["title"])
    return asked, failures, quiet


def check_exposition(server):
    """promtool's opinion of /metrics."""
    text = fetch(f"{server.admin_url}/metrics")
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    if result.returncode != 0 or result.stderr.strip():
        return [f"promtool check metrics: {result.stderr.strip() or result.stdout.strip()}"]
    return []


def main():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-prometheus-"))
    load = scraper = None
    with Server(OVERRIDES) as server:
        try:
            scraper, url = prometheus(server, folder)
            tokens = [
                server.token("load", "publisher"),
                server.token("viewer", "viewer"),
                "not.a.token",
            ]
            load = subprocess.Popen(
                [sys.executable, HERE / "load.py", server.url, ROOM, *tokens],
                preexec_fn=bound_to_parent,
            )
            time.sleep(LOAD_SECONDS)
            if load.poll() is not None:
                raise SystemExit("the load ended early")
            asked, failures, quiet = ask_everything(url)
            failures += check_exposition(server)
            if server.process.poll() is not None:
                failures.append(f"the server ended with {server.process.returncode}")
        finally:
            for process in (load, scraper):
                if process:
                    stop(process, 5)
            shutil.rmtree(folder, ignore_errors=True)
    for failure in failures:
        print(f"FAILED {failure}")
    print("at zero throughout: " + (", ".join(quiet) or "none"))
    checks = asked + 1
    print(f"{checks - len(failures)} passed, {len(failures)} failed")
    sys.exit(1 if failures else 0)


main()
