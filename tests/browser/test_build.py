"""How the page gets into the package: what is built from, and what is packed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from orbit_service.transport.pages import FOLDER

DASHBOARD = FOLDER.parent
ROOT = Path(__file__).parents[2]


def test_every_package_of_the_page_is_locked_by_its_hash_and_by_no_host():
    lock = json.loads((DASHBOARD / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}

    assert packages != {}
    assert [name for name, package in packages.items() if "integrity" not in package] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []


@pytest.fixture
def wheel(tmp_path: Path) -> list[str]:
    """What a wheel of the page that is here holds; it is not built anew under other tests."""
    if not FOLDER.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the page was not built: make page")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=ROOT,
        env={**os.environ, "HATCH_BUILD_NO_HOOKS": "true"},
        capture_output=True,
        check=True,
    )
    with ZipFile(next(tmp_path.glob("*.whl"))) as packed:
        return packed.namelist()


def test_a_wheel_holds_the_built_page_and_nothing_that_it_was_built_from(wheel):
    built = {
        f"orbit_service/dashboard/dist/{path.relative_to(FOLDER)}"
        for path in FOLDER.rglob("*")
        if path.is_file()
    }

    assert {name for name in wheel if "/dashboard/" in name} == built
