"""The file of rules: each problem with its line and its remedy, and no secret in any."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerting import a_rule, the_rules
from builders import HOUR, MINUTE, SECOND
from orbit_service.alerts.rules import (
    MAX_FILE,
    MAX_PROBLEMS,
    RulesFailed,
    is_pattern,
    matcher,
    read_rules,
)

HEAD = '[[rules]]\nname = "r"\nmetric = "error_rate"\n'  # three lines
SECRET = "slack://T0KEN/S3CRET"
CHANNEL = '[channels.team]\nurl = "log://"\n'


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(RulesFailed) as failed:
        the_rules(text, **environ)
    return failed.value.problems


def problem(text: str, **environ: str) -> str:
    [only] = problems(text, **environ)
    return only


# ---------------------------------------------------------------- problems of a rule


@pytest.mark.parametrize(
    ("settings_of_rule", "line", "said"),
    [
        pytest.param("above = 1\nabvoe = 2", 5, "no such setting", id="an unknown setting"),
        pytest.param("", 1, "give one of above and below", id="no threshold"),
        pytest.param("above = 1\nbelow = 2", 1, "give one of above and below", id="two"),
        pytest.param("above = nan", 4, "finite", id="not a number"),
        pytest.param("above = inf", 4, "finite", id="infinity"),
        pytest.param("below = -inf", 4, "finite", id="the other one"),
        pytest.param("above = 1e999", 4, "finite", id="what a float cannot hold"),
        pytest.param(f"above = {'9' * 400}", 4, "finite", id="nor can it hold this"),
        pytest.param("above = true", 4, "a number, or a duration", id="a truth"),
        pytest.param("above = [1]", 4, "a number, or a duration", id="a list"),
        pytest.param('above = "5m"', 1, "'5m' is no number", id="a duration for a percentage"),
        pytest.param("above = 1\nclear = nan", 5, "finite", id="a threshold to clear"),
        pytest.param("above = 1\nclear = 2", 1, "not above it", id="it clears while it fires"),
        pytest.param("below = 2\nclear = 1", 1, "not below it", id="it clears below"),
        pytest.param("above = 1\nfor = -1", 5, "from 0 to 400d", id="a negative time"),
        pytest.param('above = 1\nfor = "1 month"', 5, "give 30s, 5m", id="a month"),
        pytest.param("above = 1\nfor = 1.5", 5, "a duration, such as 30s", id="part of a ms"),
        pytest.param("above = 1\nfor = false", 5, "a duration, such as 30s", id="no time"),
        pytest.param('above = 1\nfor = "401d"', 5, "from 0 to 400d", id="longer than it is kept"),
        pytest.param('above = 1\nwindow = "15s"', 1, "whole ten seconds", id="half a window"),
        pytest.param('above = 1\nwindow = "0s"', 1, "from 10s to 24h", id="no window"),
        pytest.param('above = 1\nwindow = "25h"', 1, "from 10s to 24h", id="over a day"),
        pytest.param("above = 1\nmin_runs = true", 5, "valid integer", id="a truth for a count"),
        pytest.param('above = 1\nmin_runs = "3"', 5, "valid integer", id="a text for a count"),
        pytest.param("above = 1\nmin_runs = -1", 5, "greater than or equal to 0", id="fewer"),
        pytest.param('above = 1\nseverity = "page"', 5, "'critical'", id="no severity"),
        pytest.param('above = 1\nqueue = "mail"', 1, "not told by queue", id="no queue"),
        pytest.param('above = 1\nper = ["queue"]', 1, "not told per queue", id="per queue"),
        pytest.param('above = 1\nper = ["step"]', 1, "not told per step", id="per step of none"),
        pytest.param('above = 1\nper = "worker"', 5, "a list", id="per one"),
        pytest.param('above = 1\nper = ["host"]', 5, "'queue'", id="per what there is not"),
        pytest.param(
            'above = 1\nstep = "s"\ncompare = "version"', 1, "steps cannot", id="compared steps"
        ),
        pytest.param('above = 1\nworker = ""', 5, "1 to 200 characters", id="an empty pattern"),
        pytest.param('above = 1\nrunbook = "a\\nb"', 5, "control characters", id="two lines"),
        pytest.param(
            'above = 1\nlabels = { team = "a\\u0000" }', 5, "control characters", id="a zero byte"
        ),
        pytest.param(
            'above = 1\nlabels = { rule = "x" }', 1, "a label is not called rule", id="our label"
        ),
        pytest.param(
            'above = 1\nlabels = { worker = "x" }', 1, "like what is looked at", id="a dimension"
        ),
        pytest.param('above = 1\nchannels = ["mail"]', 5, "there are: none", id="no channel"),
        pytest.param(
            "above = 1\n[[rules.actions]]", 5, "kind: it is missing", id="an action of no"
        ),
        pytest.param(
            'above = 1\n[[rules.actions]]\nkind = "pause"', 5, "needs a worker", id="of nobody"
        ),
        pytest.param(
            'above = 1\n[[rules.actions]]\nkind = "restart"\nworker = "m*"',
            5,
            "'m*' is a pattern",
            id="an action for many",
        ),
        pytest.param(
            'above = 1\n[[rules.actions]]\nkind = "command"\ncommand = "ls"',
            7,
            "a list",
            id="a command for a shell",
        ),
    ],
)
def test_a_problem_has_its_line_its_rule_and_its_remedy(
    settings_of_rule: str, line: int, said: str
) -> None:
    found = problem(HEAD + settings_of_rule)

    assert found.startswith(f"alerts.toml:{line}: rule 'r': ")
    assert said in found


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param('metric = "errors"\nabove = 1', "there are error_rate, failures", id="metric"),
        pytest.param('metric = "failures"\nabove = 1\nmin_runs = 9', "leave min_runs", id="count"),
        pytest.param('metric = "failures"\nabove = 1\ncompare = "version"', "compared", id="other"),
        pytest.param('metric = "wait_p95"\nabove = 1\nstep = "s"', "not told by step", id="waits"),
        pytest.param('metric = "degraded"\nabove = 0\nworker = "m"', "by worker", id="a node's"),
        pytest.param('metric = "p95"\nabove = "5 metres"', "give 30s, 5m", id="not a time"),
        pytest.param(
            'metric = "p95"\nabove = "5m"\ncompare = "version"', "is no number", id="a change"
        ),
    ],
)
def test_what_a_metric_cannot_be_is_said(fields: str, said: str) -> None:
    found = problem(f'[[rules]]\nname = "r"\n{fields}')

    assert found.startswith("alerts.toml:1: rule 'r': ")
    assert said in found


@pytest.mark.parametrize(
    ("text", "start", "said"),
    [
        pytest.param("recovery = 1", "alerts.toml:1: recovery: ", "a table", id="no table"),
        pytest.param("\nrecvery = 1", "alerts.toml:2: recvery: ", "no such setting", id="unknown"),
        pytest.param("[rules]\n", "alerts.toml:1: rules: ", "two brackets", id="one bracket"),
        pytest.param("rules = [1]", "alerts.toml:1: rule 'number 1': ", "a table", id="numbers"),
        pytest.param(
            "[recovery]\ndry_run = 0", "alerts.toml:2: recovery.dry_run: ", "boolean", id="0"
        ),
        pytest.param(
            'recovery.dry_run = "no"', "alerts.toml:1: recovery.dry_run: ", "boolean", id="dotted"
        ),
        pytest.param(
            "[[rules]]\nmetric = 'p95'\nabove = 1",
            "alerts.toml:1: rule 'number 1': name: ",
            "it is missing",
            id="a rule without a name",
        ),
        pytest.param(
            '[channels]\nmail = "x"', "alerts.toml:2: channel 'mail': ", "a table", id="a text"
        ),
        pytest.param(
            '\n[ channels . "my team" ]\nurl = 3',
            "alerts.toml:3: channel 'my team': url: ",
            "valid string",
            id="a quoted name",
        ),
        pytest.param(
            "[channels.a]", "alerts.toml:1: channel 'a': ", "give one of url", id="no address"
        ),
        pytest.param(
            '[channels.a]\nurl = "x"', "alerts.toml:1: channel 'a': ", "no URL", id="no URL"
        ),
        pytest.param(
            '[channels.a]\nurl_env = "MAIL"',
            "alerts.toml:1: channel 'a': ",
            "the variable MAIL is not set",
            id="a variable that is not set",
        ),
        pytest.param(
            '[channels.a]\nurl_file = "nowhere"',
            "alerts.toml:1: channel 'a': ",
            "nowhere cannot be read",
            id="a file that is not there",
        ),
    ],
)
def test_a_problem_of_another_part_says_which(text: str, start: str, said: str) -> None:
    found = problem(text)

    assert found.startswith(start)
    assert said in found


def test_all_problems_are_told_at_once() -> None:
    text = HEAD + "above = nan\nfor = -1\n\n" + HEAD + "above = true\nabove_all = 1"

    assert [found.partition(": ")[0] for found in problems(text)] == [
        "alerts.toml:4",
        "alerts.toml:5",
        "alerts.toml:10",
        "alerts.toml:11",
    ]


def test_two_rules_of_a_name_are_a_problem_of_the_second() -> None:
    found = problem(HEAD + "above = 1\n\n" + HEAD + "above = 2")

    assert found == "alerts.toml:7: rule 'r': two are called so: rename one"


def test_a_channel_that_is_missing_is_named_beside_those_there_are() -> None:
    found = problem(CHANNEL + HEAD + 'above = 1\nchannels = ["team", "tema"]')

    assert found == "alerts.toml:7: rule 'r': there is no channel 'tema'; there are: team"


# ---------------------------------------------------------------- where it stands


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param('rules = [\n  { name = "r" },\n  { x = 1 },\n]', 1, id="inline tables"),
        pytest.param("[[ rules ]]\n[[rules]]\n[[rules.actions]]\n  x = 1", 4, id="the second's"),
        pytest.param('page = """\n[[rules]]\nx = 1\n"""\n[[rules]]\nx = 1', 6, id="in a text"),
        pytest.param("page = '''\nx = 1\n'''\n[[rules]]\nx = 1", 5, id="in a literal text"),
        pytest.param("# [[rules]]\n# x = 1\n[[rules]]\nx = 1", 4, id="in a comment"),
        pytest.param('page = "\u2028 \x85"\n[[rules]]\nx = 1', 3, id="after odd signs"),
        pytest.param('[[rules]]\r\nname = "r"\r\nx = 1\r\n', 3, id="lines of Windows"),
        pytest.param('[[rules]]\nlabels = [\n["x"],\n["x"]\n]\nx = 1', 6, id="after brackets"),
        pytest.param('[[rules]]\nname = "a # b"\n"x" = 1', 3, id="a quoted setting"),
    ],
)
def test_its_line_is_found_where_it_stands(text: str, line: int) -> None:
    found = [p for p in problems(text) if " x: there is no such setting" in p or ".x: there" in p]

    assert [p.partition(": ")[0] for p in found] == [f"alerts.toml:{line}"]


def test_a_problem_is_one_line_whatever_a_setting_is_called() -> None:
    found = problem(HEAD + 'above = 1\n"a\\nb" = 1')

    assert found.startswith("alerts.toml:5: rule 'r': 'a\\nb': there is no such setting")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.text(alphabet="[]{}\"'=.#\n\\ rules=x1", max_size=60))
def test_any_text_is_taken_or_has_problems(text: str) -> None:
    try:
        the_rules(text)
        found = []
    except RulesFailed as failed:
        found = failed.problems

    assert all(re.match(r"alerts\.toml:\d+: ", problem) for problem in found)


def test_of_thousands_of_problems_some_are_told() -> None:
    # Where each was looked for by itself, this took minutes.
    text = "".join(HEAD.replace('"r"', f'"r{i}"') + "abov = 1\n" for i in range(3_000))
    found = problems(text)

    assert len(found) == MAX_PROBLEMS + 1
    assert re.fullmatch(r"and \d+ more problems", found[-1])


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("[[rules]]\nname = r", 2, id="no quotes"),
        pytest.param("[recovery]\n[recovery]", 2, id="a table twice"),
        pytest.param("a = 1\nb = [", 2, id="no end"),
        pytest.param(f"a = {'9' * 5_000}", 1, id="thousands of digits"),
        pytest.param(f"a = {'[' * 100_000}", 1, id="a hundred thousand brackets"),
    ],
)
def test_what_is_not_toml_has_a_line(text: str, line: int) -> None:
    assert problem(text).startswith(f"alerts.toml:{line}: ")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        pytest.param(b'page = "a"\nx = "\xff"', ":2: it is not UTF-8", id="Latin 1"),
        pytest.param(b"#" * (MAX_FILE + 1), "is larger than", id="a huge one"),
        pytest.param("# é".encode() * MAX_FILE, "is larger than", id="one cut within a letter"),
        pytest.param(b" \n", "is empty: to have no rules", id="nothing, as a full disk leaves it"),
    ],
)
def test_a_file_that_cannot_be_read_as_rules_says_why(
    tmp_path: Path, raw: bytes, said: str
) -> None:
    path = tmp_path / "alerts.toml"
    path.write_bytes(raw)
    with pytest.raises(RulesFailed, match=re.escape(said)):
        read_rules(path, {})


def test_a_file_that_is_not_there_or_a_folder_says_so(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(RulesFailed, match=f"cannot be read: {why}"):
            read_rules(path, {})


def test_a_mark_that_an_editor_begins_a_file_with_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "alerts.toml"
    path.write_text('page = "x"', encoding="utf-8-sig")

    assert read_rules(path, {}).page == "x"


def test_a_comment_alone_is_no_rules() -> None:
    assert the_rules("# none yet").rules == ()


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f'[channels.a]\nurl = "{SECRET}"\nx = 1', id="beside it"),
        pytest.param(f'[channels.a]\nurl = ["{SECRET}"]', id="in a list"),
        pytest.param(f'[channels.a]\nurl = "{SECRET} "\nurl_env = "A"', id="two addresses"),
        pytest.param(f'[channels.a]\nurl_env = "{SECRET}"', id="for the variable"),
        pytest.param(f'[channels.a]\nurl_file = "{SECRET}"', id="for the file"),
        pytest.param(f'[channels]\na = "{SECRET}"', id="for the channel"),
        pytest.param(f'channels = ["{SECRET}"]', id="for the channels"),
        pytest.param(f'{HEAD}above = 1\nchannels = ["{SECRET}"]', id="for a name"),
        pytest.param(
            f'{HEAD}above = 1\n[[rules.actions]]\nkind = "webhook"\nurl = "{SECRET}"',
            id="no webhook",
        ),
        pytest.param(
            f'{HEAD}above = 1\n[[rules.actions]]\nkind = "webhook"\nurl_env = "{SECRET}"',
            id="for a webhook's variable",
        ),
        pytest.param(
            f'{HEAD}above = 1\n[[rules.actions]]\nkind = "pause"\ncommand = ["{SECRET}"]',
            id="a command",
        ),
    ],
)
def test_no_problem_tells_a_secret(text: str) -> None:
    with pytest.raises(RulesFailed) as failed:
        the_rules(text)

    assert "S3CRET" not in repr(failed.value)
    assert "S3CRET" not in str(failed.value)


def test_an_address_that_is_no_url_is_not_told() -> None:
    found = problem('[channels.a]\nurl_env = "A"', A="my S3CRET")

    assert "S3CRET" not in found


def test_no_repr_tells_a_secret() -> None:
    rules = the_rules(
        f'[channels.a]\nurl = "{SECRET}"\n[channels.b]\nurl_env = "B"\n{HEAD}above = 1\n'
        '[[rules.actions]]\nkind = "webhook"\nurl = "https://h/S3CRET"\n'
        '[[rules.actions]]\nkind = "command"\ncommand = ["curl", "S3CRET"]\n'
        '[[rules.actions]]\nkind = "run-pipeline"\ninput = { key = "S3CRET" }',
        B=SECRET,
    )

    assert rules.channels["a"].address == rules.channels["b"].address == SECRET
    assert "S3CRET" not in repr(rules)
    assert [action.text for action in rules.rules[0].actions] == [
        "webhook",
        "command curl",
        "run-pipeline",
    ]


def test_an_address_may_stand_in_a_file_beside_the_rules(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    path = tmp_path / "alerts.toml"
    path.write_text('[channels.a]\nurl_file = "secret"')

    assert read_rules(path, {}).channels["a"].address == SECRET


# ---------------------------------------------------------------- quiet hours


@pytest.mark.parametrize(
    ("quiet", "said"),
    [
        pytest.param('from = "22:00"', "to: it is missing", id="no end"),
        pytest.param('from = "25:00", to = "07:00"', "from: ", id="no time of day"),
        pytest.param("from = 22, to = 7", 'such as "22:00"', id="numbers, which would be seconds"),
        pytest.param('from = "22:00Z", to = "07:00"', "`timezone` says where", id="two zones"),
        pytest.param('from = "22:00+01:00", to = "07:00"', "`timezone` says", id="an offset"),
        pytest.param('from = "07:00", to = "07:00"', "the same", id="none, or all day"),
        pytest.param('from = "22:00", to = "07:00", timezone = "Mars"', "no time zone", id="Mars"),
        pytest.param('from = "22:00", to = "07:00", timezone = ""', "no time zone", id="none"),
        pytest.param(
            'from = "22:00", to = "07:00", timezone = "../zone"', "no time zone", id="a path"
        ),
        pytest.param(
            'from = "22:00", to = "07:00", severities = ["night"]', "'critical'", id="severity"
        ),
    ],
)
def test_quiet_hours_that_cannot_be_kept_are_a_problem(quiet: str, said: str) -> None:
    for found in problems(f"{CHANNEL}quiet = {{ {quiet} }}"):
        assert found.startswith("alerts.toml:3: channel 'team': quiet")
        assert said in found


@pytest.mark.parametrize("at", ['"22:00"', "22:00:00", '"22:00:00"'])
def test_a_time_of_day_is_a_text_or_a_time_of_toml(at: str) -> None:
    quiet = the_rules(f"{CHANNEL}quiet = {{ from = {at}, to = 07:00:00 }}").channels["team"].quiet

    assert quiet is not None
    assert (quiet.from_.hour, quiet.to.hour, quiet.timezone) == (22, 7, "UTC")


# ---------------------------------------------------------------- what a rule says


@pytest.mark.parametrize(
    ("fields", "threshold", "cleared"),
    [
        ({"above": 10}, 10, 10),
        ({"above": 10, "clear": 5}, 10, 5),
        ({"below": 10, "clear": 15}, 10, 15),
        ({"metric": "p95", "above": "5m", "clear": "4m"}, 5 * MINUTE, 4 * MINUTE),
        ({"metric": "p95", "above": 250}, 250, 250),
        ({"metric": "since_success", "above": "26h"}, 26 * HOUR, 26 * HOUR),
        ({"metric": "p95", "above": 50, "compare": "version"}, 50, 50),
    ],
)
def test_thresholds_are_numbers_and_of_times_durations(
    fields: dict[str, object], threshold: float, cleared: float
) -> None:
    rule = a_rule(**fields)

    assert (rule.threshold, rule.cleared) == (threshold, cleared)


@pytest.mark.parametrize(
    ("fields", "dimensions"),
    [
        ({}, ("pipeline",)),
        ({"per": ["pipeline", "worker", "worker"]}, ("worker", "pipeline")),
        ({"per": []}, ()),
        ({"step": "*"}, ("pipeline", "step")),
        ({"metric": "queue_depth"}, ("queue",)),
        ({"metric": "worker_lost"}, ("worker",)),
        ({"metric": "since_connected"}, ("worker",)),
        ({"metric": "stuck_runs"}, ("pipeline",)),
        ({"metric": "dropped"}, ()),
    ],
)
def test_an_alert_is_told_from_another_by(
    fields: dict[str, object], dimensions: tuple[str, ...]
) -> None:
    assert a_rule(**fields).dimensions == dimensions


@pytest.mark.parametrize(
    ("fields", "literal"),
    [
        ({"pipeline": "export"}, {"pipeline": "export"}),
        ({"pipeline": "exp*"}, None),
        ({"pipeline": "export", "per": ["worker"]}, None),
        ({"pipeline": "exp*", "per": []}, {}),
        (
            {"pipeline": "export", "worker": "m", "per": ["worker", "pipeline"]},
            {"worker": "m", "pipeline": "export"},
        ),
    ],
)
def test_what_is_named_in_full_is_expected(
    fields: dict[str, object], literal: dict[str, str] | None
) -> None:
    assert a_rule(**fields).literal == literal


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"for": "1m"}, "error rate over 5m above 10 % for 1 min"),
        ({"metric": "p95", "above": "90s"}, "p95 over 5m above 1.5 min"),
        (
            {"metric": "p95", "above": 50, "compare": "last_week", "window": "1h"},
            "p95 over 1h against the same hour last week above +50.0 %",
        ),
        (
            {"above": 5, "compare": "version", "window": "24h"},
            "error rate over 24h against the version before above +5.0 points",
        ),
        (
            {"metric": "since_success", "below": "26h"},
            "time since the last success below 1 d 2 h",
        ),
        ({"metric": "queue_depth", "above": 1000}, "queue depth above 1,000"),
    ],
)
def test_a_rule_reads_as_a_person_would_say_it(fields: dict[str, object], said: str) -> None:
    assert a_rule(**fields).condition == said


def test_a_channel_gets_the_severities_that_it_takes() -> None:
    rules = the_rules(
        f'{CHANNEL}severities = ["critical"]\n[channels.all]\nurl = "log://"\n'
        f'{HEAD}above = 1\n[[rules]]\nname = "c"\nmetric = "p95"\nabove = 1\n'
        'severity = "critical"\n[[rules]]\nname = "n"\nmetric = "p95"\nabove = 1\nchannels = []'
    )

    told = {rule.name: rules.channels_of(rule) for rule in rules.rules}
    assert told == {"r": ["all"], "c": ["team", "all"], "n": []}


def test_ten_seconds_are_the_shortest_window_and_a_day_the_longest() -> None:
    assert a_rule(window="10s").window == 10 * SECOND
    assert a_rule(window="24h").window == 24 * HOUR


# ---------------------------------------------------------------- patterns and names

names = st.text(
    alphabet=st.characters(blacklist_categories=["Cc", "Cs"]) | st.sampled_from("*?[]!-^\\.&|~"),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(names, names)
def test_any_name_is_a_pattern_that_can_be_asked(pattern: str, name: str) -> None:
    matched = matcher(pattern).match(name) is not None

    assert is_pattern(pattern) or matched == (pattern == name)
    assert matcher("*").match(name)


def test_a_pattern_is_asked_of_a_hostile_name_in_no_time() -> None:
    assert matcher("*a" * 50 + "b").match("a" * 200) is None


def test_a_pattern_looks_at_capitals_and_dots_as_they_are() -> None:
    assert matcher("a.b*").match("a.b.c")
    assert matcher("a.b*").match("aXb") is None
    assert matcher("A*").match("ab") is None


@pytest.mark.parametrize(
    ("match", "about"),
    [(("export",), True), (("import",), False), (("export", "m"), False), ((), False)],
)
def test_a_rule_knows_what_it_is_about(match: tuple[str, ...], about: bool) -> None:
    assert a_rule(pipeline="exp*").is_about(match) is about
