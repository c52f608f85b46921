"""Read, parse, measure and store one Python file: what the demo does to the standard library."""

import ast
import os
import sqlite3
import tempfile
import tokenize
from pathlib import Path
from typing import Any

from orbit_worker.pipelines import Pipeline, step

STORE = os.environ.get("CENSUS_STORE") or str(
    Path(tempfile.gettempdir()) / f"source-census-{os.getuid()}.db"
)


@step(retries=1, timeout=10)
def read(path: str) -> dict[str, str]:
    """The text of the file, in the encoding that it declares."""
    with tokenize.open(path) as file:
        return {"path": path, "text": file.read()}


def parse(source: dict[str, str]) -> dict[str, Any]:
    """Raise SyntaxError where the file is not Python."""
    tree = ast.parse(source["text"], filename=source["path"])
    return {**source, "nodes": [type(node).__name__ for node in ast.walk(tree)]}


def measure(parsed: dict[str, Any]) -> dict[str, Any]:
    nodes = parsed["nodes"]
    return {
        "path": parsed["path"],
        "lines": parsed["text"].count("\n"),
        "functions": nodes.count("FunctionDef") + nodes.count("AsyncFunctionDef"),
        "classes": nodes.count("ClassDef"),
    }


@step(retries=3, timeout=30)
def store(measured: dict[str, Any]) -> dict[str, Any]:
    """Keep the newest figures of each file."""
    with sqlite3.connect(STORE, timeout=20) as database:
        database.execute(
            "create table if not exists census "
            "(path text primary key, lines int, functions int, classes int)"
        )
        database.execute(
            "insert or replace into census values (:path, :lines, :functions, :classes)", measured
        )
    database.close()
    return measured


pipeline = Pipeline(
    "source_census",
    description="Counts lines, functions and classes of one Python file",
    steps=[read, parse, measure, store],
)
