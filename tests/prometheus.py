"""A real Prometheus that scrapes a service every second, and its promtool."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from builders import until

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

CONFIGURATION = """
global: {{scrape_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: orbit-metrics
    static_configs: [{{targets: ["{target}"]}}]
"""


def tool(name: str) -> str:
    """The path of a program of Prometheus; a test that needs it is skipped without, but in CI."""
    found = shutil.which(name)
    if found is None:
        said = f"{name} is not installed; Debian's package prometheus brings it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(said)
    return found


def promtool(*arguments: str | Path, stdin: str | None = None) -> None:
    """Fails with what promtool says, of a lint too."""
    said = subprocess.run(
        [tool("promtool"), *map(str, arguments)],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout


def scrape(address: str, accept: str = "text/plain") -> str:
    """The page of the service at host:port."""
    request = Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urlopen(request, timeout=20) as answer:
        return str(answer.read().decode())


class Prometheus:
    """A server whose data are in `folder`; `rules` are the text of a file."""

    def __init__(self, folder: Path, target: str, *flags: str, rules: str = "") -> None:
        program = tool("prometheus")
        folder.mkdir()
        (folder / "rules.yml").write_text(rules)
        configuration = folder / "prometheus.yml"
        configuration.write_text(CONFIGURATION.format(target=target))
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                    *flags,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        # Where it listens is known from its log alone.
        self.address = until(self._listening)

    def _listening(self) -> str | None:
        log = self._log.read_text()
        assert self._process.poll() is None, log
        found = re.search(r'"Listening on" address=(\S+)', log)
        return found and found[1]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query: samples with their `metric` and their `value`."""
        return self._ask("query", query=expression).get("result", [])

    def rules(self) -> list[dict[str, Any]]:
        """Each with its `name`, and its `health` when it was last evaluated."""
        groups = self._ask("rules").get("groups", [])
        return [rule for group in groups for rule in group["rules"]]

    def _ask(self, what: str, **parameters: str) -> dict[str, Any]:
        """The data; empty while it is still starting."""
        url = f"http://{self.address}/api/v1/{what}?{urlencode(parameters)}"
        try:
            with urlopen(url, timeout=20) as answer:
                return dict(json.load(answer)["data"])
        except HTTPError as error:
            if error.code != 503:
                raise AssertionError(error.read().decode()) from None
            return {}
        except OSError:
            return {}

    def values(self, expression: str) -> list[float]:
        """The values that are numbers."""
        values = (float(sample["value"][1]) for sample in self.query(expression))
        return [value for value in values if not math.isnan(value)]

    def value(self, expression: str) -> float | None:
        """The one value; None while there is none."""
        values = self.values(expression)
        assert len(values) <= 1, f"{expression} has {len(values)} values"
        return values[0] if values else None

    def by(self, label: str, expression: str) -> dict[str, float]:
        samples = self.query(expression)
        return {sample["metric"].get(label, ""): float(sample["value"][1]) for sample in samples}
