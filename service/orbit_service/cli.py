"""The command line. Every command fails with a sentence and an exit code, never a traceback."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from orbit_rpc_schema.caller import call, call_http
from orbit_rpc_schema.errors import Explained
from orbit_service.commands.alerts import alerts
from orbit_service.commands.asking import (
    ask,
    chosen,
    fail,
    read_token,
    socket_option,
    token,
    url_option,
    without_secret,
)

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Commands(click.Group):
    """A group whose commands end in sentences."""

    def invoke(self, context: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")  # a bar that a terminal cannot show
        try:
            return super().invoke(context)
        except BrokenPipeError:
            raise  # click's: the reader has seen enough
        except OSError as error:
            fail(f"{error.strerror or error}")
        except Explained as error:
            fail(str(error))
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith("orbit_"):
                raise
            extra = "pipelines" if missing.name == "dbos" else "service"
            fail(f"{missing.name} is not installed: install orbit-metrics[{extra}]")


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(package_name="orbit-metrics", prog_name="orbit-metrics")
def cli() -> None:
    """Orbit Metrics: the metrics sidecar for background workers.

    Settings come from the environment; `orbit-metrics check-config` shows them.
    """


cli.add_command(alerts)


# ---------------------------------------------------------------- the service


@cli.command()
@click.option(
    "--socket",
    type=click.Path(path_type=Path, readable=False),
    help="Instead of ORBIT_SOCKET.",
)
@click.option("--http", help="Instead of ORBIT_HTTP: host:port, or none.")
@click.option("--hub", is_flag=True, help="No workers: answer for all that share the history.")
def serve(socket: Path | None, http: str | None, hub: bool) -> None:
    """Run the service until SIGTERM or Ctrl-C.

    A hub is one address for many services: it reads what they write to the PostgreSQL
    at ORBIT_HISTORY_URL.
    """
    from orbit_service.settings import let_sqlite_sort, read_settings

    settings = read_settings(ORBIT_SOCKET=socket, ORBIT_HTTP=http)
    let_sqlite_sort(settings)
    from orbit_service.program import configure_logging

    configure_logging(settings.log_level)
    if hub:
        from orbit_service.hub import serve as serve_hub

        asyncio.run(serve_hub(settings))
    else:
        from orbit_service.app import serve as serve_node

        asyncio.run(serve_node(settings, creator()))


def creator() -> Callable[[str, Any], str] | None:
    """What puts in pending runs, where ORBIT_PIPELINES_DATABASE says into which database."""
    if not os.environ.get("ORBIT_PIPELINES_DATABASE") or find_spec("dbos") is None:
        return None
    from orbit_rpc_schema.errors import RunNotCreated

    @cache
    def store() -> Any:
        # Its library takes longer to import than the service to start.
        from orbit_worker.pipelines.store import Store, database_url

        return Store(database_url(None))

    def create(pipeline: str, value: Any) -> str:
        try:
            [id] = store().enqueue(pipeline, [value])
        except Exception as error:
            why = str(error).partition("\n")[0]
            raise RunNotCreated(why=why) from error
        return str(id)

    return create


@cli.command()
@click.option("--url", help="The database. [default: ORBIT_HISTORY_URL]")
def migrate(url: str | None) -> None:
    """Make or upgrade the tables of a shared history.

    Of the PostgreSQL at ORBIT_HISTORY_URL, before services of a new version start. Safe
    to run twice, or two at once. A history in SQLite needs none of it.
    """
    from orbit_service.settings import read_settings

    settings = read_settings(ORBIT_HISTORY_URL=url)
    if settings.history_url is None:
        fail("ORBIT_HISTORY_URL is not set; a history in SQLite is upgraded by the service itself")
    from orbit_service.history import engines, schema
    from orbit_service.history.port import HistoryFailed

    database = engines.postgres(engines.checked_url(settings.history_url))
    try:
        before, after = schema.migrate(database)
    except HistoryFailed as error:
        fail(f"the database cannot be upgraded: {error}")
    finally:
        database.close()
    click.echo(f"version {after}" if before == after else f"version {after}, from {before or '0'}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def backup(folder: Path) -> None:
    """Copy the state and the history into FOLDER, in place of older copies; the service may run.

    Of the directory ORBIT_STATE, as the user of the service. To go on from the copies, put
    them in place of what is there while no service runs. A history in PostgreSQL is backed
    up by its own means, after the state.
    """
    from orbit_service.backup import back_up
    from orbit_service.settings import read_settings

    state = read_settings().state
    if state is None:
        fail("ORBIT_STATE is none: there is nothing on the disk")
    for copy in back_up(state, folder):
        click.echo(f"{copy}  {copy.stat().st_size:,} bytes")


@cli.command("check-config")
def check_config() -> None:
    """Show the service's settings and check its rules; exit 1 for what is bad or unknown."""
    from orbit_service.core.rollup import duration_text
    from orbit_service.history.late import without_password
    from orbit_service.settings import read_settings, warnings

    settings = read_settings()
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name == "socket_mode":
            value = f"{value:04o}"
        if name == "allow_uids":
            value = "*" if value is None else ",".join(map(str, sorted(value))) or "(own and root)"
        if name in ("allowed_hosts", "cors_origins"):
            value = ",".join(sorted(value)) or None
        if name == "token":
            value = "(set)" if value else "(none)"
        if name == "otlp_headers":
            value = ",".join(f"{header}=(set)" for header in value) or None
        if name == "history_url" and value:
            value = without_password(value)
        if name == "retention":
            value = ",".join(duration_text(level.kept_ms) for level in value)
        click.echo(f"{field.alias} = {value if value is not None else '(none)'}")
    said = warnings(settings)
    if settings.alerts is not None:
        said += _problems_of_rules(settings.alerts)
    if said:
        fail("\n".join(said))


def _problems_of_rules(path: Path) -> list[str]:
    """A line for each; where there are none, what the file holds is printed."""
    from orbit_service.alerting.runner import read_checked
    from orbit_service.alerts.rules import RulesFailed

    try:
        file = read_checked(path)
    except RulesFailed as failed:
        return failed.problems
    click.echo(f"{path} is good; rules: {len(file.rules)}, channels: {len(file.channels)}")
    return []


@cli.command()
@click.option(
    "--url",
    callback=without_secret,
    help="Over HTTP in place of the socket, for a hub: http://127.0.0.1:8790.",
)
def healthcheck(url: str | None) -> None:
    """Exit 0 when the service takes runs, or the hub answers; for a container's probe."""
    from orbit_service.healthcheck import healthcheck as probe

    sys.exit(probe(url))


@cli.command()
@socket_option
@click.option(
    "--url",
    callback=without_secret,
    help="Only this way over HTTP, such as http://metrics.example:8790.",
)
@click.option("--origin", help="Of a web page that is to ask, such as https://dash.example.")
def doctor(socket: Path, url: str | None, origin: str | None) -> None:
    """Find what is between a client and the service.

    Looks at the settings of this environment, at the way over the worker socket and at the
    one over HTTP. Run it as the worker's user, or where the dashboard is.
    """
    from orbit_service.doctor import Finding, examine
    from orbit_service.settings import BadSettings, read_settings, warnings

    try:
        findings = [Finding(True, f"settings: {said}") for said in warnings(read_settings())]
    except BadSettings as bad:
        findings = [Finding(False, f"settings: {line.strip()}") for line in bad.lines]
    found = None
    try:
        found = read_token()
    except ValueError as error:
        findings.append(Finding(False, f"settings: {error}"))
    findings += examine(socket, url, origin, found)
    for finding in findings:
        click.echo(f"{'ok  ' if finding.good else 'BAD '} {finding.text}")
    sys.exit(0 if all(finding.good for finding in findings) else 1)


# ---------------------------------------------------------------- questions


@cli.command()
@socket_option
@url_option
@click.option("--json", "as_json", is_flag=True, help="The result of worker.metrics as it is.")
@click.option("--worker", help="This worker's alone.")
@click.option("--pipeline", help="This pipeline's alone.")
@click.option("--window", help="Over so long until now, such as 5m or 24h.")
def metrics(socket: Path, url: str | None, as_json: bool, **selection: str | None) -> None:
    """Totals, rates and percentiles, now."""
    answer = ask(socket, url, "worker.metrics", chosen(selection))
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    from orbit_service.tables import metrics_table

    click.echo(metrics_table(answer, selection["window"]))


@cli.command()
@socket_option
@url_option
@click.option("--last", default="24h", show_default=True, help="So long until now: 90m, 24h, 30d.")
@click.option("--from", "from_", help="In place of --last: epoch ms, -2h, or ISO 8601 with offset.")
@click.option("--to", default="now", show_default=True, help="Likewise.")
@click.option("--step", help="Between two lines. [default: some 24 lines; about 200 points else]")
@click.option("--worker", help="This worker's alone.")
@click.option("--pipeline", help="This pipeline's alone.")
@click.option("--group-by", type=click.Choice(["worker", "pipeline", "node"]))
@click.option("--trend", is_flag=True, help="Compare with the range before.")
@click.option("--json", "as_json", is_flag=True, help="The result of worker.history as it is.")
@click.option("--csv", "as_csv", is_flag=True, help="A line for each point; times in UTC.")
def history(
    socket: Path,
    url: str | None,
    last: str,
    from_: str | None,
    as_json: bool,
    as_csv: bool,
    **options: Any,
) -> None:
    """Runs, failures and percentiles over time.

    \b
    orbit-metrics history --last 24h --pipeline import-orders
    orbit-metrics history --last 7d --group-by pipeline --csv
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude one another")
    options["groupBy"] = options.pop("group_by")
    options["from"] = from_ or f"-{last}"
    if not (options["step"] or as_json or as_csv):
        options["step"] = _readable_step(options["from"], options["to"])
    answer = ask(socket, url, "worker.history", chosen(options))
    from orbit_service.tables import history_csv, history_table

    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(history_csv(answer) if as_csv else history_table(answer), nl=not as_csv)


def _readable_step(start: str, end: str) -> int | None:
    """A step that gives some 24 lines; what is wrong with a range, the service says."""
    from orbit_service.clock import wall_clock
    from orbit_service.core.rollup import BadRange, plan
    from orbit_service.rpc.times import parse_time

    now_ms = wall_clock()
    try:
        times = parse_time(start, now_ms), parse_time(end, now_ms)
        return plan(*times, None, now_ms, wanted_points=24).step_ms
    except BadRange:
        return None


@cli.command("call")
@socket_option
@url_option
@click.argument("method")
@click.argument("params", default="{}", metavar="[JSON]")
def call_command(socket: Path, url: str | None, method: str, params: str) -> None:
    """Call METHOD with params as JSON, an object or an array.

    \b
    orbit-metrics call worker.recentRuns '{"limit": 3, "status": "failed"}'
    """
    try:
        parsed = json.loads(params)
    except (ValueError, RecursionError) as error:
        fail(f"the params are not JSON: {error}", code=2)
    if not isinstance(parsed, (dict, list)):
        fail("the params are an object or an array", code=2)
    click.echo(json.dumps(ask(socket, url, method, parsed), indent=2))


@cli.command()
@socket_option
@url_option
@click.option("--worker", help="This worker's alone.")
@click.option("--pipeline", help="This pipeline's alone.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks; what costs the service more is asked less often.",
)
@click.option("--once", is_flag=True, help="Print one frame with every row, and end.")
def top(
    socket: Path, url: str | None, interval: float, once: bool, **selection: str | None
) -> None:
    """Totals, pipelines, workers and last failures, live.

    The key ? tells what the keys do, and q ends it. Without a terminal on both sides, such
    as in a pipe, it behaves as with --once. It has no colours where NO_COLOR is set.
    """
    from orbit_service.top import screen
    from orbit_service.top.answers import PATIENCE, Questions

    bearer = None if url is None else token()

    def asked(method: str, params: Any) -> Any:
        if url is None:
            return call(socket, method, params, timeout=PATIENCE)
        return call_http(url, method, params, token=bearer, timeout=PATIENCE)

    ask(socket, url, "worker.metrics", chosen(selection))  # fails as other commands do
    questions = Questions(asked, **selection)
    first = questions.ask()
    if once or not screen.is_terminal():
        screen.once(first)
    else:
        screen.show(questions, first, interval)


@cli.command()
def openrpc() -> None:
    """Print the OpenRPC document.

    Of this version; no service is needed.
    """
    from orbit_rpc_schema.openrpc import document
    from orbit_service.program import VERSION

    click.echo(json.dumps(document(VERSION), indent=2))


@cli.command()
def typescript() -> None:
    """Print types of all procedures and a client, in TypeScript.

    Of this version; no service is needed.

    \b
    orbit-metrics typescript > orbit-metrics.ts
    """
    from orbit_rpc_schema.openrpc import document
    from orbit_service.program import VERSION
    from orbit_service.typescript import typescript as written

    click.echo(written(document(VERSION)), nl=False)


# ---------------------------------------------------------------- pipelines

pipelines_option = click.option(
    "--pipelines",
    "folder",
    type=click.Path(path_type=Path),
    default=lambda: os.environ.get("ORBIT_PIPELINES", "pipelines"),
    show_default="ORBIT_PIPELINES, else ./pipelines",
    help="The folder with the pipeline files.",
)
database_option = click.option(
    "--database",
    help="Where runs wait: a path or a postgresql:// URL. "
    "[default: ORBIT_PIPELINES_DATABASE, else a file in the state directory]",
)


def need_pipelines() -> None:
    """Name the missing extra before anything else is found wanting."""
    if find_spec("dbos") is None:
        raise ModuleNotFoundError("dbos is not installed", name="dbos")


@cli.command()
@pipelines_option
@database_option
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=4,
    envvar="ORBIT_CONCURRENCY",
    show_default=True,
    help="Runs at once.",
)
def worker(folder: Path, database: str | None, concurrency: int) -> None:
    """Execute pending runs of a folder's pipelines.

    Until SIGTERM or Ctrl-C; what is in flight then has 30 s to finish.
    """
    need_pipelines()
    from orbit_worker.pipelines.definition import CannotStart
    from orbit_worker.pipelines.worker import (
        load,
        log_level,
        poll_interval,
        run_worker,
    )

    try:
        logging.basicConfig(level=log_level(), format="%(asctime)s %(levelname)-7s %(message)s")
        interval = poll_interval()
        found = load(folder)
        from orbit_worker.pipelines.store import database_url

        url = database_url(database)
        run_worker(found, url, concurrency=concurrency, poll_interval_ms=interval)
    except CannotStart as reason:
        fail(str(reason))


@cli.command("run")
@pipelines_option
@database_option
@click.argument("pipeline")
@click.option("--input", "given", default="null", help="The first step's input, as JSON.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit 1 if the run failed.")
def run_command(folder: Path, database: str | None, pipeline: str, given: str, wait: bool) -> None:
    """Put in a pending run of PIPELINE and print its id."""
    need_pipelines()
    from orbit_worker.pipelines.definition import CannotStart
    from orbit_worker.pipelines.worker import load

    try:
        value = json.loads(given)
    except (ValueError, RecursionError) as error:
        fail(f"the input is not JSON: {error}", code=2)
    try:
        known = load(folder).pipelines
    except CannotStart as reason:
        fail(str(reason))
    if pipeline not in known:
        fail(f"there is no pipeline {pipeline!r}; known are: {', '.join(sorted(known))}")
    from orbit_worker.pipelines.store import Store, database_url

    try:
        store = Store(database_url(database))
    except CannotStart as reason:
        fail(str(reason))
    [id] = store.enqueue(pipeline, [value])
    if not wait:
        click.echo(id)
        return
    click.echo(f"waiting for {id}; a worker has to be there: orbit-metrics worker", err=True)
    outcome = store.wait(id)
    if outcome["error"] is not None:
        fail(f"{pipeline} failed: {outcome['error']['type']}: {outcome['error']['message']}")
    try:
        click.echo(json.dumps(outcome["value"], indent=2, default=str))
    except (TypeError, ValueError):  # keys that JSON has no form for, or a circle
        click.echo(repr(outcome["value"]))


@cli.command()
@click.option("--once", is_flag=True, help="End after the runs, with worker.metrics as JSON.")
@click.option("--runs", type=click.IntRange(1, 10_000), default=400, show_default=True)
@click.option("--http", default=None, help="Address of the HTTP API. [default: a free port]")
def demo(once: bool, runs: int, http: str | None) -> None:
    """Start a service and a worker, and watch real runs.

    Puts in several hundred runs of the pipelines in examples/, shows the numbers as they
    change, and leaves the service up until Ctrl-C.
    """
    from orbit_service.demo import Demo
    from orbit_worker.pipelines.store import Store, database_url

    def enqueue(database: Path, pipeline: str, inputs: list[Any]) -> None:
        store = Store(database_url(str(database)))
        store.enqueue(pipeline, inputs)
        store.close()

    sys.exit(Demo(enqueue, runs=runs, http=http, once=once).run())
