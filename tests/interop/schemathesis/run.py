"""Runs schemathesis with a publisher's token against a server of our own."""

import json
import os
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from tidegate import ROOT, Server, TARGET, fetch  # noqa: E402

# Refusals of values inside an event stand in its result, beside 200: the schema
# says what is allowed, and `negative_data_rejection` would want a 4xx for each.
CHECKS = ",".join(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "missing_required_header",
        "unsupported_method",
        "ignored_auth",
    ]
)


def main():
    venv = pathlib.Path(sys.argv[1])
    examples = os.environ.get("SCHEMATHESIS_EXAMPLES", "60")
    with Server() as server:
        served = json.loads(fetch(f"{server.url}/v1/openapi.json"))
        kept = json.loads((ROOT / "docs/openapi.json").read_text())
        if served != kept:
            raise SystemExit("/v1/openapi.json is not docs/openapi.json")
        token = server.token("schemathesis", "publisher")
        # A room that exists, so that reads find something.
        status, answer = server.post(
            "demo", {"events": [{"id": "1", "kind": "chat", "payload": "hello"}]}, token
        )
        if status != 200:
            raise SystemExit(f"publish: {status} {answer}")
        command = [
            venv / "bin/schemathesis",
            "run",
            ROOT / "docs/openapi.json",
            "--url",
            server.url,
            "--header",
            f"Authorization: Bearer {token}",
            "--checks",
            CHECKS,
            "--max-examples",
            examples,
            "--seed",
            os.environ.get("SCHEMATHESIS_SEED", "1"),
            # An upgrade is no request and answer; Autobahn's suite has it.
            "--exclude-path",
            "/v1/ws",
            "--generation-database",
            "none",
            "--workers",
            "1",
        ]
        output = subprocess.run(
            [str(part) for part in command],
            cwd=TARGET,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(output.stdout)
        # Nothing it sent may have hurt the server.
        if "ok" not in fetch(f"{server.admin_url}/healthz").lower():
            raise SystemExit("the server is not healthy any more")
    counts = re.findall(r"(\d+) (?:generated|test cases?)", output.stdout)
    cases = max((int(count) for count in counts), default=1)
    failed = 0 if output.returncode == 0 else 1
    print(f"{cases if not failed else 0} passed, {failed} failed")
    sys.exit(output.returncode)


main()
