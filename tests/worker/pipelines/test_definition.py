"""What a pipeline may be, and how a folder of them is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from orbit_worker.pipelines import Pipeline, Step, step
from orbit_worker.pipelines.discovery import discover

GOOD = """
from orbit_worker.pipelines import Pipeline
def one(value): return value
pipeline = Pipeline({name!r}, steps=[one])
"""


def folder(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def one(value):
    return value


def test_plain_functions_become_steps_of_their_own_name():
    assert [s.name for s in Pipeline("p", steps=[one, step(name="two")(one)]).steps] == [
        "one",
        "two",
    ]


def test_a_step_can_still_be_called_as_the_function_that_it_is():
    assert step(retries=3)(one)(7) == 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pipeline("", steps=[one]),
        lambda: Pipeline("p", steps=[]),
        lambda: Pipeline("p", steps=[one, one]),
        lambda: Pipeline("p", steps=[Step(f"s{n}", one) for n in range(101)]),
        lambda: Step("s\n", one),
        lambda: Step("s", one, retries=-1),
        lambda: Step("s", one, timeout=-1),
    ],
    ids=["no name", "no steps", "same name", "101 steps", "control", "retries", "timeout"],
)
def test_what_is_no_pipeline_is_refused_where_it_is_written(make):
    with pytest.raises(ValueError):
        make()


def test_every_file_of_a_folder_is_loaded_but_those_that_begin_with_an_underscore(tmp_path):
    found = discover(folder(tmp_path, a=GOOD.format(name="a"), b=GOOD.format(name="b"), _c="1 / 0"))

    assert (sorted(found.pipelines), found.broken) == (["a", "b"], [])


@pytest.mark.parametrize(
    "broken", ["def (", "1 / 0", "import no_such_module", "raise SystemExit(3)"]
)
def test_a_broken_file_is_told_of_and_the_others_load(tmp_path, broken):
    found = discover(folder(tmp_path, bad=broken, good=GOOD.format(name="good")))

    assert list(found.pipelines) == ["good"]
    assert "bad.py" in found.broken[0]


def test_the_second_pipeline_of_a_name_is_left_out_and_told_of(tmp_path):
    found = discover(folder(tmp_path, a=GOOD.format(name="p"), b=GOOD.format(name="p")))

    assert (len(found.pipelines), len(found.broken)) == (1, 1)
