"""The command line as real processes: each ends in an answer or a sentence, with an exit code."""

from __future__ import annotations

import json
import re
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from builders import ENTRY, command, environment, until
from conftest import RunningService
from orbit_rpc_schema.caller import call
from orbit_rpc_schema.wire import MAX_SOCKET_PATH

COMMANDS = [
    "serve",
    "worker",
    "run",
    "demo",
    "metrics",
    "call",
    "openrpc",
    "check-config",
    "healthcheck",
    "doctor",
    "history",
    "migrate",
    "backup",
    "typescript",
    "top",
    "alerts",
]


def failure(outcome: Any, code: int = 1) -> str:
    """The sentence of a command that failed as a command should."""
    assert outcome.returncode == code, outcome
    assert "Traceback" not in outcome.stderr + outcome.stdout
    assert outcome.stderr.strip()
    return outcome.stderr.strip()


def success(outcome: Any) -> str:
    assert outcome.returncode == 0, outcome
    assert "Traceback" not in outcome.stderr
    return outcome.stdout


@pytest.fixture
def a_run(client):
    """One run of 1,250 ms, counted."""
    client.record_run(1250, True, pipeline="send")
    assert client.flush(5)


# ---------------------------------------------------------------- help


def test_the_help_lists_every_command(tmp_path):
    listed = re.findall(r"^  ([a-z][a-z-]*)", success(command(tmp_path, "--help")), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help(tmp_path, name):
    assert f"orbit-metrics {name}" in success(command(tmp_path, name, "--help")).replace(
        "-c ", "orbit-metrics "
    )


def test_an_unknown_command_is_a_usage_error(tmp_path):
    assert "No such command 'serv'" in failure(command(tmp_path, "serv"), code=2)


# ---------------------------------------------------------------- questions


def test_metrics_prints_the_numbers_by_name(tmp_path, service, a_run):
    printed = success(command(tmp_path, "metrics"))
    assert re.search(r"^runs +1 \(", printed, re.MULTILINE)
    assert "avg 1250 ms" in printed


def test_metrics_as_json_is_the_result_of_worker_metrics(tmp_path, service, a_run):
    printed = json.loads(success(command(tmp_path, "metrics", "--json", "--worker", "tests")))
    asked = service.ask("worker.metrics", {"worker": "tests"})
    changing = {"timestamp", "uptime", "uptimeSeconds"}
    assert {k: v for k, v in printed.items() if k not in changing} == {
        k: v for k, v in asked.items() if k not in changing
    }


def test_metrics_says_that_no_worker_was_ever_seen(tmp_path, service):
    assert "never seen here" in success(command(tmp_path, "metrics"))


def test_call_prints_the_result(tmp_path, service, a_run):
    printed = success(command(tmp_path, "call", "worker.recentRuns", '{"limit": 1}'))
    assert [run["durationMs"] for run in json.loads(printed)] == [1250]


def test_openrpc_needs_no_service(tmp_path):
    document = json.loads(success(command(tmp_path, "openrpc")))
    assert "worker.metrics" in [method["name"] for method in document["methods"]]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        pytest.param(["worker.fire"], 1, "worker.fire: Method not found", id="unknown method"),
        pytest.param(
            ["worker.recentRuns", '{"limit": 0}'], 1, "Invalid params: limit: ", id="bad params"
        ),
        pytest.param(["runs.record", "[]"], 1, "Invalid params", id="a writing method"),
        pytest.param(["worker.list", "{"], 2, "the params are not JSON", id="bad JSON"),
        pytest.param(["worker.list", "5"], 2, "an object or an array", id="a number"),
    ],
)
def test_a_call_that_fails_says_why(tmp_path, service, arguments, code, sentence):
    assert sentence in failure(command(tmp_path, "call", *arguments), code)


@pytest.mark.parametrize("arguments", [["metrics"], ["call", "worker.list"]], ids=lambda a: a[0])
def test_without_a_service_a_question_says_where_it_looked(tmp_path, arguments):
    sentence = failure(command(tmp_path, *arguments))
    assert sentence.startswith(f"orbit-metrics: no service at {tmp_path / 'worker.sock'}")
    assert "orbit-metrics doctor" in sentence


def test_a_path_that_is_too_long_is_said(tmp_path):
    assert "too long" in failure(command(tmp_path, "metrics", "--socket", "/" + "x" * 200))


# ---------------------------------------------------------------- probes


def test_healthcheck_is_good_while_the_service_takes_runs(tmp_path, service):
    assert "takes runs" in success(command(tmp_path, "healthcheck"))


def test_healthcheck_is_bad_without_a_service(tmp_path):
    assert f"no service at {tmp_path}" in failure(command(tmp_path, "healthcheck"))


def test_doctor_sees_both_sides(tmp_path, service, a_run):
    printed = success(command(tmp_path, "doctor"))
    assert "BAD" not in printed
    for part in (
        str(service.socket),
        "mode 0600",
        "uid",
        "protocol 1",
        "memory only",
        "connected workers: tests",
    ):
        assert part in printed


def make_nothing(path: Path) -> None:
    """There is no file."""


def make_a_file(path: Path) -> None:
    path.write_text("")


def make_a_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        pytest.param(make_nothing, "is the service running?", id="nothing there"),
        pytest.param(make_a_file, "is not a socket", id="no socket"),
        pytest.param(make_a_stale_socket, "the service is not running", id="a stale socket"),
    ],
)
def test_doctor_names_what_is_wrong_and_fails(tmp_path, make, finding):
    make(tmp_path / "worker.sock")
    outcome = command(tmp_path, "doctor")
    assert outcome.returncode == 1
    assert outcome.stdout.splitlines()[-1].startswith("BAD ")
    assert finding in outcome.stdout.splitlines()[-1]
    assert outcome.stderr == ""


@pytest.fixture
def guarded(tmp_path):
    """A service whose HTTP needs a token; its URL."""
    running = RunningService(tmp_path / "worker.sock", ORBIT_TOKEN="correct-horse")
    running.start()
    yield f"http://{running.service.http_address}"
    running.close()


@pytest.mark.parametrize(
    ("arguments", "environ", "bad"),
    [
        ((), {}, None),
        ((), {"ORBIT_TOKEN": "correct-horse"}, None),
        ((), {"ORBIT_TOKEN": "another-horse"}, "is not the service's"),
        ((), {"ORBIT_HTTP": "0.0.0.0:1"}, "set ORBIT_TOKEN"),
        (("--url", "URL"), {"ORBIT_TOKEN": "correct-horse"}, None),
        (("--url", "URL"), {}, "a token is needed"),
        (("--url", "URL", "--origin", "http://a.example"), {}, "a token is needed"),
        (
            ("--url", "URL", "--origin", "http://a.example"),
            {"ORBIT_TOKEN": "correct-horse"},
            "ORBIT_CORS_ORIGINS",
        ),
        (("--url", "http://127.0.0.1:1"), {}, "no answer from"),
    ],
)
def test_doctor_tells_what_keeps_http_from_answering(tmp_path, guarded, arguments, environ, bad):
    words = [word.replace("URL", guarded) for word in arguments]
    outcome = command(tmp_path, "doctor", *words, **environ)
    found = [line for line in outcome.stdout.splitlines() if line.startswith("BAD ")]

    assert outcome.returncode == (0 if bad is None else 1)
    assert [bad in line for line in found] == ([] if bad is None else [True])


SECRET = "hunter2-is-a-secret"


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (("doctor", "--url", f"http://user:{SECRET}@127.0.0.1:1"), {}),
        (("metrics", "--url", f"http://user:{SECRET}@127.0.0.1:1"), {}),
        (("healthcheck", "--url", f"http://user:{SECRET}@127.0.0.1:1"), {}),
        (("doctor",), {"ORBIT_TOKEN": f"{SECRET}\nx"}),
        (("metrics", "--url", "http://127.0.0.1:1"), {"ORBIT_TOKEN": f"{SECRET}\nx"}),
        (("metrics", "--url", "http://127.0.0.1:1"), {"ORBIT_TOKEN": f"{SECRET}ж"}),
        (("check-config",), {"ORBIT_TOKEN": f"{SECRET}ж"}),
    ],
)
def test_a_secret_that_cannot_be_used_is_not_shown(tmp_path, arguments, environ):
    outcome = command(tmp_path, *arguments, **environ)
    assert outcome.returncode != 0
    assert "Traceback" not in outcome.stderr
    assert SECRET not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("result", ["null", "[]", '"x"', "{}", "7"])
def test_doctor_takes_another_program_for_what_it_is(tmp_path, result):
    answer = f'{{"jsonrpc":"2.0","id":1,"result":{result}}}\n'.encode()
    with answering(tmp_path / "worker.sock", answer):
        outcome = command(tmp_path, "doctor")

    assert (outcome.returncode, outcome.stderr) == (1, "")
    assert outcome.stdout.splitlines()[-1].startswith("BAD ")


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """A program that says the same to everybody."""

    class Same(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(answer)

    with socketserver.ThreadingUnixStreamServer(str(path), Same) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def test_doctor_says_what_to_do_about_what_was_refused(tmp_path, guarded):
    assert "401" in failure(command(tmp_path, "metrics", "--url", guarded))
    printed = success(command(tmp_path, "doctor"))
    assert "1 × http token; somebody asked without the token" in printed


def test_a_call_without_the_token_says_which_setting_has_it(tmp_path, guarded):
    assert "ORBIT_TOKEN" in failure(command(tmp_path, "metrics", "--url", guarded))


# ---------------------------------------------------------------- settings


def test_check_config_shows_what_holds_and_no_secret(tmp_path):
    printed = success(command(tmp_path, "check-config", ORBIT_TOKEN="correct-horse"))
    assert f"ORBIT_SOCKET = {tmp_path / 'worker.sock'}\n" in printed
    assert "ORBIT_SOCKET_MODE = 0600\n" in printed
    assert "ORBIT_TOKEN = (set)\n" in printed
    assert "correct-horse" not in printed


@pytest.mark.parametrize(
    ("name", "said"), [("ORBIT_SOKET", "ORBIT_SOCKET?"), ("METRICS_INTERVAL", "METRICS_INTERVAL")]
)
def test_check_config_fails_for_an_unknown_or_a_bad_variable(tmp_path, name, said):
    assert said in failure(command(tmp_path, "check-config", **{name: "x"}))


def test_check_config_says_how_many_rules_a_good_file_has(tmp_path):
    rules = tmp_path / "alerts.toml"
    rules.write_text(success(command(tmp_path, "alerts", "example")))
    printed = success(command(tmp_path, "check-config", ORBIT_ALERTS="alerts.toml"))

    assert f"ORBIT_ALERTS = {rules}\n" in printed
    assert re.search(rf"^{rules} is good; rules: \d\d, channels: 1$", printed, re.MULTILINE)


BAD_RULES = """\
[channels.mail]
url_env = "NOT_SET"

[[rules]]
name = "errors"
metric = "eror_rate"
above = 10

[[rules]]
name = "slow"
metric = "p95"
above = 10
over = "5m"
"""


def test_check_config_names_every_problem_of_the_rules_by_its_line(tmp_path):
    rules = tmp_path / "alerts.toml"
    rules.write_text(BAD_RULES)
    said = failure(command(tmp_path, "check-config", ORBIT_ALERTS="alerts.toml")).splitlines()

    assert [line.partition(f"{rules}:")[2].split(":")[0] for line in said] == ["4", "13"]
    assert "'eror_rate' is not known; there are error_rate" in said[0]
    assert "over: there is no such setting; see docs/alerts.md" in said[1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(None, "cannot be read: No such file or directory", id="no file"),
        pytest.param("[[rules", "alerts.toml:1: this is not TOML", id="no TOML"),
        pytest.param(
            '[channels.mail]\nurl_env = "NOT_SET"',
            "alerts.toml:1: channel 'mail': the variable NOT_SET is not set: set it",
            id="no address",
        ),
    ],
)
def test_check_config_fails_for_rules_that_cannot_be_taken(tmp_path, text, why):
    if text is not None:
        (tmp_path / "alerts.toml").write_text(text)
    assert why in failure(command(tmp_path, "check-config", ORBIT_ALERTS="alerts.toml"))


# ---------------------------------------------------------------- starting and stopping


def taken_port() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_busy_port_is_one_sentence(tmp_path):
    with taken_port() as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        sentence = failure(command(tmp_path, "serve", ORBIT_HTTP=address))
    assert f"{address} cannot be listened on" in sentence
    assert "ORBIT_HTTP" in sentence
    assert not (tmp_path / "worker.sock").exists()


def test_every_bad_variable_is_named_at_once(tmp_path):
    bad = {"METRICS_INTERVAL": "often", "ORBIT_HTTP": "8790", "ORBIT_SOCKET_MODE": "rw"}
    sentence = failure(command(tmp_path, "serve", **bad))
    assert all(name in sentence for name in bad)


def test_a_socket_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "worker.sock")
    assert "is not a directory" in failure(command(tmp_path, "serve", "--socket", path))


def test_a_socket_whose_path_is_too_long_is_one_sentence(tmp_path):
    path = str(tmp_path / ("x" * MAX_SOCKET_PATH))
    assert f"at most {MAX_SOCKET_PATH}" in failure(command(tmp_path, "serve", "--socket", path))


def test_a_file_that_is_no_socket_is_not_deleted(tmp_path):
    path = tmp_path / "worker.sock"
    path.write_text("precious")
    assert "is not a socket" in failure(command(tmp_path, "serve"))
    assert path.read_text() == "precious"


def test_a_second_service_is_refused_and_the_first_goes_on(tmp_path, service):
    assert "Another process is listening" in failure(command(tmp_path, "serve"))
    assert service.ask("service.info")["connections"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_ends_the_service_cleanly(tmp_path, number):
    path = tmp_path / "worker.sock"
    make_a_stale_socket(path)
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen([*ENTRY, "serve"], env=environment(tmp_path), stderr=stderr) as process,
    ):
        until(lambda: b"workers at" in log.read_bytes())
        assert call(path, "service.info")["pid"] == process.pid
        process.send_signal(number)
        assert process.wait(40) == 0

    assert not path.exists()
    assert "Traceback" not in log.read_text()


@pytest.fixture
def temporary():
    """A temporary directory whose path leaves room for that of a socket below it."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


@pytest.fixture
def demo(tmp_path, temporary):
    """A demo that has started its service and its worker, in a temporary directory of its own."""
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [*ENTRY, "demo", "--runs", "40"],
            env=environment(tmp_path, TMPDIR=str(temporary)),
            stderr=stderr,
        ) as process,
    ):
        try:
            until(lambda: re.search(rb"^\d+/", log.read_bytes(), re.MULTILINE))
            yield process
        finally:
            process.terminate()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([signal.SIGTERM], id="SIGTERM"),
        pytest.param([signal.SIGHUP, signal.SIGTERM], id="SIGHUP and then SIGTERM"),
    ],
)
def test_a_signal_ends_the_demo_and_all_that_it_started(tmp_path, temporary, demo, numbers):
    children = children_of(demo.pid)
    for number in numbers:
        demo.send_signal(number)

    assert demo.wait(40) == 128 + numbers[0]
    assert len(children) == 2
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert list(temporary.iterdir()) == []
    assert "Traceback" not in (tmp_path / "log").read_text()


# ---------------------------------------------------------------- the base install


WITHOUT_EXTRAS = """
import sys
for name in ("click", "pydantic", "msgspec", "aiohttp", "loguru", "jsonrpcserver", "rich"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from orbit_service.entry import main
main()
"""


def on_a_base_install(folder: Path, *arguments: str) -> Any:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *arguments],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("name", ["serve", "metrics", "--help"])
def test_on_a_base_install_the_missing_extra_is_named(tmp_path, name):
    sentence = failure(on_a_base_install(tmp_path, name))
    assert "click is not installed" in sentence
    assert "orbit-metrics[service]" in sentence


def test_on_a_base_install_healthcheck_works(tmp_path, service):
    assert "takes runs" in success(on_a_base_install(tmp_path, "healthcheck"))


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("aiohttp", ["serve"], "service"),
        ("dbos", ["run", "census"], "pipelines"),
        ("dbos", ["worker"], "pipelines"),
    ],
)
def test_where_one_extra_is_missing_that_one_is_named(tmp_path, missing, arguments, extra):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "census.py").write_text(A_PIPELINE)
    blocked = f"import sys; sys.modules[{missing!r}] = None; {ENTRY[-1]}"
    outcome = subprocess.run(
        [sys.executable, "-c", blocked, *arguments],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert f"install orbit-metrics[{extra}]" in failure(outcome)


A_PIPELINE = """
from orbit_worker.pipelines import Pipeline, step

@step
def count(value):
    return value

census = Pipeline("census", steps=[count])
"""
