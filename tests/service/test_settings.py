"""The environment, read once: safe by default, and every problem named at once."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from orbit_rpc_schema.wire import MAX_SOCKET_PATH
from orbit_service.settings import (
    Address,
    BadSettings,
    Settings,
    let_sqlite_sort,
    read_settings,
    warnings,
)

TOKEN = "correct-horse"


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("ORBIT_", "METRICS_", "POLL_", "LOG_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def settings_of(environ):
    """The settings under an environment of these variables alone."""

    def read(**variables: str) -> Settings:
        for name, value in variables.items():
            environ.setenv(name, value)
        return read_settings()

    return read


@pytest.fixture
def problems_of(settings_of):
    """The lines that name what is wrong, by variable."""

    def problems(**variables: str) -> dict[str, str]:
        with pytest.raises(BadSettings) as refused:
            settings_of(**variables)
        lines = str(refused.value).splitlines()[1:]
        return dict(line.strip().split(": ", 1) for line in lines)

    return problems


def test_without_a_setting_it_is_safe(settings_of):
    settings = settings_of()
    assert settings.socket_mode == 0o600
    assert settings.allow_uids == frozenset()
    assert settings.http == ("127.0.0.1", 8790)
    assert settings.http.is_loopback
    assert settings.metrics_interval == 60_000


BAD = {
    "METRICS_INTERVAL": ["999", "-1", "often", "1.5", ""],
    "LOG_LEVEL": ["loud", ""],
    "ORBIT_SOCKET": ["/" + "x" * MAX_SOCKET_PATH],
    "ORBIT_SOCKET_MODE": ["0999", "rw", "0", "1777", "-1", ""],
    "ORBIT_ALLOW_UIDS": ["nobody-of-that-name", "-1", "0,no one"],
    "ORBIT_HTTP": ["8790", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1"],
    "ORBIT_TOKEN": ["short", ""],
    "ORBIT_TOKEN_FILE": ["/does/not/exist"],
    "ORBIT_STUCK_AFTER": ["0", "soon"],
    "ORBIT_DRAIN_TIMEOUT": ["-1", "soon", ""],
    "ORBIT_ALLOWED_HOSTS": ["https://metrics.example", "a b", "metrics.example:443", "*"],
    "ORBIT_CORS_ORIGINS": ["dash.example", "https://dash.example/", "null", "*"],
    "ORBIT_HISTORY_URL": ["mysql://host/db", "postgresql://host", "elsewhere"],
    "ORBIT_RETENTION": ["6h", "6h,7d", "7d,6h,400d", "1h,7d,400d", "a,b,c", ""],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}={value[:20]}") for name in BAD for value in BAD[name]],
)
def test_a_bad_value_is_named_with_its_variable(problems_of, name, value):
    assert list(problems_of(**{name: value})) == [name]


def test_every_bad_value_is_named_at_once(problems_of):
    assert problems_of(**{name: values[0] for name, values in BAD.items()}).keys() == BAD.keys()


def test_an_address_without_a_token_is_named_among_the_others(problems_of):
    problems = problems_of(METRICS_INTERVAL="1", ORBIT_HTTP="0.0.0.0:8790")
    assert problems.keys() == {"METRICS_INTERVAL", "ORBIT_HTTP"}


def test_a_bad_token_is_not_told(problems_of):
    assert "hunter2" not in str(problems_of(ORBIT_TOKEN="hunter2"))


def test_the_command_line_stands_above_the_environment(settings_of):
    settings_of(ORBIT_HTTP="127.0.0.1:1", ORBIT_SOCKET="/run/a.sock")
    settings = read_settings(ORBIT_HTTP="none", ORBIT_SOCKET=None)
    assert (settings.http, settings.socket) == (None, Path("/run/a.sock"))


@pytest.mark.parametrize("level", ["debug", "Warning", "ERROR"])
def test_a_level_is_known_in_any_case(settings_of, level):
    assert settings_of(LOG_LEVEL=level).log_level == level.upper()


# ---------------------------------------------------------------- the history


def test_what_is_kept_can_be_said(settings_of):
    levels = settings_of(ORBIT_RETENTION="12h,30d,800d").retention
    assert [(level.name, level.kept_ms // 3_600_000) for level in levels] == [
        ("10s", 12),
        ("1m", 720),
        ("1h", 19_200),
    ]


def test_a_password_in_a_url_is_not_told(settings_of, problems_of):
    assert "hunter2" not in repr(settings_of(ORBIT_HISTORY_URL="postgresql://u:hunter2@h/d"))
    assert "hunter2" not in str(problems_of(ORBIT_HISTORY_URL="mysql://u:hunter2@h/d"))


# ---------------------------------------------------------------- alerts


@pytest.mark.parametrize("value", [None, "", "none"])
def test_without_a_file_of_rules_there_are_none(settings_of, value):
    assert settings_of(**({} if value is None else {"ORBIT_ALERTS": value})).alerts is None


def test_a_file_of_rules_that_is_missing_is_no_reason_not_to_start(settings_of):
    path = settings_of(ORBIT_ALERTS="not/there.toml").alerts
    assert path == Path.cwd() / "not" / "there.toml"


# ---------------------------------------------------------------- the socket


def test_the_longest_path_is_taken_and_one_byte_more_is_not(settings_of, problems_of):
    longest = "/" + "x" * (MAX_SOCKET_PATH - 1)
    assert str(settings_of(ORBIT_SOCKET=longest).socket) == longest
    assert str(MAX_SOCKET_PATH) in problems_of(ORBIT_SOCKET=longest + "x")["ORBIT_SOCKET"]


def test_a_path_is_measured_in_bytes(problems_of):
    assert "121 bytes" in problems_of(ORBIT_SOCKET="/" + "ü" * 60)["ORBIT_SOCKET"]


@pytest.mark.parametrize(("value", "mode"), [("0660", 0o660), ("660", 0o660), ("0o600", 0o600)])
def test_the_mode_is_octal(settings_of, value, mode):
    assert settings_of(ORBIT_SOCKET_MODE=value).socket_mode == mode


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        pytest.param({}, 0o600, id="for its own user"),
        pytest.param({"ORBIT_ALLOW_UIDS": ""}, 0o600, id="nobody further is admitted"),
        pytest.param({"ORBIT_ALLOW_UIDS": "1000"}, 0o666, id="where the uid is the guard"),
        pytest.param({"ORBIT_ALLOW_UIDS": "*"}, 0o666, id="everybody"),
        pytest.param(
            {"ORBIT_ALLOW_UIDS": "1000", "ORBIT_SOCKET_MODE": "0660"}, 0o660, id="as it is said"
        ),
        pytest.param(
            {"ORBIT_ALLOW_UIDS": "*", "ORBIT_SOCKET_MODE": "0600"}, 0o600, id="though it is narrow"
        ),
        pytest.param({"ORBIT_SOCKET_MODE": "0666"}, 0o666, id="though it is wide"),
    ],
)
def test_a_socket_that_is_for_others_can_be_opened_by_them(settings_of, given, mode):
    assert settings_of(**given).socket_mode == mode


@pytest.mark.parametrize(
    ("value", "uids"),
    [
        ("", frozenset()),
        ("1000", {1000}),
        ("1000, 1001,", {1000, 1001}),
        ("root", {0}),
        (f"{pwd.getpwuid(os.geteuid()).pw_name},5", {os.geteuid(), 5}),
        ("*", None),
        ("1000,*", None),
    ],
)
def test_uids_are_numbers_names_or_everybody(settings_of, value, uids):
    assert settings_of(ORBIT_ALLOW_UIDS=value).allow_uids == uids


# ---------------------------------------------------------------- http


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:8790", ("::1", 8790)),
        ("none", None),
        ("", None),
    ],
)
def test_an_address_is_a_host_and_a_port_or_none(settings_of, value, address):
    assert settings_of(ORBIT_HTTP=value).http == address


@pytest.mark.parametrize("value", ["0.0.0.0:8790", ":8790", "[::]:8790", "192.0.2.1:80", "box:80"])
def test_elsewhere_than_on_loopback_a_token_is_needed(settings_of, problems_of, value):
    assert "set ORBIT_TOKEN" in problems_of(ORBIT_HTTP=value)["ORBIT_HTTP"]
    assert settings_of(ORBIT_HTTP=value, ORBIT_TOKEN=TOKEN).token == TOKEN


@pytest.mark.parametrize("address", [("::1", 80), ("127.0.0.1", 80)])
def test_an_address_reads_back_as_it_is_written(settings_of, address):
    assert settings_of(ORBIT_HTTP=str(Address(address))).http == address


def test_a_token_may_come_from_a_file(settings_of, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    settings = settings_of(ORBIT_HTTP="0.0.0.0:1", ORBIT_TOKEN_FILE=str(tmp_path / "token"))
    assert settings.token == TOKEN


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff\xfe\xfd\xfc" * 8])
def test_a_file_without_a_token_is_named(problems_of, tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    assert "ORBIT_TOKEN_FILE" in problems_of(ORBIT_TOKEN_FILE=str(tmp_path / "token"))


def test_a_token_is_not_shown_with_the_settings(settings_of):
    assert TOKEN not in repr(settings_of(ORBIT_TOKEN=TOKEN))


# ---------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ORBIT_SOKET", "did you mean ORBIT_SOCKET?"),
        ("ORBIT_ALLOWED_UIDS", "did you mean ORBIT_ALLOW_UIDS?"),
        ("ORBIT_QQQQ_WWWW_ZZZZ_8080_XYZ", "it is passed over"),
    ],
)
def test_an_unknown_name_is_warned_of_with_the_nearest(settings_of, name, nearest):
    assert warnings(settings_of(), {name: "1"}) == [f"{name} is not a setting; {nearest}"]


@pytest.mark.parametrize(
    "name", ["ORBIT_WORKER_NAME", "ORBIT_DISABLED", "ORBIT_STRICT", "ORBIT_TOKEN", "PATH"]
)
def test_a_name_that_is_known_or_not_ours_is_not_warned_of(settings_of, name):
    assert warnings(settings_of(), {name: "1"}) == []


def test_an_unknown_name_does_not_stop_the_service(settings_of):
    assert settings_of(ORBIT_SERVICE_HOST="10.0.0.1").socket_mode == 0o600


@pytest.mark.parametrize(("interval", "warned"), [("1000", 1), ("9999", 1), ("10000", 0)])
def test_a_short_interval_is_for_trying_out(settings_of, interval, warned):
    assert len(warnings(settings_of(METRICS_INTERVAL=interval), {})) == warned


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/metrics"),
        ("https://collector/", "https://collector/v1/metrics"),
        ("http://collector:4318/own/path", "http://collector:4318/own/path"),
        ("none", None),
        ("", None),
    ],
)
def test_the_push_goes_to_the_path_of_the_protocol_unless_one_is_named(settings_of, value, url):
    assert settings_of(ORBIT_OTLP_URL=value).otlp_url == url


@pytest.mark.parametrize(
    "value", ["collector:4318", "grpc://collector:4317", "http://", "http://[", "http://x..y"]
)
def test_a_push_to_what_is_no_url_is_named(problems_of, value):
    assert "ORBIT_OTLP_URL" in problems_of(ORBIT_OTLP_URL=value)


def test_headers_of_the_push_are_pairs(settings_of):
    headers = settings_of(ORBIT_OTLP_HEADERS="api-key=a%20b, x-scope=1,").otlp_headers

    assert headers == {"api-key": "a b", "x-scope": "1"}


@pytest.mark.parametrize("value", ["api-key", "=abc", "a=b,c", "api key=abc", "api-key=a%0Ab"])
def test_headers_that_are_no_pairs_are_named(problems_of, value):
    assert "ORBIT_OTLP_HEADERS" in problems_of(ORBIT_OTLP_HEADERS=value)


def test_what_is_exported_can_be_turned_off(settings_of):
    settings = settings_of(ORBIT_EXPORT_WORKERS="false", ORBIT_EXPORT_STEPS="0")

    assert (settings.export_workers, settings.export_steps, settings.export_waits) == (
        False,
        False,
        True,
    )


def test_hosts_and_origins_are_lists_in_small_letters(settings_of):
    settings = settings_of(
        ORBIT_ALLOWED_HOSTS="Metrics.example, [fd00::1]",
        ORBIT_CORS_ORIGINS="https://Dash.example:443,http://localhost:3000",
    )
    assert settings.allowed_hosts == {"metrics.example", "[fd00::1]"}
    assert settings.cors_origins == {"https://dash.example", "http://localhost:3000"}


def test_any_page_may_be_let_in_where_there_is_a_token(settings_of):
    settings = settings_of(ORBIT_CORS_ORIGINS="*", ORBIT_ALLOWED_HOSTS="*", ORBIT_TOKEN=TOKEN)
    assert settings.cors_origins == settings.allowed_hosts == {"*"}


def test_sqlite_sorts_in_the_state_unless_it_was_told_where(settings_of):
    settings = settings_of(ORBIT_STATE="/srv/state")
    environ: dict[str, str] = {}
    let_sqlite_sort(settings, environ)
    assert environ == {"SQLITE_TMPDIR": "/srv/state"}
    let_sqlite_sort(settings_of(ORBIT_STATE="/elsewhere"), environ)
    assert environ == {"SQLITE_TMPDIR": "/srv/state"}


def test_nothing_imports_sqlite_before_it_is_told_where_to_sort():
    code = "import sys, orbit_service.cli, orbit_service.settings; print('sqlite3' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
