"""`orbit-metrics alerts`: what fires, why it would have, and a word in answer."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from orbit_service.commands.asking import ask, chosen, socket_option, url_option

HELP_OPTIONS = ("-h", "--help")
MAX_WHO = 100  # characters, as the procedures have it


class Listing(click.Group):
    """A group that lists when it is not told what else to do."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in HELP_OPTIONS):
            args = ["list", *args]
        return super().parse_args(context, args)


def login_name() -> str:
    """Of this user; a container may have none for its uid."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = ""
    return name[:MAX_WHO] or f"uid {os.getuid()}"


json_option = click.option("--json", "as_json", is_flag=True, help="The result as it is.")
who_option = click.option(
    "--who", default=login_name, show_default="the login name", help="Whose word it is."
)
last_option = click.option(
    "--last", default="7d", show_default=True, help="So long until now: 90m, 24h, 30d."
)


def show(answer: Any, as_json: bool, table: Callable[[Any], str]) -> None:
    click.echo(json.dumps(answer, indent=2) if as_json else table(answer))


@click.group(cls=Listing)
def alerts() -> None:
    """What fires, its rules, and a word in answer.

    Without a further word it is `alerts list`. The rules are in the file that ORBIT_ALERTS
    names to the service; docs/alerts.md tells what can stand in it.
    """


# ---------------------------------------------------------------- questions


@alerts.command("list")
@socket_option
@url_option
@click.option("--phase", type=click.Choice(["pending", "firing"]), help="These alone.")
@click.option("--rule", help="This rule's alone.")
@click.option(
    "--severity", type=click.Choice(["info", "warning", "critical"]), help="Of this one alone."
)
@click.option(
    "--check",
    is_flag=True,
    help="Exit 1 if one that is listed fires, silenced ones included, or if the rules are not "
    "in force.",
)
@json_option
def list_command(
    socket: Path, url: str | None, check: bool, as_json: bool, **selection: str | None
) -> None:
    """What fires or is about to, the worst first, and the silences.

    \b
    orbit-metrics alerts list --severity critical --check || echo "call somebody"
    """
    from orbit_service.commands.alert_tables import alerts_table

    answer = ask(socket, url, "alerts.list", chosen(selection))
    show(answer, as_json, alerts_table)
    fires = any(alert["phase"] == "firing" for alert in answer["alerts"])
    if check and (fires or answer["trouble"] is not None):
        sys.exit(1)


@alerts.command()
@socket_option
@url_option
@json_option
def rules(socket: Path, url: str | None, as_json: bool) -> None:
    """The rules and channels that are in force."""
    from orbit_service.commands.alert_tables import rules_table

    show(ask(socket, url, "alerts.rules"), as_json, rules_table)


@alerts.command()
@socket_option
@url_option
@last_option
@click.option("--rule", help="This rule's alone.")
@click.option("--alert", help="Of the alert with this id alone.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="At most."
)
@json_option
def history(socket: Path, url: str | None, last: str, as_json: bool, **selection: Any) -> None:
    """What happened: fired, resolved, silenced, sent, tried; newest first."""
    from orbit_service.commands.alert_tables import audit_table

    params = {"from": f"-{last}", **chosen(selection)}
    show(ask(socket, url, "alerts.history", params), as_json, audit_table)


@alerts.command()
@socket_option
@url_option
@last_option
@click.option("--rule", help="This rule alone.")
@json_option
def test(socket: Path, url: str | None, last: str, rule: str | None, as_json: bool) -> None:
    """When each rule would have fired on the recorded history.

    Nobody is told, and nothing is done. To try a threshold, change the file, `alerts reload`,
    and ask again.
    """
    from orbit_service.commands.alert_tables import backtest_table

    params = {"from": f"-{last}", **chosen({"rule": rule})}
    show(ask(socket, url, "alerts.backtest", params), as_json, backtest_table)


@alerts.command()
@socket_option
@url_option
@json_option
def silences(socket: Path, url: str | None, as_json: bool) -> None:
    """The silences that are in force."""
    from orbit_service.commands.alert_tables import silences_table

    show(ask(socket, url, "alerts.list")["silences"], as_json, silences_table)


@alerts.command()
def example() -> None:
    """Print a file of rules that holds as it is, to begin with.

    Of this version; no service is needed.

    \b
    orbit-metrics alerts example > alerts.toml
    """
    from orbit_service.alerts import EXAMPLE

    click.echo(EXAMPLE.read_text(encoding="utf-8"), nl=False)


# ---------------------------------------------------------------- answers


SILENCED_BY = ("rule", "severity", "worker", "pipeline", "step", "queue")


def matchers_of(words: Sequence[str]) -> dict[str, str]:
    """`name=pattern`, each name once. Raises click.UsageError."""
    matchers: dict[str, str] = {}
    for word in words:
        name, equals, pattern = word.partition("=")
        if not (equals and name and pattern):
            raise click.UsageError(f"{word!r} is not name=pattern, such as pipeline=import-*")
        if name in matchers:
            raise click.UsageError(f"{name} is given twice; * and ? in one pattern fit several")
        matchers[name] = pattern
    return matchers


def _unknown_labels(socket: Path, url: str | None, matchers: dict[str, str]) -> str | None:
    """Which labels no rule has: another file may bring them, but most are slips of the pen."""
    from orbit_service.plain import plain

    if not (own := matchers.keys() - set(SILENCED_BY)):
        return None
    rules = ask(socket, url, "alerts.rules")["rules"]
    known = {*SILENCED_BY, *(label for rule in rules for label in rule["labels"])}
    if not (strange := own - known):
        return None
    missing, there = (", ".join(map(plain, sorted(names))) for names in (strange, known))
    return f"no rule has the label {missing}; there are {there}"


@alerts.command()
@socket_option
@url_option
@click.argument("matchers", nargs=-1, required=True, metavar="NAME=PATTERN...")
@click.option("--for", "duration", default="1h", show_default=True, help="From now: 30m, 2h, 7d.")
@click.option("--reason", required=True, help="For those who wonder why it is still.")
@who_option
def silence(
    socket: Path, url: str | None, matchers: Sequence[str], duration: str, reason: str, who: str
) -> None:
    """Say and do nothing about alerts that match, for a time.

    NAME is rule, severity, worker, pipeline, step, queue or a rule's own label, PATTERN has *
    and ?. An alert that all of them match is silenced.

    \b
    orbit-metrics alerts silence pipeline='import-*' --for 2h --reason "the vendor is down"
    """
    from orbit_service.plain import plain
    from orbit_service.tables import utc

    params = {"matchers": matchers_of(matchers), "duration": duration, "reason": reason, "who": who}
    strange = _unknown_labels(socket, url, matchers_of(matchers))
    answer = ask(socket, url, "alerts.silence", params)
    click.echo(f"silence {plain(answer['id'])}, until {utc(answer['until'])}")
    if strange is not None:
        click.echo(f"it silences nothing now: {strange}", err=True)


@alerts.command()
@socket_option
@url_option
@click.argument("id")
@who_option
def unsilence(socket: Path, url: str | None, id: str, who: str) -> None:
    """End the silence ID before its time."""
    ask(socket, url, "alerts.unsilence", {"id": id, "who": who})
    click.echo("ended")


@alerts.command()
@socket_option
@url_option
@click.argument("alert")
@click.option("--note", default="", help="What is being done.")
@who_option
def ack(socket: Path, url: str | None, alert: str, note: str, who: str) -> None:
    """Somebody is at it: ALERT, an id, is not repeated until it is resolved."""
    ask(socket, url, "alerts.acknowledge", {"alert": alert, "note": note, "who": who})
    click.echo("acknowledged")


@alerts.command("send-test")
@socket_option
@url_option
@click.argument("channel")
def send_test(socket: Path, url: str | None, channel: str) -> None:
    """Send a message that says it is a test through CHANNEL, now."""
    answer = ask(socket, url, "alerts.sendTest", {"channel": channel})
    click.echo(f"sent in {answer['seconds']:.1f} s")


@alerts.command()
@socket_option
@url_option
def reload(socket: Path, url: str | None) -> None:
    """Read the file of rules again; a bad one leaves those in force."""
    from orbit_service.plain import plain

    answer = ask(socket, url, "alerts.reload")
    changed = ", ".join(map(plain, answer["changed"])) or "none"
    click.echo(f"rules: {answer['rules']}, channels: {answer['channels']}; changed: {changed}")
