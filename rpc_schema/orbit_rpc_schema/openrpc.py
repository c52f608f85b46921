"""
The OpenRPC document (spec.open-rpc.org, 1.3), made from the table of procedures.

Only what is built stands in it, because it is made from what is served. Methods
that the worker socket alone answers carry `x-transport: unix`, those of a WebSocket
alone `x-transport: websocket`; what these send of themselves is in `x-notifications`.
"""

from __future__ import annotations

from functools import cache
from inspect import cleandoc
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from orbit_rpc_schema.errors import OrbitError, all_errors
from orbit_rpc_schema.messages import WRITING, WritingMethod, json_schemas
from orbit_rpc_schema.model import NoParams
from orbit_rpc_schema.procedures import LIVE, NOTIFICATIONS, PROCEDURES, Procedure

Document = dict[str, Any]


@cache
def document(version: str, names: frozenset[str] | None = None) -> Document:
    """The document of this version of the service. Shared by all callers: do not change it.

    `names` are the procedures that a hub answers, and nothing else; None: all methods.
    """
    schemas, components = _reading_schemas()
    writing, writing_components = json_schemas()
    # Each half is named by its own library; neither may hide a schema of the other.
    clash = components.keys() & writing_components.keys()
    if clash:
        raise ValueError(f"two schemas are named alike: {sorted(clash)}")
    components.update(writing_components)
    methods = [
        _method(procedure, *schemas[procedure.name], components)
        for procedure in PROCEDURES.values()
        if names is None or procedure.name in names
    ]
    methods += [
        {
            **_method(procedure, *schemas[procedure.name], components),
            "x-transport": "websocket",
        }
        for procedure in LIVE.values()
    ]
    methods += [
        {**_method(method, params, result, components), "x-transport": "unix"}
        for method, params, result in zip(
            WRITING.values(), writing[0::2], writing[1::2], strict=True
        )
        if names is None
    ]
    return {
        "openrpc": "1.3.2",
        "info": {
            "title": "Orbit Metrics",
            "version": version,
            "description": "The metrics sidecar for background workers. JSON-RPC 2.0 over POST "
            "/rpc, the WebSocket /ws and the worker socket, params by name or by position.",
        },
        "methods": methods,
        "x-notifications": [{"name": name, "params": schemas[name][1]} for name in NOTIFICATIONS],
        "components": {
            "schemas": components,
            # The service has errors of its own, at its start; no caller meets them.
            "errors": {
                error.__name__: _error(error)
                for error in all_errors()
                if error.__module__ == OrbitError.__module__
            },
        },
    }


def _reading_schemas() -> tuple[dict[str, tuple[Document, Document]], Document]:
    """Params and result of each procedure as JSON Schemas, then their components."""
    # Params describe what is accepted, results what is answered: in an answer no
    # field with a default is missing.
    wanted: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = []
    for name, procedure in (PROCEDURES | LIVE).items():
        wanted.append((name, "validation", TypeAdapter(procedure.params)))
        wanted.append((name, "serialization", TypeAdapter(procedure.result)))
    for name, told in NOTIFICATIONS.items():
        wanted.append((name, "validation", TypeAdapter(NoParams)))
        wanted.append((name, "serialization", TypeAdapter(told)))
    mapping, definitions = TypeAdapter.json_schemas(
        wanted,
        ref_template="#/components/schemas/{model}",
    )
    schemas = {
        name: (mapping[name, "validation"], mapping[name, "serialization"])
        for name, mode in mapping
        if mode == "serialization"
    }
    return schemas, dict(definitions.get("$defs", {}))


def _method(
    row: Procedure | WritingMethod, params: Document, result: Document, components: Document
) -> Document:
    return {
        "name": row.name,
        "summary": row.summary,
        "paramStructure": "either",
        "params": _content_descriptors(params, components),
        "result": {"name": "result", "schema": result},
    }


def _content_descriptors(schema: Document, components: Document) -> list[Document]:
    """OpenRPC lists params one by one, where a JSON Schema has one object for all."""
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    required = schema.get("required", [])
    return [
        {"name": name, "required": name in required, "schema": part}
        for name, part in schema.get("properties", {}).items()
    ]


def _error(error: type[OrbitError]) -> Document:
    text = cleandoc(error.__doc__ or error.__name__)
    return {"code": error.code, "message": text.partition("\n")[0]}
