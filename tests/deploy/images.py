"""The image as tests/deploy/build_image.sh leaves it, and what others may rely on in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVICE_UID = 10001
# Owner, group and mode; a named volume of Docker takes them from here while it is empty.
FOLDERS = {
    "/run/orbit-metrics": (SERVICE_UID, 0, 0o775),
    "/var/lib/orbit-metrics": (SERVICE_UID, 0, 0o770),
}


@dataclass(frozen=True)
class Image:
    """An image that was built: its root, its config, and its compressed sizes in bytes."""

    root: Path
    environ: Mapping[str, str]
    user: str
    command: Sequence[str]  # the entry point and its arguments
    probe: Sequence[str]  # of the health check
    labels: Mapping[str, str]
    ports: Mapping[str, object]
    base_size: int
    size: int


def built_image() -> Image:
    """The image in $ORBIT_TEST_IMAGE; skips where there is none, in CI too.

    CI runs `make test-image` where it can, and says so where not.
    """
    folder = os.environ.get("ORBIT_TEST_IMAGE")
    if folder is None:
        pytest.skip("run make test-image")
    config = json.loads(Path(folder, "config.json").read_text())
    kind, *probe = config["Healthcheck"]["Test"]
    assert kind == "CMD"
    base_size, size = map(int, Path(folder, "sizes").read_text().split())
    return Image(
        root=Path(folder, "root").resolve(),
        environ=dict(pair.split("=", 1) for pair in config["Env"]),
        user=config["User"],
        command=[*config["Entrypoint"], *config["Cmd"]],
        probe=probe,
        labels=config["Labels"],
        ports=config.get("ExposedPorts") or {},
        base_size=base_size,
        size=size,
    )
