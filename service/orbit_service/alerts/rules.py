"""
The file of rules: TOML, checked whole, each problem with its line and its remedy.

Nothing here does anything; a file that is wrong in one place is not taken in any.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from datetime import time
from fnmatch import translate
from functools import cached_property
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
    ValidationError,
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


Ms = Annotated[int, BeforeValidator(_duration)]
Pattern = Annotated[str, AfterValidator(_name)]
Named = Annotated[str, AfterValidator(_name)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


# ---------------------------------------------------------------- channels


class Quiet(_Part):
    """Hours in which these severities are not sent; what still fires afterwards is."""

    from_: time = Field(alias="from")
    to: time
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
        return self


class Channel(_Part):
    """A way to people: a URL of Apprise, in the file or, better, outside of it."""

    url: str | None = Field(None, repr=False)
    url_env: str | None = None
    url_file: Path | None = None
    severities: tuple[Severity, ...] = SEVERITIES
    resolved: bool = True
    repeat_every: Ms = 4 * HOUR_MS  # 0: never
    max_per_hour: int = Field(30, ge=1, le=10_000)
    quiet: Quiet | None = None
    _address: str = PrivateAttr("")

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
    command: tuple[str, ...] = ()
    url: str | None = Field(None, repr=False)
    url_env: str | None = None
    pipeline: Pattern | None = None  # None: the alert's own
    worker: Pattern | None = None  # None: the alert's own
    input: Any = None
    timeout: Ms = 30 * SECOND_MS
    cooldown: Ms = 10 * MINUTE_MS
    max_tries: int = Field(3, ge=1, le=100)  # of one firing; then it escalates
    dry_run: bool | None = None  # None: as [recovery] says
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

    dry_run: bool = True
    max_per_hour: int = Field(20, ge=1, le=10_000)


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
    above: float | str | None = None
    below: float | str | None = None
    clear: float | str | None = None
    for_: Ms = Field(0, alias="for")
    keep_firing_for: Ms = 0
    min_runs: int | None = Field(None, ge=0, le=1_000_000_000)
    compare: Compare | None = None
    severity: Severity = "warning"
    labels: dict[Named, str] = Field(default_factory=dict, max_length=20)
    runbook: str | None = None
    channels: tuple[str, ...] | None = None  # None: all
    actions: tuple[Action, ...] = Field((), max_length=MAX_ACTIONS)

    @model_validator(mode="after")
    def _makes_sense(self) -> Rule:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} is not known; there are {', '.join(METRICS)}")
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
                raise ValueError(f"{value!r} is no number; {self.metric} is measured in numbers")
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

    page: str | None = None  # where people see the page, for links
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


def matcher(pattern: str) -> re.Pattern[str]:
    """Of a shell's pattern: *, ? and [ab]."""
    return re.compile(translate(pattern))


# ---------------------------------------------------------------- reading


def read_rules(path: Path, environ: Mapping[str, str] = os.environ) -> RuleFile:
    """The rules in a file. Raises RulesFailed."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        text = raw.decode()
    except OSError as error:
        raise RulesFailed([f"{path} cannot be read: {error.strerror or error}"]) from None
    except UnicodeDecodeError:
        raise RulesFailed([f"{path} is not UTF-8: save it as UTF-8"]) from None
    if len(raw) > MAX_FILE:
        raise RulesFailed([f"{path} is larger than {MAX_FILE} bytes"])
    return parse_rules(text, path, environ)


def parse_rules(text: str, path: Path, environ: Mapping[str, str] = os.environ) -> RuleFile:
    """The rules in a text that stands at `path`. Raises RulesFailed."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesFailed([f"{path}: {error}"]) from None
    except RecursionError:
        raise RulesFailed([f"{path}: nested too deeply"]) from None
    lines = _Lines(text)
    try:
        rules = RuleFile.model_validate(data)
    except ValidationError as invalid:
        raise RulesFailed(
            [
                f"{path}:{lines.of(problem['loc'])}: {_where(problem['loc'], data)}"
                f"{_plain(problem['msg'], problem['type'])}"
                for problem in invalid.errors(include_url=False)
            ]
        ) from None
    problems = list(_across(rules, path, environ, lines))
    if problems:
        raise RulesFailed(problems)
    return rules


def _across(rules: RuleFile, path: Path, environ: Mapping[str, str], lines: _Lines) -> list[str]:
    """What no part can know of itself."""
    problems = []

    def add(loc: tuple[str | int, ...], what: str) -> None:
        problems.append(f"{path}:{lines.of(loc)}: {what}")

    for name, channel in rules.channels.items():
        if (why := channel.found(environ, path.parent)) is not None:
            add(("channels", name), f"channel {name}: {why}")
    seen: set[str] = set()
    for i, rule in enumerate(rules.rules):
        if rule.name in seen:
            add(("rules", i, "name"), f"rule {rule.name}: two are called so: rename one")
        seen.add(rule.name)
        for unknown in set(rule.channels or ()) - rules.channels.keys():
            known = ", ".join(rules.channels) or "none"
            add(
                ("rules", i, "channels"),
                f"rule {rule.name}: there is no channel {unknown!r}; there are: {known}",
            )
        for j, action in enumerate(rule.actions):
            why = action.found(environ) or _target_missing(rule, action)
            if why is not None:
                add(("rules", i, "actions", j), f"rule {rule.name}: {why}")
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
            except (AttributeError, IndexError, KeyError, TypeError):
                name = f"number {i + 1}"
            inside = ".".join(str(part) for part in rest)
            return f"rule {name[:50]!r}: {inside + ': ' if inside else ''}"
        case ("channels", str(name), *rest):
            inside = ".".join(str(part) for part in rest)
            return f"channel {name[:50]!r}: {inside + ': ' if inside else ''}"
        case _:
            inside = ".".join(str(part) for part in loc)
            return f"{inside}: " if inside else ""


def _plain(message: str, kind: str) -> str:
    if kind == "extra_forbidden":
        return "there is no such setting; see docs/alerts.md"
    return message.removeprefix("Value error, ")


class _Lines:
    """Where in a text a part of it stands; TOML's reader does not tell."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()

    def of(self, loc: tuple[str | int, ...]) -> int:
        """The number of the line, from 1; of what cannot be found, that of what holds it."""
        found, header, missing = 0, "", None
        for place, part in enumerate(loc):
            if not isinstance(part, str):
                continue
            name = f"{header}.{part}" if header else part
            number = loc[place + 1] if place + 1 < len(loc) else None
            if isinstance(number, int):
                at = self._find(rf"\[\[\s*{re.escape(name)}\s*\]\]", found, number)
            else:
                at = self._find(rf"\[\s*{re.escape(name)}\s*\]", found, 0)
            header = name
            if at is not None:
                found, missing = at, None
            else:
                missing = missing or part
        key = None if missing is None else self._key(missing, found)
        return (found if key is None else key) + 1

    def _find(self, pattern: str, start: int, skip: int) -> int | None:
        for at in range(start, len(self._lines)):
            if re.match(rf"\s*{pattern}", self._lines[at]):
                if not skip:
                    return at
                skip -= 1
        return None

    def _key(self, key: str, start: int) -> int | None:
        """In the table that begins at `start`."""
        for at in range(start, len(self._lines)):
            if at > start and re.match(r"\s*\[", self._lines[at]):
                return None
            if re.match(rf"\s*\"?{re.escape(key)}\"?\s*[=.]", self._lines[at]):
                return at
        return None
