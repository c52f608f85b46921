"""
The types of all procedures, and a small client, in TypeScript: made from the OpenRPC document.

One file without dependencies, for whatever has `fetch`: browsers, Node, Deno, Bun. It holds
what is answered over HTTP; what a WebSocket tells of itself stands in it as types alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

IDENTIFIER = re.compile(r"[A-Za-z_$][\w$]*")
SIMPLE = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}


def typescript(document: Mapping[str, Any]) -> str:
    """The file, the same for the same document."""
    methods = [method for method in document["methods"] if "x-transport" not in method]
    notifications = document["x-notifications"]
    schemas = document["components"]["schemas"]
    roots = [
        *(method["result"]["schema"] for method in methods),
        *(param["schema"] for method in methods for param in method["params"]),
        *(notification["params"] for notification in notifications),
    ]
    told = {_referred(notification["params"]) for notification in notifications}
    parts = [
        HEAD.replace("VERSION", document["info"]["version"]),
        *(
            _result(name, schemas[name], whole=name not in told)
            for name in sorted(_reached(roots, schemas))
        ),
        *(_params(method) for method in methods if method["params"]),
        _procedures(methods),
        _notifications(notifications),
        _error_codes(document["components"]["errors"]),
        CLIENT.replace("SERVICES", "\n\n".join(_services(methods))),
    ]
    return "\n\n".join(parts)


# ---------------------------------------------------------------- types


def _reached(roots: Iterable[Any], schemas: Mapping[str, Schema]) -> set[str]:
    """The names of the schemas that these refer to, directly or not."""
    found: set[str] = set()
    waiting = [name for root in roots for name in _references(root)]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _references(schemas[name])
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if "$ref" in schema:
            yield _referred(schema)
        for part in schema.values():
            yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _referred(schema: Schema) -> str:
    name: str = schema["$ref"].rpartition("/")[2]
    return name


def _result(name: str, schema: Schema, *, whole: bool) -> str:
    """`whole`: no field is missing, also none that has a default, as in every answer."""
    needed = schema.get("required", [])
    fields = [
        _field(field, part, _description(part), optional=not whole and field not in needed)
        for field, part in schema.get("properties", {}).items()
    ]
    return _interface(name, schema.get("description"), fields)


def _params(method: Schema) -> str:
    fields = [
        _field(
            param["name"],
            param["schema"],
            _with_default(param["schema"]),
            optional=not param["required"],
        )
        for param in method["params"]
    ]
    return _interface(_params_type(method), None, fields)


def _params_type(method: Schema) -> str:
    if not method["params"]:
        return "Record<string, never>"
    return "".join(part[0].upper() + part[1:] for part in method["name"].split(".")) + "Params"


def _interface(name: str, description: str | None, fields: list[str]) -> str:
    return "\n".join([*_comment(description, ""), f"export interface {name} {{", *fields, "}"])


def _field(name: str, schema: Schema, description: str | None, *, optional: bool) -> str:
    lines = _comment(description, "  ")
    key = name if IDENTIFIER.fullmatch(name) else json.dumps(name)
    return "\n".join([*lines, f"  {key}{'?' if optional else ''}: {_type(schema)};"])


def _description(schema: Schema) -> str | None:
    """Its own, or that of the one of its forms which has some."""
    said = [schema, *schema.get("anyOf", [])]
    return next((part["description"] for part in said if "description" in part), None)


def _with_default(schema: Schema) -> str | None:
    text, default = _description(schema), schema.get("default")
    if default is None:
        return text
    return "; ".join(filter(None, [text, f"by default {json.dumps(default)}"]))


def _comment(text: str | None, indent: str) -> list[str]:
    if text is None:
        return []
    lines = [line.rstrip() for line in text.replace("*/", "* /").splitlines()]
    if len(lines) == 1:
        return [f"{indent}/** {lines[0]} */"]
    return [f"{indent}/**", *(f"{indent} * {line}".rstrip() for line in lines), f"{indent} */"]


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        return _referred(schema)
    if "anyOf" in schema:
        return _union(_type(part) for part in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return _union(map(json.dumps, schema["enum"]))
    kind = schema.get("type")
    if kind == "array":
        return f"Array<{_type(schema['items'])}>"
    if kind == "object":
        values = schema.get("additionalProperties", True)
        return f"Record<string, {_type(values) if isinstance(values, Mapping) else 'unknown'}>"
    return "unknown" if kind is None else SIMPLE[kind]


def _union(types: Iterable[str]) -> str:
    parts = dict.fromkeys(part for given in types for part in given.split(" | "))
    return " | ".join(parts)


# ---------------------------------------------------------------- procedures


def _procedures(methods: list[Schema]) -> str:
    lines = [
        "\n".join(
            [
                *_comment(method["summary"], "  "),
                f'  "{method["name"]}": {{ params: {_params_type(method)}; '
                f"result: {_type(method['result']['schema'])} }};",
            ]
        )
        for method in methods
    ]
    return "\n".join(["export interface Procedures {", *lines, "}"])


def _notifications(notifications: list[Schema]) -> str:
    rows = [f'  "{told["name"]}": {_type(told["params"])};' for told in notifications]
    head = "/** What a WebSocket at /ws tells of itself, by the name of the notification. */"
    return "\n".join([head, "export interface Notifications {", *rows, "}"])


def _error_codes(errors: Mapping[str, Schema]) -> str:
    rows = [f"  {name}: {error['code']}," for name, error in sorted(errors.items())]
    head = "/** The codes of errors by their names. */"
    return "\n".join([head, "export const errorCodes = {", *rows, "} as const;"])


def _services(methods: list[Schema]) -> Iterator[str]:
    """Each part before the dot, with a method for each after it."""
    groups: dict[str, list[Schema]] = {}
    for method in methods:
        groups.setdefault(method["name"].partition(".")[0], []).append(method)
    for group, members in groups.items():
        lines = [line for member in members for line in _shortcut(member)]
        yield "\n".join([f"  readonly {group} = {{", *lines, "  };"])


def _shortcut(method: Schema) -> list[str]:
    name = method["name"]
    given, passed = "", ""
    if method["params"]:
        needed = any(param["required"] for param in method["params"])
        given, passed = f"params: {_params_type(method)}{'' if needed else ' = {}'}", ", params"
    return [
        *_comment(method["summary"], "    "),
        f'    {name.partition(".")[2]}: ({given}) => this.call("{name}"{passed}),',
    ]


HEAD = """\
/// <reference lib="es2022" />
// Orbit Metrics VERSION: its procedures, with their types, and a small client.
// Printed by `orbit-metrics typescript`. After an upgrade print it anew; change nothing in it.
// Where nothing else is said, times are epoch milliseconds (UTC), durations milliseconds,
// rates percent.
//
//   const orbit = new OrbitMetrics("http://127.0.0.1:8790");
//   const { totalRuns, p95 } = await orbit.worker.metrics({ window: "1h" });\
"""

CLIENT = """\
/** The service has answered that it cannot, or that the call is wrong. */
export class CallFailed extends Error {
  override readonly name = "CallFailed";
  readonly code: number;
  /** Which error it is; undefined for one that a newer service knows. */
  readonly kind: keyof typeof errorCodes | undefined;
  /** What is known of it, such as `problems` (of params) or `advice`. */
  readonly data: Record<string, unknown>;

  constructor(error: { code: number; message: string; data?: Record<string, unknown> }) {
    const problems = error.data?.["problems"];
    super(Array.isArray(problems) ? `${error.message}: ${problems.join("; ")}` : error.message);
    this.code = error.code;
    this.data = error.data ?? {};
    const kinds = Object.keys(errorCodes) as Array<keyof typeof errorCodes>;
    this.kind = kinds.find((kind) => errorCodes[kind] === error.code);
  }
}

/** There was no answer: nobody is there, it took too long, or HTTP was refused (`status`). */
export class NoAnswer extends Error {
  override readonly name = "NoAnswer";
  readonly timedOut: boolean;
  readonly status: number | undefined;

  constructor(message: string, more: { cause?: unknown; timedOut?: boolean; status?: number }) {
    super(message, { cause: more.cause });
    this.timedOut = more.timedOut ?? false;
    this.status = more.status;
  }
}

export interface Options {
  /** That of ORBIT_TOKEN, where the service has one. */
  token?: string;
  /** How long a call may take; questions about the past may have to wait for a database. */
  timeoutMs?: number;
  /** In place of the global one. */
  fetch?: typeof fetch;
}

/** Params may be left out where none is required. */
type Given<P> = Record<string, never> extends P ? [params?: P] : [params: P];

export class OrbitMetrics {
  readonly url: string;
  private readonly options: Options;

  /** `url` is that of the service, such as "http://127.0.0.1:8790". */
  constructor(url: string, options: Options = {}) {
    this.url = url.replace(/\\/+$/, "");
    this.options = options;
  }

  /** The result of a procedure. Throws CallFailed or NoAnswer. */
  async call<N extends keyof Procedures>(
    method: N,
    ...[params]: Given<Procedures[N]["params"]>
  ): Promise<Procedures[N]["result"]> {
    const { token, timeoutMs = 35_000, fetch: ask = fetch } = this.options;
    let answer;
    try {
      const response = await ask(`${this.url}/rpc`, {
        method: "POST",
        headers: {
          "Content-Type": "application/json",
          ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }),
        },
        body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params: params ?? {} }),
        signal: AbortSignal.timeout(timeoutMs),
      });
      if (!response.ok) {
        const said = (await response.text()).trim();
        throw new NoAnswer(`${response.status}: ${said}`, { status: response.status });
      }
      answer = await response.json();
    } catch (error) {
      if (error instanceof NoAnswer) throw error;
      const timedOut = error instanceof Error && error.name === "TimeoutError";
      const why = timedOut ? `none within ${timeoutMs} ms` : String(error);
      throw new NoAnswer(`no answer from ${this.url}: ${why}`, { cause: error, timedOut });
    }
    if (answer.error !== undefined) throw new CallFailed(answer.error);
    return answer.result;
  }

SERVICES
}
"""
