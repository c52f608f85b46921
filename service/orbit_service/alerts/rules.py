"""
The file of rules: TOML, checked whole, each problem with its line and its remedy.

Nothing here does anything; a file that is wrong in one place is not taken in any.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import time
from fnmatch import translate
from functools import cached_property, lru_cache
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from orbit_rpc_schema.alerts import Severity
from orbit_rpc_schema.wire import MAX_NAME, is_name
from orbit_service.alerts.metrics import (
    FEW_RUNS,
    METRICS,
    Dimension,
    Metric,
    number_text,
    time_text,
)
from orbit_service.core.rollup import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    SECOND_MS,
    BadRange,
    duration_text,
    parse_duration,
)

MAX_FILE = 4 * 1_048_576  # bytes
MAX_RULES = 5_000
MAX_CHANNELS = 50
MAX_ACTIONS = 10  # of one rule
MAX_PROBLEMS = 100  # that are told
MAX_TEXT = 2_000  # characters
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
LOG = "log://"  # the channel that needs nothing: the service's own log

Compare = Literal["yesterday", "last_week", "version"]


class RulesFailed(Exception):
    """The file cannot be taken; a line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


# ---------------------------------------------------------------- values


def _duration(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a duration, such as 30s, 5m, 24h or 7d")
    try:
        ms = parse_duration(value)
    except BadRange as bad:
        raise ValueError(str(bad)) from None
    if not 0 <= ms <= 400 * DAY_MS:
        raise ValueError("a duration from 0 to 400d")
    return ms


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError(f"a name of 1 to {MAX_NAME} characters, without control characters")
    return value


def _threshold(value: Any) -> float | str:
    """A number, or the text of a duration; which of them it may be depends on the metric."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number, or a duration such as 5m for what is measured in time")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not isfinite(number):
        raise ValueError("a number that is finite")
    return number


def _text(value: str) -> str:
    # PostgreSQL takes no zero byte, and a line that is not one is no header of a mail.
    if len(value) > MAX_TEXT or not value.isprintable():
        raise ValueError(f"a text of up to {MAX_TEXT} characters, without control characters")
    return value


def _variable(value: str) -> str:
    # Who writes the address here does not want it in the log.
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) is None:
        raise ValueError("the name of a variable that holds the URL, and not the URL")
    return value


def _clock_time(value: Any) -> Any:
    # Numbers would be seconds, and a time with an offset has two time zones.
    if not isinstance(value, time | str) or re.search(r"[Zz+-]", str(value)):
        raise ValueError('a time of day such as "22:00"; `timezone` says where')
    return value


Ms = Annotated[int, BeforeValidator(_duration)]
Pattern = Annotated[str, AfterValidator(_name)]
Named = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, AfterValidator(_text)]
Variable = Annotated[str, AfterValidator(_variable)]
ClockTime = Annotated[time, BeforeValidator(_clock_time)]
Threshold = Annotated[float | str, BeforeValidator(_threshold)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


# ---------------------------------------------------------------- channels


class Quiet(_Part):
    """Hours in which these severities are not sent; what still fires afterwards is."""

    from_: ClockTime = Field(alias="from")
    to: ClockTime
    timezone: str = "UTC"
    severities: tuple[Severity, ...] = ("info", "warning")

    @model_validator(mode="after")
    def _is_known(self) -> Quiet:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"{self.timezone!r} is no time zone, such as Europe/Berlin or UTC"
            ) from None
        if self.from_ == self.to:
            raise ValueError("from and to are the same: leave quiet out, or name some hours")
        return self


class Channel(_Part):
    """A way to people: a URL of Apprise, in the file or, better, outside of it."""

    url: str | None = Field(None, repr=False)
    url_env: Variable | None = None
    url_file: Path | None = None
    severities: tuple[Severity, ...] = SEVERITIES
    resolved: StrictBool = True
    repeat_every: Ms = 4 * HOUR_MS  # 0: never
    max_per_hour: StrictInt = Field(30, ge=1, le=10_000)
    quiet: Quiet | None = None
    _address: str = PrivateAttr("")

    @field_validator("url_file", mode="before")
    @classmethod
    def _is_path(cls, value: Any) -> Any:
        if not isinstance(value, str) or "://" in value or "\0" in value:
            raise ValueError("the path of a file that holds the URL, and not the URL")
        return value

    @property
    def address(self) -> str:
        """The URL with its secrets."""
        return self._address

    @property
    def kind(self) -> str:
        return self._address.partition("://")[0]

    def found(self, environ: Mapping[str, str], base: Path) -> str | None:
        """Look up the address; why there is none, without what is in it."""
        given = [n for n in ("url", "url_env", "url_file") if getattr(self, n) is not None]
        if len(given) != 1:
            return "give one of url, url_env (a variable) and url_file (a path)"
        text = self.url
        if self.url_env is not None:
            text = environ.get(self.url_env)
            if not text:
                return f"the variable {self.url_env} is not set: set it to the channel's URL"
        if self.url_file is not None:
            try:
                text = (base / self.url_file).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is not UTF-8"
                return f"{self.url_file} cannot be read: {why}"
        text = (text or "").strip()
        if re.fullmatch(r"[a-z][a-z0-9+.-]*://\S*", text, re.IGNORECASE) is None:
            return "its address is no URL such as mailto://user:password@example.com"
        self._address = text
        return None


# ---------------------------------------------------------------- actions


class Action(_Part):
    """What to do about an alert; in the file only, and dry by default."""

    kind: Literal["command", "webhook", "run-pipeline", "pause", "resume", "restart"]
    on: Literal["firing", "resolved"] = "firing"
    after: Ms = 0  # since it fires
    command: tuple[str, ...] = Field((), repr=False)
    url: str | None = Field(None, repr=False)
    url_env: Variable | None = None
    pipeline: Pattern | None = None  # None: the alert's own
    worker: Pattern | None = None  # None: the alert's own
    input: Any = Field(None, repr=False)
    timeout: Ms = 30 * SECOND_MS
    cooldown: Ms = 10 * MINUTE_MS
    max_tries: StrictInt = Field(3, ge=1, le=100)  # of one firing; then it escalates
    dry_run: StrictBool | None = None  # None: as [recovery] says
    _address: str = PrivateAttr("")

    @property
    def address(self) -> str:
        return self._address

    @model_validator(mode="after")
    def _complete(self) -> Action:
        if (self.kind == "command") != bool(self.command):
            raise ValueError('command is a list, such as ["/usr/bin/systemctl", "restart", "x"]')
        if self.kind == "command" and any("\0" in part for part in self.command):
            raise ValueError("no part of a command holds a zero byte")
        has_url = (self.url is None) + (self.url_env is None) == 1
        if (self.kind == "webhook") != has_url:
            raise ValueError("a webhook, and nothing else, has a url or a url_env")
        if not SECOND_MS <= self.timeout <= 10 * MINUTE_MS:
            raise ValueError("timeout is from 1s to 10m")
        return self

    def found(self, environ: Mapping[str, str]) -> str | None:
        """Look up a webhook's address; why there is none."""
        if self.kind != "webhook":
            return None
        text = self.url if self.url_env is None else environ.get(self.url_env, "")
        if not text:
            return f"the variable {self.url_env} is not set: set it to the webhook's URL"
        if re.fullmatch(r"https?://\S+", text) is None:
            return "its url is no URL such as https://hooks.example.com/restart"
        self._address = text
        return None

    @property
    def text(self) -> str:
        """What it does, without what is secret."""
        match self.kind:
            case "command":
                return f"command {Path(self.command[0]).name}"
            case "webhook":
                return "webhook"
            case "run-pipeline":
                return f"run-pipeline {self.pipeline}" if self.pipeline else "run-pipeline"
            case _:
                return self.kind


class RecoverySettings(_Part):
    """Of all actions together."""

    dry_run: StrictBool = True
    max_per_hour: StrictInt = Field(20, ge=1, le=10_000)


# ---------------------------------------------------------------- rules


class Rule(_Part):
    """One rule. Of a number it says what is too much; of whom, `worker` and the others."""

    name: Named
    metric: str
    worker: Pattern = "*"
    pipeline: Pattern = "*"
    step: Pattern | None = None
    queue: Pattern = "*"
    per: tuple[Dimension, ...] | None = None
    window: Ms = 5 * MINUTE_MS
    above: Threshold | None = None
    below: Threshold | None = None
    clear: Threshold | None = None
    for_: Ms = Field(0, alias="for")
    keep_firing_for: Ms = 0
    min_runs: StrictInt | None = Field(None, ge=0, le=1_000_000_000)
    compare: Compare | None = None
    severity: Severity = "warning"
    labels: dict[Named, Named] = Field(default_factory=dict, max_length=20)
    runbook: Text | None = None
    channels: tuple[str, ...] | None = None  # None: all
    actions: tuple[Action, ...] = Field((), max_length=MAX_ACTIONS)

    @model_validator(mode="after")
    def _makes_sense(self) -> Rule:
        if self.metric not in METRICS:
            raise ValueError(
                f"metric {self.metric[:50]!r} is not known; there are {', '.join(METRICS)}"
            )
        if (self.above is None) == (self.below is None):
            raise ValueError("give one of above and below")
        allowed = self.about.dimensions
        if self.step is not None and "step" not in allowed:
            raise ValueError(f"{self.metric} is not told by step")
        for name in ("worker", "pipeline", "queue"):
            if getattr(self, name) != "*" and name not in allowed:
                raise ValueError(f"{self.metric} is not told by {name}")
        told = [n for n in allowed if n != "step" or self.step is not None]
        if self.per is not None and (wrong := set(self.per) - set(told)):
            raise ValueError(f"{self.metric} is not told per {', '.join(sorted(wrong))}")
        if self.about.source != "now" and (
            self.window % (10 * SECOND_MS) or not 10 * SECOND_MS <= self.window <= DAY_MS
        ):
            raise ValueError("window is in whole ten seconds, from 10s to 24h")
        if self.min_runs and not self.about.guess:
            raise ValueError(f"{self.metric} is said of any number of runs: leave min_runs out")
        if self.compare is not None and not self.about.guess:
            raise ValueError(f"{self.metric} cannot be compared; error_rate, avg and p95 can")
        if self.compare is not None and self.step is not None:
            raise ValueError("steps cannot be compared")
        if self.clear is not None:
            # For `above` it is at most the threshold, or it would resolve while it fires.
            ordered = (
                self.cleared <= self.threshold
                if self.above is not None
                else (self.cleared >= self.threshold)
            )
            if not ordered:
                side = "above it" if self.above is not None else "below it"
                raise ValueError(f"clear lies on the good side of the threshold, not {side}")
        if "rule" in self.labels or "severity" in self.labels or self.labels.keys() & set(allowed):
            raise ValueError("a label is not called rule, severity, or like what is looked at")
        _ = self.threshold
        return self

    @property
    def about(self) -> Metric:
        return METRICS[self.metric]

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What tells one alert of the rule from another."""
        if self.per is not None:
            return tuple(name for name in self.about.dimensions if name in self.per)
        if self.step is not None:
            return ("pipeline", "step")
        usual: dict[str, tuple[Dimension, ...]] = {
            "queue_depth": ("queue",),
            "since_connected": ("worker",),
            "worker_lost": ("worker",),
            "worker_silent": ("worker",),
        }
        return usual.get(self.metric, ("pipeline",) if "pipeline" in self.about.dimensions else ())

    @cached_property
    def threshold(self) -> float:
        return self._number(self.above if self.above is not None else self.below)

    @cached_property
    def cleared(self) -> float:
        """Where a firing alert ends: the threshold itself, or what lies on its good side."""
        return self.threshold if self.clear is None else self._number(self.clear)

    def _number(self, value: float | str | None) -> float:
        if isinstance(value, str):
            if self.about.unit != "ms" or self.compare is not None:
                raise ValueError(
                    f"{value[:50]!r} is no number; {self.metric} is measured in numbers"
                )
            return float(_duration(value))
        assert value is not None
        return float(value)

    @cached_property
    def least_runs(self) -> int:
        if self.min_runs is not None:
            return self.min_runs
        return FEW_RUNS if self.about.guess else 0

    def breached(self, value: float) -> bool:
        return value > self.threshold if self.above is not None else value < self.threshold

    def still_breached(self, value: float) -> bool:
        """Whether an alert that fires goes on."""
        return value > self.cleared if self.above is not None else value < self.cleared

    @cached_property
    def scope(self) -> dict[Dimension, str]:
        """Patterns by what they are of; all that the metric is told by."""
        return {
            name: pattern
            for name in self.about.dimensions
            if (pattern := getattr(self, name)) is not None
        }

    @cached_property
    def literal(self) -> dict[Dimension, str] | None:
        """The one match of a rule whose patterns are plain names: it is expected to be there."""
        wanted = {name: self.scope[name] for name in self.dimensions}
        return None if any(is_pattern(p) for p in wanted.values()) else wanted

    def is_about(self, match: tuple[str, ...]) -> bool:
        """Whether it looks at this; an alert of the rule as it was before may be of others."""
        return len(match) == len(self.dimensions) and all(
            matcher(self.scope[name]).match(value) is not None
            for name, value in zip(self.dimensions, match, strict=True)
        )

    def value_text(self, value: float | None) -> str:
        return number_text(value, self.about.unit, change=self.compare is not None)

    @cached_property
    def measured(self) -> str:
        """What is looked at: "p95 over 5m against the version before"."""
        over = "" if self.about.source == "now" else f" over {duration_text(self.window)}"
        against = {
            None: "",
            "yesterday": " against the same hour yesterday",
            "last_week": " against the same hour last week",
            "version": " against the version before",
        }[self.compare]
        return f"{self.about.text}{over}{against}"

    @cached_property
    def condition(self) -> str:
        """As a person would say it."""
        side = "above" if self.above is not None else "below"
        held = f" for {time_text(self.for_)}" if self.for_ else ""
        return f"{self.measured} {side} {self.value_text(self.threshold)}{held}"


class RuleFile(_Part):
    """The whole file."""

    page: Text | None = None  # where people see the page, for links
    recovery: RecoverySettings = RecoverySettings()
    channels: dict[Named, Channel] = Field(default_factory=dict, max_length=MAX_CHANNELS)
    rules: tuple[Rule, ...] = Field((), max_length=MAX_RULES)

    @cached_property
    def by_name(self) -> dict[str, Rule]:
        return {rule.name: rule for rule in self.rules}

    def channels_of(self, rule: Rule) -> list[str]:
        names = self.channels if rule.channels is None else rule.channels
        return [name for name in names if rule.severity in self.channels[name].severities]


NO_RULES = RuleFile()


def is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


@lru_cache(maxsize=10_000)
def matcher(pattern: str) -> re.Pattern[str]:
    """Of a shell's pattern: *, ? and [ab]."""
    return re.compile(translate(pattern))


# ---------------------------------------------------------------- reading


def read_rules(path: Path, environ: Mapping[str, str] = os.environ) -> RuleFile:
    """The rules in a file. Raises RulesFailed."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise RulesFailed([f"{path} cannot be read: {error.strerror or error}"]) from None
    if len(raw) > MAX_FILE:
        raise RulesFailed([f"{path} is larger than {MAX_FILE} bytes"])
    if not raw.strip():
        # More likely one that is being written, or a full disk, than the end of all alerts.
        raise RulesFailed([f"{path} is empty: to have no rules, write a comment that says so"])
    try:
        text = raw.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RulesFailed([f"{path}:{line}: it is not UTF-8: save it as UTF-8"]) from None
    return parse_rules(text, path, environ)


def parse_rules(text: str, path: Path, environ: Mapping[str, str] = os.environ) -> RuleFile:
    """The rules in a text that stands at `path`. Raises RulesFailed."""
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise RulesFailed([f"{path}:1: nested too deeply"]) from None
    except ValueError as error:  # of numbers with thousands of digits too
        raise RulesFailed([_not_toml(error, text, path)]) from None
    lines = _Lines(text)
    try:
        rules = RuleFile.model_validate(data)
    except ValidationError as invalid:
        found = invalid.errors(include_url=False, include_input=False, include_context=False)
        raise RulesFailed(
            _shortened(
                [
                    f"{path}:{lines.of(problem['loc'])}: {_where(problem['loc'], data)}"
                    f"{_plain(problem['msg'], problem['type'])}"
                    for problem in found
                ]
            )
        ) from None
    problems = _across(rules, path, environ, lines)
    if problems:
        raise RulesFailed(_shortened(problems))
    return rules


def _not_toml(error: ValueError, text: str, path: Path) -> str:
    """What its reader says, with the line in front."""
    said = str(error)
    if found := re.search(r" \(at line (\d+), column \d+\)$", said):
        return f"{path}:{found[1]}: this is not TOML: {said[: found.start()]}"
    if said.endswith(" (at end of document)"):
        return f"{path}:{text.count(chr(10)) + 1}: this is not TOML: {said}"
    return f"{path}:1: this is not TOML: {said.partition(';')[0]}"


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - MAX_PROBLEMS
    return problems if more <= 0 else [*problems[:MAX_PROBLEMS], f"and {more} more problems"]


def _across(rules: RuleFile, path: Path, environ: Mapping[str, str], lines: _Lines) -> list[str]:
    """What no part can know of itself."""
    problems = []

    def add(loc: tuple[str | int, ...], what: str) -> None:
        problems.append(f"{path}:{lines.of(loc)}: {what}")

    for name, channel in rules.channels.items():
        if (why := channel.found(environ, path.parent)) is not None:
            add(("channels", name), f"channel {name!r}: {why}")
    known = ", ".join(rules.channels) or "none"
    seen: set[str] = set()
    for i, rule in enumerate(rules.rules):
        if rule.name in seen:
            add(("rules", i, "name"), f"rule {rule.name!r}: two are called so: rename one")
        seen.add(rule.name)
        for unknown in rule.channels or ():
            if "://" in unknown:  # a secret, as likely as not
                why = "channels are called by their names, and not by addresses"
            elif unknown not in rules.channels:
                why = f"there is no channel {unknown[:50]!r}; there are: {known}"
            else:
                continue
            add(("rules", i, "channels"), f"rule {rule.name!r}: {why}")
        for j, action in enumerate(rule.actions):
            missing = action.found(environ) or _target_missing(rule, action)
            if missing is not None:
                add(("rules", i, "actions", j), f"rule {rule.name!r}: {missing}")
    return problems


def _target_missing(rule: Rule, action: Action) -> str | None:
    """An action needs to know whom it is for: from itself, or from its alert."""
    for name, kinds in (
        ("pipeline", ("run-pipeline", "pause", "resume")),
        ("worker", ("pause", "resume", "restart")),
    ):
        given = getattr(action, name)
        if action.kind in kinds and given is None and name not in rule.dimensions:
            return f"{action.kind} needs a {name}: name it, or have the rule told per {name}"
        if given is not None and is_pattern(given):
            return f"{action.kind} is for one {name}, and {given!r} is a pattern"
    return None


def _where(loc: tuple[str | int, ...], data: dict[str, Any]) -> str:
    """Which part a problem is in, by its name."""
    match loc:
        case ("rules", int(i), *rest):
            try:
                name = str(data["rules"][i].get("name", f"number {i + 1}"))
            except (AttributeError, KeyError, TypeError):
                name = f"number {i + 1}"
            return f"rule {name[:50]!r}: {_inside(rest)}"
        case ("channels", str(name), *rest):
            return f"channel {name[:50]!r}: {_inside(rest)}"
        case _:
            return _inside(loc)


def _inside(loc: Iterable[str | int]) -> str:
    parts = [str(part)[:50] for part in loc if part != "[key]"]
    return f"{'.'.join(p if p.isprintable() else repr(p) for p in parts)}: " if parts else ""


def _plain(message: str, kind: str) -> str:
    match kind:
        case "extra_forbidden":
            return "there is no such setting; see docs/alerts.md"
        case "missing":
            return "it is missing, and has to be given"
        case "tuple_type":
            return "a list: [...], or a [[table]] in two brackets for each"
        case "model_type" | "dict_type":
            return "a table, with settings of its own"
        case _:
            return message.removeprefix("Value error, ")


# A part of a key: bare, or quoted in one of two ways.
_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER = re.compile(rf"\s*\[(\[?)\s*({_DOTTED})\s*\]")
_ASSIGNED = re.compile(rf"\s*({_DOTTED})\s*=")
# Comments and strings, in which signs mean nothing.
_OPAQUE = re.compile(
    r"""#[^\n]*|\"{3}(?:[^\\]|\\.)*?\"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""",
    re.DOTALL,
)


class _Lines:
    """Where in a text, which is TOML, a part of it stands; TOML's reader does not tell."""

    def __init__(self, text: str) -> None:
        self._text = text

    def of(self, loc: tuple[str | int, ...]) -> int:
        """The number of the line, from 1; of what cannot be found, that of what holds it."""
        while loc and loc not in self._places:
            loc = loc[:-1]
        return self._places.get(loc, 1)

    @cached_property
    def _places(self) -> dict[tuple[str | int, ...], int]:
        places: dict[tuple[str | int, ...], int] = {}
        newest: dict[tuple[str | int, ...], int] = {}  # of arrays of tables, the last index
        signs = _OPAQUE.sub(lambda found: re.sub(r"[^\n]", "_", found[0]), self._text)
        table: tuple[str | int, ...] = ()
        depth = 0  # of brackets; within them is no header, and no key with a line of its own
        lines = zip(self._text.split("\n"), signs.split("\n"), strict=True)
        for number, (line, bare) in enumerate(lines, 1):
            here: tuple[str | int, ...] = ()
            if not depth and (header := _HEADER.match(line)) and bare.lstrip()[:1] == "[":
                here = table = _entered(newest, _parts(header[2]), bool(header[1]))
            elif not depth and (assigned := _ASSIGNED.match(line)) and "=" in bare:
                here = (*table, *_parts(assigned[1]))
            for length in range(1, len(here) + 1):
                places.setdefault(here[:length], number)
            depth += sum(map(bare.count, "[{")) - sum(map(bare.count, "]}"))
        return places


def _entered(
    newest: dict[tuple[str | int, ...], int], names: list[str], is_array: bool
) -> tuple[str | int, ...]:
    """Where a header leads, with the indices that TOML does not write."""
    loc: tuple[str | int, ...] = ()
    for place, name in enumerate(names, 1):
        loc = (*loc, name)
        if is_array and place == len(names):
            newest[loc] = newest.get(loc, -1) + 1
        if loc in newest:
            loc = (*loc, newest[loc])
    return loc


def _parts(dotted: str) -> list[str]:
    return [
        str(tomllib.loads(f"part = {part}")["part"]) if part[0] in "\"'" else part
        for part in re.findall(_PART, dotted)
    ]
