"""What the house promises about itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from orbit_rpc_schema.procedures import PROCEDURES
from orbit_service.alerts.metrics import METRICS
from orbit_service.alerts.rules import Action, Channel, Quiet, RecoverySettings, Rule, RuleFile
from orbit_service.settings import known_names

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_base_install_has_no_dependencies():
    assert PROJECT["project"]["dependencies"] == []


def test_everything_that_is_installed_is_locked_with_its_hash():
    files = [ROOT / "requirements.lock", *(ROOT / "tests" / "frameworks").glob("*.lock")]
    lock = "\n".join(file.read_text() for file in files)
    wanted = [*PROJECT["dependency-groups"]["dev"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement).group()
        assert re.search(rf"^{name}==[^\n]*\\\n    --hash=sha256:", lock, re.MULTILINE), name


def test_the_readme_names_every_setting_and_no_other():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line[:3] == "| `"]
    named = {name for row in rows for name in re.findall(r"`([A-Z_]{4,})`", row.split("|")[1])}

    assert named == known_names()


def test_the_readme_names_every_procedure_that_is_answered():
    readme = (ROOT / "README.md").read_text()

    assert [name for name in PROCEDURES if f"`{name}`" not in readme] == []


def test_operations_say_what_each_metric_of_the_service_asks_of_one():
    families = (ROOT / "service/orbit_service/exporters/families.py").read_text()
    page = (ROOT / "docs/operations.md").read_text()
    # What one judges oneself: of runs, steps and queues.
    own = re.findall(r'"(orbit_(?!run|step|queue)[a-z_]+|process_resident[a-z_]+)"', families)

    assert len(own) > 15
    assert [name for name in own if name not in page] == []


def test_alerts_are_documented_with_every_setting_and_metric():
    page = (ROOT / "docs/alerts.md").read_text()
    tables = " ".join(line for line in page.splitlines() if line.startswith("| `"))
    parts = (RuleFile, Rule, Channel, Quiet, RecoverySettings, Action)
    settings = {f.alias or name for part in parts for name, f in part.model_fields.items()}
    settings -= {"recovery", "channels", "rules", "actions"}  # which have a heading or a table

    assert [name for name in sorted(settings) if f"`{name}`" not in tables] == []
    assert [name for name in METRICS if f"`{name}`" not in page] == []


def test_the_client_imports_nothing_but_itself_and_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import orbit_worker; "
        "roots = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(*sorted(roots - sys.stdlib_module_names))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert printed.split() == ["orbit_rpc_schema", "orbit_worker"]


def test_only_a_docstring_that_is_filled_in_has_fields():
    # Explained fills in its docstring; of any other error nobody would.
    unfilled = [
        f"{path.name}: {error.name}"
        for folder in ("rpc_schema", "service", "worker")
        for path in (ROOT / folder).rglob("*.py")
        for error in ast.walk(ast.parse(path.read_text()))
        if isinstance(error, ast.ClassDef) and "Exception" in [ast.unparse(b) for b in error.bases]
        if error.name != "Explained" and re.search(r"{\w+}", ast.get_docstring(error) or "")
    ]

    assert unfilled == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "broken").glob("*.py")), ids=str)
def test_the_broken_examples_are_broken_on_every_python(path):
    checked = subprocess.run(
        [sys.executable, "-m", "py_compile", str(path)], capture_output=True, check=False
    )

    assert checked.returncode == 1
