"""A copy of the state and the history, from which a service goes on."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from builders import command, until
from processes import House

FOLDERS = ("state/orbit-metrics", "backup")


def copied(house: House, folder: Path) -> Any:
    return command(folder, "backup", "backup", **house.environment())


def restore(folder: Path) -> None:
    """What docs/operations.md says: the copies in place of what is there."""
    state, backup = (folder / name for name in FOLDERS)
    shutil.rmtree(state)
    shutil.copytree(backup, state)


def test_a_service_goes_on_from_a_copy_that_was_made_while_it_ran(house, tmp_path):
    service = house.serve()
    worker = house.worker("for _ in range(3):\n"
                          "    for _ in range(100): record_run(1, True)\n"
                          "    flush(20); step()")  # fmt: skip
    worker.reached()
    service.terminate()  # which puts the first hundred into the history
    service.wait(20)
    service = house.serve()
    worker.go_on()
    worker.reached()
    done = copied(house, tmp_path)
    assert done.returncode == 0, done.stderr
    worker.go_on()
    worker.reached()  # the third is not in the copy
    for process in (service, worker.process):
        process.kill()
        process.wait(20)
    restore(tmp_path)
    house.serve()

    assert house.runs() == 200
    assert house.ask("worker.metrics", window="1h")["totalRuns"] == 200
    house.worker("record_run(1, True); flush(20)").leave()
    until(lambda: house.ask("worker.metrics", window="1h")["totalRuns"] == 201)


def test_the_copies_are_their_owners_alone_and_are_replaced_when_they_are_whole(house, tmp_path):
    house.serve()
    until((tmp_path / FOLDERS[0] / "history.sqlite").exists)
    first, second = copied(house, tmp_path), copied(house, tmp_path)
    copies = sorted((tmp_path / "backup").iterdir())

    assert (first.returncode, second.returncode) == (0, 0)
    assert [path.name for path in copies] == ["history.sqlite", "state.sqlite"]
    assert {path.stat().st_mode & 0o777 for path in copies} == {0o600}


def test_what_cannot_be_copied_is_said(house, tmp_path):
    assert "there is no state" in copied(house, tmp_path).stderr
    nothing = command(tmp_path, "backup", "backup", ORBIT_STATE="none")
    assert "nothing on the disk" in nothing.stderr
    house.serve()
    own = command(tmp_path, "backup", FOLDERS[0], **house.environment())
    assert "the copies would take its place" in own.stderr
    assert own.returncode == 1


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%20b", "ä b"])
def test_a_state_of_any_name_is_copied(tmp_path, name):
    house = House(tmp_path, ORBIT_STATE=str(tmp_path / name / "state"))
    house.serve()
    done = command(tmp_path, "backup", "backup", **house.environment())
    house.close()

    assert done.returncode == 0, done.stderr
    assert tables(tmp_path / "backup/state.sqlite") >= {"journal", "checkpoint"}


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as copy:
        return {name for (name,) in copy.execute("SELECT name FROM sqlite_schema")}


@pytest.mark.parametrize("damage", ["empty", "no database", "locked"])
def test_what_cannot_be_read_leaves_the_copy_of_before(house, tmp_path, damage):
    service = house.serve()
    assert copied(house, tmp_path).returncode == 0
    before = (tmp_path / "backup/state.sqlite").read_bytes()
    service.terminate()
    service.wait(20)
    state = tmp_path / FOLDERS[0] / "state.sqlite"
    with closing(sqlite3.connect(state)) as other:
        if damage == "locked":
            other.execute("PRAGMA locking_mode=EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
        else:
            other.close()
            state.write_bytes(b"" if damage == "empty" else b"no database" * 1000)
        failed = copied(house, tmp_path)

    assert failed.returncode == 1
    assert "cannot be copied" in failed.stderr
    assert (tmp_path / "backup/state.sqlite").read_bytes() == before
    assert not list((tmp_path / "backup").glob(".*"))  # nothing unfinished


def test_a_history_that_cannot_be_copied_leaves_the_state_of_before_too(house, tmp_path):
    service = house.serve()
    until((tmp_path / FOLDERS[0] / "history.sqlite").exists)
    assert copied(house, tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
    house.worker("record_run(1, True); flush(20)").leave()
    service.terminate()
    service.wait(20)
    (tmp_path / FOLDERS[0] / "history.sqlite").write_bytes(b"")

    assert "history.sqlite cannot be copied" in copied(house, tmp_path).stderr
    assert {path: path.read_bytes() for path in (tmp_path / "backup").iterdir()} == before


def test_what_a_killed_backup_left_is_gone_after_the_next(house, tmp_path):
    house.serve()
    left = tmp_path / "backup" / ".unfinished"
    left.mkdir(parents=True)
    (left / "state.sqlite-journal").write_text("half")

    assert copied(house, tmp_path).returncode == 0
    assert not left.exists()
