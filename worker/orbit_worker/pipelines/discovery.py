"""Find the pipelines in a folder; a file that cannot be loaded is told of, and the others load."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from orbit_worker.pipelines.definition import Pipeline


@dataclass(slots=True)
class Found:
    """Pipelines by name, and a sentence for each file that is broken."""

    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def discover(folder: Path) -> Found:
    """Load every `*.py` of the folder that does not begin with an underscore, in order."""
    found = Found()
    # Files of a folder may import one another, and their own helpers.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    for path in sorted(folder.glob("[!_]*.py")):
        try:
            module = _load(path)
        except BaseException as error:  # somebody's file; it may even call sys.exit
            if isinstance(error, KeyboardInterrupt):
                raise
            found.broken.append(f"{path}: {type(error).__name__}: {error}")
            continue
        for pipeline in vars(module).values():
            if isinstance(pipeline, Pipeline):
                _add(found, pipeline, path)
    return found


def _load(path: Path) -> ModuleType:
    # The name is fixed by the file, so that results of classes defined there can
    # be stored by one process and read by the next.
    name = f"orbit_pipelines_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None, "a path that ends in .py has a spec"
    assert spec.loader is not None, "and a loader"
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add(found: Found, pipeline: Pipeline, path: Path) -> None:
    other = found.pipelines.setdefault(pipeline.name, pipeline)
    if other is not pipeline:
        found.broken.append(f"{path}: there is a pipeline {pipeline.name!r} already; left out")
