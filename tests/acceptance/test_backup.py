"""A copy of the state and the history, from which a service goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

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
