"""The past and the fleet, with real processes: killed, cut off, and in agreement."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import ENTRY, command, environment, until
from databases import Postgres
from orbit_rpc_schema.caller import CallFailed, call
from orbit_service.history.schema import HEAD

# What is said by a state that finds that it is an older copy.
ANEW = "restored from a backup, or copied"
HASTY = [sys.executable, str(Path(__file__).with_name("hasty.py"))]

# Records the runs that its seed makes, and stays.
WORK = """
import random, sys, orbit_worker
seed, runs = int(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
for n in range(runs):
    orbit_worker.record_run(chance.lognormvariate(4, 1.2), chance.random() > 0.1, pipeline="orders")
assert orbit_worker.flush(30)
print("done", flush=True)
sys.stdin.readline()
"""


def recorded(*seeds: int, runs: int) -> list[float]:
    """The same durations, made again: ms, sorted."""
    durations = []
    for seed in seeds:
        chance = random.Random(seed)
        durations += [(chance.lognormvariate(4, 1.2), chance.random())[0] for _ in range(runs)]
    return sorted(durations)


class Node:
    """One service in a folder of its own, and its workers."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.name = settings.get("ORBIT_NODE", folder.name)
        self.settings = {"ORBIT_NODE": self.name, "ORBIT_HTTP": "none", **settings}
        self._processes: list[subprocess.Popen[str]] = []

    def serve(self) -> None:
        self.process = self._start([*HASTY, "serve"])
        until(lambda: self.ask("service.info"))

    def work(self, seed: int, runs: int = 500) -> None:
        """A worker that has recorded so many runs, and is there."""
        worker = self.worker = self._start([sys.executable, "-c", WORK, str(seed), str(runs)])
        assert worker.stdout.readline() == "done\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0

    def ask(self, method: str, **params: Any) -> Any:
        """The answer, or None while there is none."""
        try:
            return call(self.folder / "worker.sock", method, params, timeout=20)
        except (OSError, CallFailed):
            return None

    def published(self) -> bool:
        """Nothing is left that the history does not have."""
        history = self.ask("service.info")["history"]
        return history["waiting"] == 0 and history["trouble"] is None

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def _start(self, what: list[str]) -> subprocess.Popen[str]:
        environ = environment(self.folder, ORBIT_WORKER_NAME=f"crew-{self.name}", **self.settings)
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(
                what,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._processes.append(process)
        return process


class Hub:
    """One hub, over HTTP."""

    def __init__(self, folder: Path, url: str) -> None:
        folder.mkdir()
        self._log = folder / "log"
        environ = environment(folder, ORBIT_HISTORY_URL=url)
        with self._log.open("w") as log:
            self.process = subprocess.Popen([*HASTY, "serve", "--hub"], env=environ, stderr=log)
        until(lambda: "a hub: http at" in self._log.read_text())
        said = self._log.read_text().partition("http at ")[2]
        self.url = f"http://{said.partition(',')[0]}"

    def ask(self, method: str, **params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/rpc", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer).get("result")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A service with a history of its own."""
    node = Node(tmp_path / "node")
    node.serve()
    yield node
    node.close()


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str) -> Iterator[list[Node]]:
    """Three services that share a history, not started."""
    nodes = [Node(tmp_path / name, ORBIT_HISTORY_URL=postgres_url) for name in ("a", "b", "c")]
    yield nodes
    for node in nodes:
        node.close()


@pytest.fixture
def hub(tmp_path: Path, postgres_url: str) -> Iterator[Hub]:
    hub = Hub(tmp_path / "hub", postgres_url)
    yield hub
    hub.close()


def alive(hub: Hub) -> dict[str, bool]:
    return {node["name"]: node["alive"] for node in hub.ask("fleet.metrics")["nodes"]}


def assert_percentiles(answer: dict[str, Any], durations: list[float]) -> None:
    for name, q in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
        exact = durations[int(q * len(durations))]
        # As it is said, rounded to whole milliseconds.
        assert abs(answer[name] - exact) <= 0.011 * exact + 0.5, name


# ---------------------------------------------------------------- one node


def test_the_past_is_exact_through_kills_of_the_service(node: Node) -> None:
    for seed in range(4):
        node.work(seed)
        node.kill()
        node.serve()
    node.work(9)
    durations = recorded(0, 1, 2, 3, 9, runs=500)

    total = node.ask("worker.history", **{"from": "-1h"})["groups"][0]["total"]
    assert total["runs"] == len(durations)
    assert_percentiles(total, durations)
    window = node.ask("worker.metrics", window="1h")
    assert (window["totalRuns"], window["failed"]) == (total["runs"], total["failed"])
    until(node.published)
    assert node.ask("worker.metrics", window="1h")["totalRuns"] == len(durations)


def test_workers_that_left_are_in_the_window_and_not_in_the_life(node: Node) -> None:
    node.work(1)
    node.worker.communicate()
    until(lambda: not node.ask("worker.metrics")["connected"])

    window = node.ask("worker.metrics", window="5m", worker="crew-node")
    assert (window["connected"], window["totalRuns"], window["runsPerHour"]) == (False, 500, 6000.0)


def test_with_no_worker_ever_a_window_is_zeroes(node: Node) -> None:
    answer = node.ask("worker.metrics", window="24h")

    assert (answer["totalRuns"], answer["connected"], answer["known"]) == (0, False, False)


def test_a_service_that_is_told_to_stop_publishes_what_is_open(tmp_path, postgres_url) -> None:
    node = Node(tmp_path / "n", ORBIT_HISTORY_URL=postgres_url, ORBIT_STATE="none")
    node.serve()
    node.work(1)
    node.stop()
    node.serve()

    assert node.ask("worker.metrics", window="1h")["totalRuns"] == 500
    node.close()


# ---------------------------------------------------------------- many


def test_a_hub_answers_what_its_nodes_answer_together(fleet: list[Node], hub: Hub) -> None:
    assert until(lambda: hub.ask("worker.metrics"))["connected"] is False
    for seed, node in enumerate(fleet):
        node.serve()
        node.work(seed)
    durations = recorded(0, 1, 2, runs=500)
    until(lambda: hub.ask("worker.metrics")["totalRuns"] == 1_500)
    until(lambda: hub.ask("worker.metrics", window="1h")["totalRuns"] == 1_500)

    for answer in (hub.ask("worker.metrics"), hub.ask("worker.metrics", window="1h")):
        own = [node.ask("worker.metrics") for node in fleet]
        assert answer["failed"] == sum(one["failed"] for one in own)
        assert answer["workersConnected"] == 3
        assert answer["maxExecutionTime"] == max(one["maxExecutionTime"] for one in own)
        assert_percentiles(answer, durations)
    history = hub.ask("worker.history", **{"from": "-1h", "groupBy": "node"})
    runs = {group["name"]: group["total"]["runs"] for group in history["groups"]}
    assert runs == {"a": 500, "b": 500, "c": 500}
    assert [(w["name"], w["node"]) for w in hub.ask("worker.list")] == [
        (f"crew-{name}", name) for name in "abc"
    ]
    balance = hub.ask("fleet.balance")
    assert [w["shareOfRuns"] for w in balance["workers"]] == [33.33] * 3
    # A node looks at the others for itself.
    until(lambda: fleet[0].ask("fleet.metrics")["total"]["totalRuns"] == 1_500)


def test_a_node_that_dies_leaves_its_past_and_its_workers_as_lost(
    fleet: list[Node], hub: Hub
) -> None:
    for node in fleet[:2]:
        node.serve()
        node.work(1)
    until(lambda: hub.ask("worker.metrics", window="1h")["totalRuns"] == 1_000)
    fleet[0].kill()
    until(lambda: alive(hub) == {"a": False, "b": True})

    lost = next(w for w in hub.ask("worker.list") if w["node"] == "a")
    assert (lost["connected"], lost["lastLife"]["reason"]) == (False, "node lost")
    assert lost["lastLife"]["totalRuns"] == 500
    assert "1 nodes lost: a" in hub.ask("worker.health")["message"]
    assert hub.ask("worker.metrics")["totalRuns"] == 500
    assert hub.ask("worker.metrics", window="1h")["totalRuns"] == 1_000

    fleet[0].serve()
    until(lambda: alive(hub) == {"a": True, "b": True})
    until(lambda: hub.ask("worker.metrics")["totalRuns"] == 1_000)


def test_two_that_call_themselves_alike_are_noticed_and_lose_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    settings = {"ORBIT_HISTORY_URL": postgres_url, "ORBIT_NODE": "twin"}
    twins = [Node(tmp_path / name, **settings) for name in ("one", "two")]
    for seed, twin in enumerate(twins):
        twin.serve()
        twin.work(seed)
    for twin in twins:
        until(lambda twin=twin: "calls itself twin too" in twin.ask("worker.health")["message"])
        until(twin.published)

    for twin in twins:
        # What is in the other's open window is there when that has closed.
        until(lambda twin=twin: twin.ask("worker.metrics", window="1h")["totalRuns"] == 1_000)
    for twin in twins:
        twin.close()


def test_a_state_that_is_copied_to_another_node_loses_nothing(
    fleet: list[Node], tmp_path: Path
) -> None:
    first, second, _third = fleet
    first.serve()
    first.work(0)
    first.stop()
    shutil.copytree(first.folder / "state", second.folder / "state")
    for seed, node in enumerate((first, second), start=1):
        node.serve()
        node.work(seed)
    until(lambda: ANEW in first.log() + second.log())
    for node in (first, second):
        until(node.published)

    runs = [node.ask("worker.metrics", window="1h")["totalRuns"] for node in (first, second)]
    assert runs == [1_000, 500]


def test_a_state_that_is_restored_from_a_backup_loses_nothing_that_came_since(
    fleet: list[Node],
) -> None:
    node = fleet[0]
    node.serve()
    node.work(0)
    node.stop()
    backup = node.folder / "backup"
    shutil.copytree(node.folder / "state", backup)
    for seed in (1, 2, 3):
        node.serve()
        node.work(seed)
        until(node.published)
        node.stop()
    shutil.rmtree(node.folder / "state")
    backup.rename(node.folder / "state")
    node.serve()
    node.work(4)
    assert node.ask("worker.metrics", window="1h")["totalRuns"] == 2_500

    until(lambda: ANEW in node.log())
    until(node.published)
    assert node.ask("worker.metrics", window="1h")["totalRuns"] == 2_500


def test_a_node_that_is_told_to_stop_is_not_lost(fleet: list[Node], hub: Hub) -> None:
    for node in fleet[:2]:
        node.serve()
        node.work(1)
    until(lambda: hub.ask("worker.metrics")["workersConnected"] == 2)
    fleet[0].stop()
    until(lambda: hub.ask("worker.metrics")["workersConnected"] == 1)

    assert [(n["name"], n["alive"]) for n in hub.ask("fleet.metrics")["nodes"]] == [("b", True)]
    assert hub.ask("worker.health")["status"] == "healthy"
    # Its past stays; the other's window has to close before a hub sees it.
    until(lambda: hub.ask("worker.metrics", window="1h")["totalRuns"] == 1_000)


def test_a_hub_is_ready_when_it_has_read_the_fleet(hub: Hub, tmp_path: Path) -> None:
    until(lambda: command(tmp_path, "healthcheck", "--url", hub.url).returncode == 0)
    hub.close()

    outcome = command(tmp_path, "healthcheck", "--url", hub.url)
    assert (outcome.returncode, "is not ready" in outcome.stderr) == (1, True)


def test_a_hub_says_what_it_does_not_answer(hub: Hub, tmp_path: Path) -> None:
    outcome = command(tmp_path, "call", "--url", hub.url, "worker.recentRuns")

    assert "answered by each node, and this is the hub of many" in outcome.stderr
    methods = [method["name"] for method in hub.ask("rpc.discover")["methods"]]
    assert "worker.history" in methods
    assert "worker.recentRuns" not in methods


# ---------------------------------------------------------------- PostgreSQL goes away


def test_windows_wait_while_postgresql_is_away(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "server")
    url = server.make("history")
    assert command(tmp_path, "migrate", "--url", url).stdout == f"version {HEAD}, from 0\n"
    node = Node(tmp_path / "n", ORBIT_HISTORY_URL=url)
    node.serve()
    node.work(0)
    until(node.published)
    server.stop()
    node.work(1)
    until(lambda: node.ask("service.info")["history"]["trouble"])
    assert "the history cannot be used" in node.ask("worker.health")["message"].lower()
    assert "publications wait" in command(node.folder, "doctor").stdout
    assert node.ask("worker.metrics")["totalRuns"] == 1_000, "runs are not refused"
    assert node.ask("service.info")["intake"]["waiting"] == 0, "and acknowledged"
    refused = command(node.folder, "history", "--last", "1h")
    assert "The history cannot be read" in refused.stderr

    node.kill()
    node.serve()
    server.start()
    until(node.published)
    total = node.ask("worker.history", **{"from": "-1h"})["groups"][0]["total"]
    assert total["runs"] == 1_000
    assert_percentiles(total, recorded(0, 1, runs=500))
    node.close()
    server.close()


# ---------------------------------------------------------------- commands


def test_a_hub_without_a_database_says_what_it_needs(tmp_path: Path) -> None:
    outcome = command(tmp_path, "serve", "--hub")

    assert outcome.returncode == 1
    assert "Set ORBIT_HISTORY_URL=postgresql+psycopg://" in outcome.stderr


def test_two_migrations_at_once_both_succeed(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.make("migrated twice")
    started = [
        subprocess.Popen(
            [*ENTRY, "migrate"],
            env={**os.environ, "ORBIT_HISTORY_URL": url},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = sorted(process.communicate()[0] for process in started)

    assert [process.returncode for process in started] == [0, 0]
    assert said[0] == f"version {HEAD}\n" or all(s.endswith("from 0\n") for s in said)
    assert command(tmp_path, "migrate", "--url", url).stdout == f"version {HEAD}\n"
    postgres.drop("migrated twice")


def test_migrate_without_a_database_is_a_sentence(tmp_path: Path) -> None:
    assert "ORBIT_HISTORY_URL is not set" in command(tmp_path, "migrate").stderr
    nowhere = command(tmp_path, "migrate", "--url", "postgresql://u@127.0.0.1:1/d")
    assert "cannot be upgraded" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr


def test_history_is_printed_as_a_table_as_csv_and_as_json(node: Node) -> None:
    node.work(3)
    table = command(node.folder, "history", "--last", "1h", "--pipeline", "orders")
    assert "runs  " in table.stdout
    assert table.stdout.splitlines()[-1].split()[:2] == ["all", "500"]

    printed = command(node.folder, "history", "--last", "10m", "--step", "1m", "--csv").stdout
    header, *lines = printed.splitlines()
    assert header == "at,group,runs,failed,retries,avg,min,max,p50,p95,p99,runsPerHour,errorRate"
    assert sum(int(line.split(",")[2]) for line in lines) == 500
    assert all(line.split(",")[0].endswith("Z") for line in lines)

    answer = json.loads(command(node.folder, "history", "--group-by", "worker", "--json").stdout)
    assert [group["name"] for group in answer["groups"]] == ["crew-node"]


def test_history_of_nothing_says_so(node: Node) -> None:
    assert command(node.folder, "history", "--last", "1h").stdout.startswith("no runs from ")


def test_a_question_that_cannot_be_answered_is_a_sentence(node: Node) -> None:
    outcome = command(node.folder, "history", "--from", "1700000000")

    assert outcome.returncode == 1
    assert "looks like epoch seconds; times are epoch milliseconds: 1700000000000" in outcome.stderr
