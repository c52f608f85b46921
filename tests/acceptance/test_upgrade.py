"""
The previous version, as it was, beside this one: its state, its history, its worker, its service.

Taken out of the repository's own past, and run with the libraries of today.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import command, until
from databases import Postgres
from orbit_service.history import engines
from processes import House, Worker
from prometheus import scrape

ROOT = Path(__file__).parents[2]
PREVIOUS = "bd80917b3d8d"  # 0.1.0
PACKAGES = ("rpc_schema", "worker", "service")

A_BIT_OF_ALL = """
for n in range(50):
    record_run(10 + n, n % 5 != 0, pipeline="import", id=f"r{n}", wait_ms=n)
with track("export") as run:
    with run.step("download"):
        pass
try:
    with track("export"):
        raise ValueError("no")
except ValueError:
    pass
print(flush(20)); step()
with track("hang", id="h1"):
    flush(5); step("hanging")
"""


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which Python finds the previous version in place of this one."""
    folder = tmp_path_factory.mktemp("previous")
    git = ["git", "-C", str(ROOT), "archive", "--format=tar", PREVIOUS, *PACKAGES]
    try:
        archive = subprocess.run(git, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"this copy of the repository has no past as far as {PREVIOUS}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    path = os.pathsep.join(str(folder / package) for package in PACKAGES)
    return {"PYTHONPATH": path, "ORBIT_DRAIN_TIMEOUT": "0"}  # which it does not know


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def home(
    request: pytest.FixtureRequest, tmp_path: Path, previous: dict[str, str]
) -> Iterator[House]:
    """A house whose history is in either engine; its tables are the previous version's."""
    settings = {}
    if request.param == "PostgreSQL":
        postgres: Postgres = request.getfixturevalue("postgres")
        name = f"upgrade-{request.node.callspec.params['end']}"
        settings["ORBIT_HISTORY_URL"] = postgres.make(name)
        made = command(tmp_path, "migrate", **settings, **previous)
        assert made.returncode == 0, made.stderr
    house = House(tmp_path, **settings)
    house.http = "127.0.0.1:0"
    yield house
    house.close()


def at_work(house: House, **environ: str) -> Worker:
    """A worker that has recorded a bit of everything, which was acknowledged."""
    worker = house.worker(A_BIT_OF_ALL, **environ)
    assert worker.reached() == "True"
    worker.reached()
    return worker


def numbers(house: House, **selection: str) -> dict[str, object]:
    """What worker.metrics counts, without what goes on by itself."""
    moving = {"uptime", "uptimeSeconds", "runsPerHour", "timestamp"}
    answer = until(lambda: house.ask("worker.metrics", **selection))
    return {name: value for name, value in answer.items() if name not in moving}


def waits(house: House) -> list[str]:
    """How long runs waited, as Prometheus is told."""
    lines = scrape(house.ask("service.info")["http"]).splitlines()
    return [line for line in lines if line.startswith("orbit_run_wait_seconds")]


def in_the_books(house: House) -> tuple[int, int]:
    total = house.ask("service.ledger")["total"]
    assert total["recorded"] == total["counted"]
    return total["recorded"], total["counted"]


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_state_and_history_of_the_previous_version_go_on(home, tmp_path, previous, end):
    service = home.serve(**previous)
    assert "ORBIT_DRAIN_TIMEOUT is not a setting" in home.log()
    worker = at_work(home, **previous)
    before = numbers(home)
    past = until(lambda: numbers(home, window="1h"))
    waited = waits(home)
    assert len(waited) > 2
    getattr(service, end)()
    service.wait(20)

    if "ORBIT_HISTORY_URL" in home.environment():
        assert command(tmp_path, "migrate", **home.environment()).returncode == 0
    home.serve()
    assert numbers(home) == before
    assert numbers(home, window="1h") == past
    assert waits(home) == waited
    until(lambda: home.ask("service.info")["connections"] == 2)  # the worker is back, and we
    worker.go_on()
    assert worker.reached() == "hanging"
    worker.kill()
    assert home.ended()["totalRuns"] == before["totalRuns"] + 1
    assert numbers(home, window="1h")["totalRuns"] == past["totalRuns"] + 1


def test_the_previous_version_goes_on_with_tables_that_are_migrated(tmp_path, previous, postgres):
    url = postgres.make("upgrade-tables")
    house = House(tmp_path, ORBIT_HISTORY_URL=url)
    assert command(tmp_path, "migrate", **house.environment()).returncode == 0
    house.serve(**previous)
    at_work(house, **previous)

    until(lambda: runs_in_the_history(url) == 52)
    assert numbers(house, window="1h")["totalRuns"] == 52
    house.close()


def runs_in_the_history(url: str) -> int:
    database = engines.postgres(engines.checked_url(url))
    with database.reading() as connection:
        everything = "SELECT sum(runs) FROM window_10s JOIN series ON series = id WHERE worker = ''"
        found = connection.exec_driver_sql(everything).scalar_one()
    database.close()
    return int(found or 0)


@pytest.mark.parametrize("older", ["worker", "service"])
def test_a_worker_one_version_older_or_newer_than_its_service_works(tmp_path, previous, older):
    house = House(tmp_path)
    house.serve(**previous if older == "service" else {})
    worker = at_work(house, **previous if older == "worker" else {})

    assert numbers(house)["totalRuns"] == 52
    assert in_the_books(house) == (52, 52)
    assert {step["name"] for run in runs(house, "export") for step in run["steps"]} == {"download"}
    worker.go_on()
    worker.reached()
    worker.kill()
    assert house.ended()["totalRuns"] == 53
    assert runs(house, "hang")[0]["error"]["type"] == "WorkerLost"
    house.close()


def runs(house: House, pipeline: str) -> list[dict[str, object]]:
    return house.ask("worker.recentRuns", pipeline=pipeline)
