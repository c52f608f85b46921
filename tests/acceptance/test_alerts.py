"""
What the demo's alerts promise, with its service, its pipelines and the rules that are shipped.

The processes are those of `make demo`, with its settings; the several hundred runs that it
begins with are left out, because they take longer than the rest of the test.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import ENTRY, until
from orbit_service.alerts import EXAMPLE
from orbit_service.demo import CENSUS, EXAMPLES, WEATHER, census_inputs
from orbit_worker.pipelines.store import Store, database_url
from processes import House
from receivers import Hook, Postbox

CHANNELS = """
[channels.mail]
url = "mailto://{postbox}?from=orbit@example.com&to=team@example.com"

[channels.webhook]
url = "json://{hook}"
"""
# Of the first rule, error-rate. One weather report more for each alert that fires.
ACTION = f"""
[[rules.actions]]
kind = "run-pipeline"
pipeline = "{WEATHER}"
input = {{ city = 1 }}
"""
NEXT_RULE = "# Most runs fail."
# A window of ten seconds closes when what may come late has had two more; then it is looked at
# once, sent, and taken.
THRESHOLD_SECONDS = 30


class Demo(House):
    """The demo's service and worker, and people who are told."""

    def __init__(self, folder: Path, hook: Hook, postbox: Postbox) -> None:
        self.hook, self.postbox = hook, postbox
        rules = folder / "alerts.toml"
        database = folder / "pipelines.db"
        super().__init__(
            folder,
            ORBIT_ALERTS=str(rules),
            ORBIT_STATE=str(folder / "state"),
            ORBIT_PIPELINES_DATABASE=str(database),
            CENSUS_STORE=str(folder / "census.db"),
            POLL_INTERVAL="500",
        )
        self.http = "127.0.0.1:0"
        example = EXAMPLE.read_text()
        assert example.count(NEXT_RULE) == example.count("dry_run = true") == 1
        example = example.replace("dry_run = true", "dry_run = false")
        example = example.replace(NEXT_RULE, f"{ACTION}\n{NEXT_RULE}")
        channels = CHANNELS.format(hook=hook.address, postbox=postbox.address)
        rules.write_text(example.replace("[channels.log]", f"{channels}\n[channels.log]"))
        self._store = Store(database_url(str(database)))
        self._start([*ENTRY, "worker", "--pipelines", str(EXAMPLES / "pipelines")])

    def census(self, inputs: list[Any]) -> None:
        self._store.enqueue(CENSUS, inputs)

    def alerts(self, phase: str = "firing") -> list[str]:
        answer = self.ask("alerts.list", phase=phase) or {"alerts": []}
        return [f"{a['rule']} {a['labels'].get('pipeline', '')}" for a in answer["alerts"]]

    def audit(self, *kinds: str) -> list[dict[str, Any]]:
        """Entries, the oldest first."""
        entries = (self.ask("alerts.history", limit=1_000) or {"entries": []})["entries"]
        return [entry for entry in reversed(entries) if entry["kind"] in kinds]

    def outcomes(self) -> list[str]:
        """Of the actions."""
        return [entry["details"]["outcome"] for entry in self.audit("action")]

    def told(self, saying: str) -> bool:
        """Whether both have been, the webhook and the mail."""
        mails = [subject for subject in self.postbox.subjects() if saying in subject.lower()]
        return f"{saying} error-rate" in self.hook.sayings() and len(mails) == 1

    def page(self, method: str, **params: Any) -> Any:
        """What the web page is answered."""
        url = f"http://{self.ask('service.info')['http']}/rpc"
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["result"]

    def restart(self, service: subprocess.Popen[str]) -> subprocess.Popen[str]:
        service.kill()
        service.wait()
        return self.serve()

    def close(self) -> None:
        super().close()
        self._store.close()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    hook, postbox = Hook(), Postbox()
    demo = Demo(tmp_path, hook, postbox)
    yield demo
    demo.close()
    hook.close()
    postbox.close()


def test_a_pipeline_that_fails_is_told_acted_on_and_told_of_again_when_it_is_mended(demo):
    """And the service is killed twice: before anything fires, and while it does."""
    service = demo.serve()
    broken = census_inputs(12)[-6:]
    good = census_inputs(400)[:-6]
    demo.census(good[:14] + broken * 2)  # fewer than half, or another rule fires
    until(lambda: demo.ask("worker.stats")["failedCount"] == 12)
    passed_at = time.monotonic()
    service = demo.restart(service)

    until(lambda: demo.told("firing"))
    assert time.monotonic() - passed_at < THRESHOLD_SECONDS
    until(lambda: demo.outcomes() == ["started", "done"])
    assert demo.alerts() == [f"error-rate {CENSUS}"]
    service = demo.restart(service)
    until(lambda: demo.ask("worker.stats")["runsLast24Hours"] == 27)
    assert demo.alerts() == [f"error-rate {CENSUS}"]
    [run] = [r for r in demo.ask("worker.recentRuns", limit=100) if r["pipeline"]["id"] == WEATHER]
    assert run["status"] == "success"

    demo.census(good[14:314])
    until(lambda: demo.told("resolved"), 90)
    until(lambda: len(demo.audit("notified")) == 6)
    assert demo.alerts() == []
    turns = demo.audit("firing", "resolved")
    assert [(e["kind"], e["rule"]) for e in turns] == [
        ("firing", "error-rate"),
        ("resolved", "error-rate"),
    ]
    assert demo.outcomes() == ["started", "done"]
    assert demo.hook.sayings() == ["firing error-rate", "resolved error-rate"]
    channels = {e["details"]["channel"] for e in demo.audit("notified")}
    assert channels == {"log", "mail", "webhook"}
    on_page = demo.page("alerts.history", limit=100)["entries"]
    assert [e["id"] for e in reversed(on_page) if e["kind"] in ("firing", "resolved")] == [
        e["id"] for e in turns
    ]
    assert demo.page("alerts.list")["alerts"] == []
