"""
One frame of the terminal from answers, state and size; pure.

No line is wider than the terminal and none wraps: columns go by importance, then
texts are cut. Whatever a worker calls itself is text: no control character and no
markup of it has an effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from orbit_rpc_schema.wire import Json
from orbit_service.plain import plain
from orbit_service.top.answers import Answers, Unanswered
from orbit_service.top.state import LARGEST_FIRST, PANES, Pane, Sort, State

STYLES = {"healthy": "green", "warning": "yellow", "error": "bold red"}
SEVERITIES = {"info": "cyan", "warning": "yellow", "critical": "bold red"}
ELLIPSIS = "…"
GAP = 2  # columns between two columns
LEAST_SENTENCE = 20  # cells; with less, it has the line to itself
LEAST_ROWS = 3  # of a pane that shares the terminal
WARNING_PERCENT, ERROR_PERCENT = 10.0, 50.0  # as worker.health judges

HELP = (
    ("n r f e p l", "sort by name, runs, failed, error rate, p95, last"),
    ("", "the same again: the other way round"),
    ("/", "filter by a text; Enter keeps it, Esc drops it"),
    ("Tab 1 2 3", "pipelines, workers, failures"),
    ("Enter", "that alone, and back"),
    ("↑ ↓ PgUp PgDn", "scroll; g and G: to the first and the last"),
    ("Space", "pause"),
    ("q Esc Ctrl-C", "quit"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    lines: list[Text]
    most_offset: int  # as far as the pane can be scrolled


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """`rank`: the higher goes first where there is no room."""

    title: str
    width: int
    rank: int
    sort: Sort | None = None
    left: bool = False
    least: int = 24  # of the one that has no width and takes what is left


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table, with what it is sorted by."""

    cells: Sequence[Cell]
    name: str
    runs: int = 0
    failed: int = 0
    errors: float | None = None
    p95: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row] = ()
    empty: str = ""
    sorted: bool = True


def frame(
    answers: Answers, state: State, width: int, height: int | None, silent: float | None = None
) -> Frame:
    """The lines of a terminal so wide and high, or all lines there are where `height` is None.

    `silent`: for how many seconds nothing was answered, where that is so.
    """
    head = _head(answers, state, width, height, silent)
    if state.help:
        lines = [*head, Text(""), *_help(width)]
        return Frame(lines if height is None else lines[:height], 0)
    tables = {
        pane: _chosen(table(answers), state) if pane != "failures" else table(answers)
        for pane, table in TABLES.items()
    }
    tables = {pane: _filtered(table, state.filter) for pane, table in tables.items()}
    if height is None:
        everything = {pane: max(1, len(table.rows)) for pane, table in tables.items()}
        return Frame([*head, *_body(tables, everything, width, state)], 0)
    room = max(0, height - len(head) - 1)
    shown = _shares({pane: len(table.rows) for pane, table in tables.items()}, room, state)
    most = max(0, len(tables[state.pane].rows) - shown[state.pane])
    seen = replace(state, offset=min(state.offset, most))
    body = list(_body(tables, shown, width, seen, focus=True))[:room]
    blank = [Text("")] * (room - len(body))
    return Frame([*head, *body, *blank, _foot(state, width)][:height], most)


def _body(
    tables: dict[Pane, Table], shown: dict[Pane, int], width: int, state: State, focus: bool = False
) -> Iterator[Text]:
    for number, (pane, rows) in enumerate(shown.items()):
        if number:
            yield Text("")
        looked_at = pane == state.pane
        offset = state.offset if looked_at else 0
        yield from _table_lines(tables[pane], width, rows, offset, state, focus and looked_at)


# ---------------------------------------------------------------- the head


def _head(
    answers: Answers, state: State, width: int, height: int | None, silent: float | None
) -> list[Text]:
    roomy = height is None or height >= 16
    sentence, style = _sentence(answers, silent)
    totals = _flowed(list(_totals(answers.metrics)), width, most=3 if roomy else 1)
    lines = [*_fires(answers, width), *totals]
    if silent is not None:
        for line in lines:
            line.stylize("dim")
    return [*_first(sentence, style, answers, state, width, roomy), *lines]


def _sentence(answers: Answers, silent: float | None) -> tuple[str, str]:
    """What is to be known first, and how it looks."""
    said = answers.health
    if silent is not None:
        why = plain(answers.trouble or "")
        return f"no answer for {span(silent * 1000)}: {why}; trying again", STYLES["error"]
    if isinstance(said, Unanswered):
        return f"health unknown: {plain(said.why)}", STYLES["warning"]
    return f"{said['status']}: {plain(said['message'])}", STYLES[said["status"]]


def _first(
    sentence: str, style: str, answers: Answers, state: State, width: int, roomy: bool
) -> Iterator[Text]:
    """The sentence, in two lines if it must be, and the time of the answers beside it."""
    at = datetime.fromtimestamp(answers.metrics["timestamp"] / 1000, UTC).strftime("%H:%M:%S UTC")
    right = ("paused", "reverse") if state.paused else (at, "dim")
    room = width - len(right[0]) - GAP
    if room < LEAST_SENTENCE:
        right, room = ("", ""), width
    rest = ""
    if roomy and cell_len(sentence) > room:
        begin = set_cell_size(sentence, room).rpartition(" ")[0] or set_cell_size(sentence, room)
        sentence, rest = begin, sentence[len(begin) :].strip()
    line = Text.assemble((fit(sentence, room), style))
    if right[0]:
        line.append(" " * GAP).append(*right)
    line.rstrip()
    yield line
    if rest:
        yield Text(cut(rest, width), style)


def _fires(answers: Answers, width: int) -> Iterator[Text]:
    """How many alerts fire, and the worst of them that nobody has silenced; nothing if none."""
    if isinstance(answers.alerts, Unanswered) or not answers.alerts:
        return
    alerts = answers.alerts
    heard = [alert for alert in alerts if not alert["silencedBy"]]
    silenced = len(alerts) - len(heard)
    number = f"{len(alerts):,} {'alert fires' if len(alerts) == 1 else 'alerts fire'}"
    aside = f" ({silenced:,} silenced)" if silenced else ""
    if not heard:
        yield Text(cut(number + aside, width), "dim")
        return
    worst = heard[0]
    age = span(answers.metrics["timestamp"] - (worst["firedAt"] or worst["since"]))
    said = f"{number}{aside}: {worst['severity']} for {age}: {plain(worst['summary'])}"
    yield Text(cut(said, width), SEVERITIES.get(worst["severity"], ""))


def _totals(m: Json) -> Iterator[tuple[int, Text]]:
    """The totals, each with its rank: the higher goes first where there is no room."""
    if not m["connected"]:
        yield 0, Text(_nobody(m))
        return
    alarm = _alarm(m["errorRate"], m["failed"])
    yield 0, _named("runs", f"{m['totalRuns']:,}")
    yield 1, _named("failed", f"{m['failed']:,} ({m['errorRate']:.2f} %)", alarm)
    yield 2, _named("p95", duration(m["p95"]))
    yield 3, _named("an hour", f"{m['runsPerHour']:,.0f}")
    yield 5, _named("avg", duration(m["avgExecutionTime"]))
    yield 6, _named("p50", duration(m["p50"]))
    yield 7, _named("p99", duration(m["p99"]))
    yield 9, _named("max", duration(m["maxExecutionTime"]))
    yield 10, _named("retries", f"{m['retries']:,}")
    yield 4, _named("workers", f"{m['workersConnected']:,}")
    yield 8, _named("up", m["uptime"])
    last = ago(m["lastRunTime"], m["timestamp"])
    yield 3, _named("last run", "none yet" if m["lastRunTime"] is None else f"{last} ago")


def _nobody(m: Json) -> str:
    if not m["known"]:
        return "what was asked for was never seen; a worker connects at its first run"
    last = m["lastLife"]
    if last is None:
        return "no worker is connected"
    when, why = ago(last["endedAt"], m["timestamp"]), plain(last["reason"])
    return (
        f"no worker is connected; {plain(last['worker'])} ended {when} ago ({why}): "
        f"{last['totalRuns']:,} runs, {last['failed']:,} failed"
    )


def _named(name: str, value: str, style: str = "bold") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style or "bold"))


def _flowed(items: Sequence[tuple[int, Text]], width: int, most: int) -> list[Text]:
    """The items in as many lines as they need, without the least important if that is too many."""
    kept = list(items)
    while True:
        lines = [Text("")]
        for _, item in kept:
            if lines[-1].cell_len and lines[-1].cell_len + 3 + item.cell_len > width:
                lines.append(Text(""))
            lines[-1].append("   " if lines[-1].cell_len else "").append_text(item)
        if len(lines) <= most:
            break
        kept.remove(max(kept, key=lambda item: item[0]))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _help(width: int) -> list[Text]:
    lines = [Text.assemble((f"{keys:<15}", "bold"), does) for keys, does in HELP]
    lines += [Text(""), Text("any key goes back", "dim")]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _foot(state: State, width: int) -> Text:
    if state.typing:
        typed = f"/{plain(state.filter)}"
        while typed and cell_len(typed) >= width:
            typed = typed[1:]  # what is typed now is seen
        return Text.assemble((typed, "bold"), "▏")
    if state.filter:
        return Text(cut(f"/{plain(state.filter)}   (/ and Esc: show all)", width), "bold")
    parts = [
        "q quit",
        "/ filter",
        "nrfepl sort",
        "Tab pane",
        "Space pause",
        "Enter alone",
        "? help",
    ]
    while len(parts) > 1 and cell_len("   ".join(parts)) > width:
        parts.pop(-2)
    return Text(cut("   ".join(parts), width), "dim")


# ---------------------------------------------------------------- the tables


def _pipelines(answers: Answers) -> Table:
    columns = (
        Column("pipeline", 0, 0, "name", left=True),
        Column("runs", 7, 2, "runs"),
        Column("failed", 7, 1, "failed"),
        Column("err %", 6, 3, "errors"),
        Column("p95", 7, 4, "p95"),
        Column("avg", 7, 7),
        Column("p50", 7, 8),
        Column("p99", 7, 9),
        Column("runs/h", 7, 6),
        Column("last", 8, 5, "last"),
    )
    title = "Pipelines · the last hour"
    if isinstance(answers.pipelines, Unanswered):
        return Table(title, columns, empty=answers.pipelines.why)
    now = answers.metrics["timestamp"]
    rows = [_pipeline_row(pipeline, now) for pipeline in answers.pipelines]
    return Table(title, columns, rows, "nothing ran")


def _pipeline_row(pipeline: Json, now: int) -> Row:
    total, last = pipeline["total"], pipeline.get("lastRun")
    alarm = _alarm(total["errorRate"], total["failed"])
    name = pipeline["name"] or "(none)"
    return Row(
        (
            Cell(plain(name)),
            Cell(count(total["runs"])),
            Cell(count(total["failed"]), alarm),
            Cell(rate(total["errorRate"]), alarm),
            *(Cell(duration(total[key])) for key in ("p95", "avg", "p50", "p99")),
            Cell(count(round(total["runsPerHour"]))),
            Cell(ago(last, now)),
        ),
        name,
        total["runs"],
        total["failed"],
        total["errorRate"],
        total["p95"],
        last,
    )


def _workers(answers: Answers) -> Table:
    workers = answers.workers
    many = isinstance(workers, list) and len({worker["node"] for worker in workers}) > 1
    columns = (
        Column("worker", 0, 0, "name", left=True),
        Column("node", 14, 4 if many else 10, left=True),  # of a hub, names may be there twice
        Column("state", 5, 5),
        Column("runs", 7, 2, "runs"),
        Column("failed", 7, 1, "failed"),
        Column("err %", 6, 3, "errors"),
        Column("p95", 7, 7, "p95"),
        Column("in flight", 9, 6),
        Column("busy %", 6, 9),
        Column("processes", 9, 8),
        Column("last", 8, 4, "last"),
    )
    title = "Workers · since each connected"
    if isinstance(workers, Unanswered):
        return Table(title, columns, empty=workers.why)
    shares = [] if isinstance(answers.balance, Unanswered) else answers.balance
    by_name = {(share["node"], share["worker"]): share for share in shares}
    now = answers.metrics["timestamp"]
    rows = [
        _worker_row(worker, by_name.get((worker["node"], worker["name"]), {}), now)
        for worker in workers
    ]
    return Table(title, columns, rows, "none yet: a worker connects at its first run")


def _worker_row(worker: Json, share: Json, now: int) -> Row:
    runs, failed, last = worker["totalRuns"], worker["failed"], worker["lastRunTime"]
    last_life = worker["lastLife"]
    up = worker["connected"]
    if not up and last_life is not None:  # what it was is of more use than zeroes
        runs, failed = last_life["totalRuns"], last_life["failed"]
    errors = 100 * failed / runs if runs else None
    alarm = _alarm(errors, failed)
    lost = not up and last_life is not None and last_life["reason"] == "lost"
    state = Cell("up", "green") if up else Cell("lost", STYLES["error"]) if lost else Cell("ended")
    return Row(
        (
            Cell(plain(worker["name"])),
            Cell(plain(worker["node"])),
            state,
            Cell(count(runs)),
            Cell(count(failed), alarm),
            Cell(rate(errors), alarm),
            Cell(duration(share.get("p95"))),
            Cell(count(worker["inFlight"])),
            Cell(rate(share.get("utilisation"))),
            Cell(count(worker["sessions"])),
            Cell(ago(last, now)),
        ),
        worker["name"],
        runs,
        failed,
        errors,
        share.get("p95"),
        last,
    )


def _failures(answers: Answers) -> Table:
    columns = (
        Column("when", 8, 2),
        Column("pipeline", 18, 3, left=True),
        Column("worker", 18, 4, left=True),
        Column("type", 18, 1, left=True),
        Column("message", 0, 0, left=True, least=40),
    )
    title = "Last failures"
    if isinstance(answers.failures, Unanswered):
        return Table(title, columns, empty=answers.failures.why, sorted=False)
    now = answers.metrics["timestamp"]
    rows = [_failure_row(run, now) for run in answers.failures]
    return Table(title, columns, rows, "none of the runs that are kept", sorted=False)


def _failure_row(run: Json, now: int) -> Row:
    error = run.get("error") or {"type": "", "message": "(no error was told)"}
    return Row(
        (
            Cell(ago(run["finishedAt"], now)),
            Cell(plain(run["pipeline"]["name"])),
            Cell(plain(run["worker"])),
            Cell(plain(error["type"]), "red"),
            Cell(plain(error["message"])),
        ),
        run["pipeline"]["name"],
        last=run["finishedAt"],
    )


TABLES: dict[Pane, Callable[[Answers], Table]] = {
    "pipelines": _pipelines,
    "workers": _workers,
    "failures": _failures,
}


def _chosen(table: Table, state: State) -> Table:
    """Sorted as chosen; what has no value comes last either way, and names settle ties."""
    rows = sorted(table.rows, key=lambda row: row.name)
    valued = [row for row in rows if getattr(row, state.sort) is not None]
    descending = (state.sort in LARGEST_FIRST) != state.reverse
    # A sort that is reversed keeps the order of equals.
    valued.sort(key=lambda row: getattr(row, state.sort), reverse=descending)
    without = [row for row in rows if getattr(row, state.sort) is None]
    return Table(table.title, table.columns, [*valued, *without], table.empty)


def _filtered(table: Table, text: str) -> Table:
    if not text or not table.rows:
        return table
    wanted = plain(text).casefold()
    rows = [
        row
        for row in table.rows
        if any(
            wanted in cell.text.casefold()
            for cell, column in zip(row.cells, table.columns, strict=True)
            if column.left
        )
    ]
    return Table(table.title, table.columns, rows, "nothing matches the filter", table.sorted)


def _shares(wanted: dict[Pane, int], room: int, state: State) -> dict[Pane, int]:
    """How many rows each pane gets; the one that is looked at alone, where not all find room."""
    around = 3 * len(PANES) - 1  # a title and a header each, and an empty line between two
    if state.alone or room < around + LEAST_ROWS * len(PANES):
        return {state.pane: max(1, room - 2)}
    rows = {pane: min(LEAST_ROWS, max(1, wanted[pane])) for pane in PANES}
    for _ in range(room - around - sum(rows.values())):
        # The one that has least of those that want more; what nobody wants is the last one's.
        short = [pane for pane in PANES if rows[pane] < wanted[pane]]
        rows[min(short, key=lambda pane: rows[pane], default=PANES[-1])] += 1
    return rows


def _table_lines(
    table: Table, width: int, rows: int, offset: int, state: State, focused: bool
) -> Iterator[Text]:
    shown = table.rows[offset : offset + rows]
    title = table.title
    if len(table.rows) > rows:
        title += f" · {offset + 1} to {offset + len(shown)} of {len(table.rows)}"
    yield Text(cut(title, width), "bold underline" if focused else "bold")
    if not shown:
        yield Text(cut(f"  {plain(table.empty)}", width), "dim")
        yield from [Text("")] * rows
        return
    places = _places(table, shown, width)
    yield _line(
        ((_heading(table.columns[i], state, table), "dim") for i, _ in places), places, table
    )
    for row in shown:
        cells = [(row.cells[i].text, row.cells[i].style) for i, _ in places]
        yield _line(cells, places, table)
    yield from [Text("")] * (rows - len(shown))


def _heading(column: Column, state: State, table: Table) -> str:
    if not table.sorted or column.sort != state.sort:
        return column.title
    return column.title + ("▼" if (state.sort in LARGEST_FIRST) != state.reverse else "▲")


def _places(table: Table, rows: Sequence[Row], width: int) -> list[tuple[int, int]]:
    """Which columns, and how wide: the one of width 0 takes what is left."""
    kept = list(range(len(table.columns)))
    least = {i: min(table.columns[i].least, max(12, width // 3)) for i in kept}

    def needed() -> int:
        return sum(table.columns[i].width or least[i] for i in kept) + GAP * (len(kept) - 1)

    while needed() > width and len(kept) > 1:
        kept.remove(max(kept, key=lambda i: table.columns[i].rank))
    fixed = sum(table.columns[i].width for i in kept) + GAP * (len(kept) - 1)
    widths = []
    for i in kept:
        column = table.columns[i]
        if column.width:
            widths.append((i, column.width))
            continue
        longest = max(cell_len(row.cells[i].text) for row in rows)
        widths.append((i, max(1, min(width - fixed, max(longest, least[i])))))
    return widths


def _line(
    cells: Iterable[tuple[str, str]], places: Sequence[tuple[int, int]], table: Table
) -> Text:
    line = Text()
    for (text, style), (i, width) in zip(cells, places, strict=True):
        if line:
            line.append(" " * GAP)
        line.append(fit(text, width, left=table.columns[i].left), style)
    line.rstrip()
    return line


# ---------------------------------------------------------------- texts


def cut(text: str, width: int) -> str:
    """At most so many cells of it."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + ELLIPSIS


def fit(text: str, width: int, *, left: bool = True) -> str:
    """Exactly so many cells."""
    text = cut(text, width)
    blanks = " " * (width - cell_len(text))
    return text + blanks if left else blanks + text


def count(number: int) -> str:
    """At most seven characters: 999,999, then 1.23M."""
    if number < 1_000_000:
        return f"{number:,}"
    unit, size = next((u, n) for u, n in (("G", 1e9), ("M", 1e6)) if number >= n)
    return f"{number / size:,.2f}{unit}"


def rate(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.2f}"


def duration(ms: int | None) -> str:
    """At most seven characters: 357ms, 12.4s, 3m12s, 2h05m, 3d04h."""
    if ms is None:
        return "-"
    if ms < 1_000:
        return f"{ms}ms"
    if ms < 59_950:
        return f"{ms / 1000:.1f}s"
    seconds = round(ms / 1000)
    for large, unit, small, part in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if seconds >= large:
            return f"{seconds // large}{unit}{seconds % large // small:02}{part}"
    return f"{seconds}s"


def span(ms: float) -> str:
    """A length of time in one unit."""
    seconds = max(0, int(ms // 1000))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def ago(at: int | None, now: int) -> str:
    return "-" if at is None else span(now - at)


def _alarm(percent: float | None, failed: int) -> str:
    if not failed or percent is None:
        return ""
    if percent >= ERROR_PERCENT:
        return STYLES["error"]
    return STYLES["warning"] if percent >= WARNING_PERCENT else ""
