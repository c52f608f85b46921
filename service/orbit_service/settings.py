"""
The environment, read once into one typed object, safe by default.

Times are in the units that the variable names: METRICS_INTERVAL and
POLL_INTERVAL in milliseconds, as in the system that this replaces.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping, MutableMapping
from difflib import get_close_matches
from pathlib import Path
from socket import gethostname
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orbit_rpc_schema.caller import is_sendable
from orbit_rpc_schema.errors import Explained
from orbit_rpc_schema.wire import MAX_SOCKET_PATH, as_name, default_socket_path
from orbit_service.core.rollup import LEVELS, BadRange, Level, levels, parse_duration

SYSTEM_STATE = Path("/var/lib/orbit-metrics")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TRYING_OUT_MS = 10_000
LEAST_RETENTION_MS = 2 * 3_600_000  # hours are made of what is kept below them
MIN_TOKEN = 8  # characters
ANY = "*"
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:]+\]")  # without a port
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://({_HOST.pattern})(:[0-9]{{1,5}})?")
# What Kubernetes puts into a pod for each Service of its namespace, whatever that is called.
_SERVICE_LINK = re.compile(
    r".*_(SERVICE_(HOST|PORT(_.*)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
_USUAL_PORT = re.compile(r"^(https://.*):443$|^(http://.*):80$")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2

# Read by the worker's client or the pipeline worker and of no meaning to the service.
ELSEWHERE = {
    "ORBIT_WORKER_NAME",
    "ORBIT_WORKER_VERSION",
    "ORBIT_DISABLED",
    "ORBIT_STRICT",
    "ORBIT_SPOOL_DIR",
    "ORBIT_PIPELINES",
    "ORBIT_PIPELINES_DATABASE",
    "ORBIT_CONCURRENCY",
}


class BadSettings(Explained):
    """
    The settings are not valid:
    {problems}
    """

    @property
    def lines(self) -> list[str]:
        """One for each problem."""
        return str(self).splitlines()[1:]


class Address(tuple[str, int]):
    """A host and a port."""

    @property
    def is_loopback(self) -> bool:
        return self[0] in LOOPBACK

    def __str__(self) -> str:
        host = f"[{self[0]}]" if ":" in self[0] else self[0]
        return f"{host}:{self[1]}"


def default_state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """/var/lib/orbit-metrics where it is there and writable, else the user's own."""
    if os.access(SYSTEM_STATE, os.W_OK | os.X_OK):
        return SYSTEM_STATE
    own = environ.get("XDG_STATE_HOME")
    home = Path(own) if own else Path(environ.get("HOME") or "/") / ".local" / "state"
    return home / "orbit-metrics"


class Settings(BaseSettings):
    """Every setting of the service, by the name of its variable."""

    model_config = SettingsConfigDict(
        case_sensitive=True, extra="ignore", arbitrary_types_allowed=True
    )

    metrics_interval: int = Field(60_000, ge=1_000, alias="METRICS_INTERVAL")
    # Of the pipeline worker, which reads it itself; checked here with the others.
    poll_interval: int = Field(5_000, ge=1, alias="POLL_INTERVAL")
    log_level: Literal["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", alias="LOG_LEVEL"
    )
    socket: Path = Field(default_factory=default_socket_path, alias="ORBIT_SOCKET")
    # Left out: for this user alone, or where others are admitted for all, because then
    # the uid of each connection is the guard.
    socket_mode: int = Field(0, alias="ORBIT_SOCKET_MODE")
    # None: everybody.
    allow_uids: Annotated[frozenset[int] | None, NoDecode] = Field(
        frozenset(), alias="ORBIT_ALLOW_UIDS"
    )
    token: str | None = Field(None, alias="ORBIT_TOKEN", min_length=MIN_TOKEN, repr=False)
    token_file: Path | None = Field(None, alias="ORBIT_TOKEN_FILE")
    # By which names and from which pages HTTP may be asked, beside our own.
    allowed_hosts: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), alias="ORBIT_ALLOWED_HOSTS"
    )
    cors_origins: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), alias="ORBIT_CORS_ORIGINS"
    )
    # After the tokens, which it may need.
    http: Address | None = Field(Address(("127.0.0.1", 8790)), alias="ORBIT_HTTP")
    node: str = Field(default_factory=gethostname, alias="ORBIT_NODE")
    # None: memory only, acknowledged at once.
    state: Path | None = Field(default_factory=default_state_folder, alias="ORBIT_STATE")
    # None: SQLite in the state directory. Checked where it is set: that takes long.
    history_url: str | None = Field(None, alias="ORBIT_HISTORY_URL", repr=False)
    # For how long windows of 10 s, 1 min and 1 h are kept.
    retention: Annotated[tuple[Level, ...], NoDecode] = Field(LEVELS, alias="ORBIT_RETENTION")
    stuck_after: int = Field(600, ge=1, alias="ORBIT_STUCK_AFTER")  # seconds
    # The file of rules. None: no alerts. What is in it is looked at where the rules are: a file
    # that is missing or wrong is no reason not to count runs.
    alerts: Path | None = Field(None, alias="ORBIT_ALERTS")
    # For so many seconds after it is told to stop, runs of workers that are still there are taken.
    drain_timeout: int = Field(0, ge=0, le=86_400, alias="ORBIT_DRAIN_TIMEOUT")
    # What Prometheus and OpenTelemetry are told; each left out makes fewer series.
    export_workers: bool = Field(True, alias="ORBIT_EXPORT_WORKERS")  # the label `worker`
    export_steps: bool = Field(True, alias="ORBIT_EXPORT_STEPS")
    export_waits: bool = Field(True, alias="ORBIT_EXPORT_WAITS")
    # For so many seconds a worker that has ended is told of as being down.
    export_ended_for: int = Field(900, ge=0, alias="ORBIT_EXPORT_ENDED_FOR")

    # Where to push by OTLP over HTTP, how often (seconds), and what to say of ourselves.
    otlp_url: str | None = Field(None, alias="ORBIT_OTLP_URL")
    otlp_interval: int = Field(60, ge=1, alias="ORBIT_OTLP_INTERVAL")
    otlp_headers: Annotated[Mapping[str, str], NoDecode] = Field(
        default_factory=dict, alias="ORBIT_OTLP_HEADERS", repr=False
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("socket_mode", mode="before")
    @classmethod
    def _octal(cls, value: Any) -> int:
        if value == 0 and isinstance(value, int):
            return 0  # the default, to be filled in
        try:
            mode = int(value, 8) if isinstance(value, str) else int(value)
        except ValueError:
            mode = 0
        if not 0 < mode <= 0o777:
            raise ValueError("a file mode in octal, such as 0660")
        return mode

    @field_validator("allow_uids", mode="before")
    @classmethod
    def _uids(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        names = [name.strip() for name in value.split(",") if name.strip()]
        return None if "*" in names else frozenset(map(_uid_of, names))

    @field_validator("state", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Path | None:
        if value in (None, "none"):
            return None
        if not value:
            raise ValueError("a directory, or none for memory only")
        return Path(value).absolute()

    @field_validator("alerts", mode="before")
    @classmethod
    def _file(cls, value: Any) -> Path | None:
        return None if value in (None, "", "none") else Path(value).absolute()

    @field_validator("history_url")
    @classmethod
    def _postgres(cls, value: str | None) -> str | None:
        if not value:
            return None
        from orbit_service.history.engines import checked_url

        return checked_url(value).render_as_string(hide_password=False)

    @field_validator("retention", mode="before")
    @classmethod
    def _retention(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            kept = [parse_duration(part) for part in value.split(",")]
        except BadRange as bad:
            raise ValueError(str(bad)) from None
        if len(kept) != len(LEVELS) or kept != sorted(kept) or kept[0] < LEAST_RETENTION_MS:
            raise ValueError(
                "three durations, each at least the one before and the first at least 2h, for "
                "windows of 10 s, 1 min and 1 h, such as 6h,7d,400d"
            )
        return levels(kept)

    @field_validator("socket")
    @classmethod
    def _short_enough(cls, path: Path) -> Path:
        length = len(os.fsencode(path))
        if length > MAX_SOCKET_PATH:
            raise ValueError(f"{length} bytes; a socket's path has at most {MAX_SOCKET_PATH}")
        return path

    @field_validator("http", mode="before")
    @classmethod
    def _address(cls, value: Any) -> Address | None:
        if value is None or isinstance(value, Address):
            return value
        if value in ("", "none"):
            return None
        host, colon, port = str(value).rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65_535:
            raise ValueError("host:port, such as 127.0.0.1:8790, or none")
        return Address((host.strip("[]") or "0.0.0.0", int(port)))  # noqa: S104  # ":8790" means all

    @field_validator("otlp_url")
    @classmethod
    def _reachable(cls, value: str | None) -> str | None:
        if value in (None, "", "none"):
            return None
        wrong = "a URL such as http://collector:4318/v1/metrics"
        try:
            url = urlsplit(str(value))
            _ = url.port, (url.hostname or "").encode("idna")  # each may raise
        except ValueError:  # of which UnicodeError is one
            raise ValueError(wrong) from None
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(wrong)
        if url.username or url.password:
            raise ValueError("no user and password in the URL: send them by ORBIT_OTLP_HEADERS")
        # A bare address means the path that the protocol gives to metrics.
        return urlunsplit(url if url.path.strip("/") else url._replace(path="/v1/metrics"))

    @field_validator("otlp_headers", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """`name=value,name=value`, percent-encoded as OTEL_EXPORTER_OTLP_HEADERS is."""
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if not all(equals and name.strip() for name, equals, _value in pairs):
            raise ValueError("name=value pairs with commas between, such as api-key=abc")
        headers = {name.strip(): unquote(text.strip()) for name, _equals, text in pairs}
        if not all(_TOKEN.fullmatch(name) and text.isprintable() for name, text in headers.items()):
            raise ValueError("a header's name has no spaces, and its value is one line")
        return headers

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return frozenset(part.strip().lower() for part in value.split(",") if part.strip())

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, names: frozenset[str], others: ValidationInfo) -> frozenset[str]:
        if wrong := [name for name in names if not (_HOST.fullmatch(name) or name == ANY)]:
            raise ValueError(f"{wrong[0]!r} is no name of a host, such as metrics.example.com")
        return _with_token(names, others)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: frozenset[str], others: ValidationInfo) -> frozenset[str]:
        if wrong := [
            origin for origin in origins if not (_ORIGIN.fullmatch(origin) or origin == ANY)
        ]:
            raise ValueError(f"{wrong[0]!r} is no origin, such as https://dash.example.com")
        # A browser leaves out the port that the scheme means.
        plain = frozenset(_USUAL_PORT.sub(r"\1\2", origin) for origin in origins)
        return _with_token(plain, others)

    @field_validator("node")
    @classmethod
    def _node_name(cls, value: str) -> str:
        return as_name(value)

    @field_validator("http")
    @classmethod
    def _guarded(cls, address: Address | None, others: ValidationInfo) -> Address | None:
        if address is not None and not address.is_loopback and not _token_given(others):
            raise ValueError(
                f"{address} can be reached from elsewhere: set ORBIT_TOKEN or ORBIT_TOKEN_FILE"
            )
        return address

    @field_validator("token")
    @classmethod
    def _sendable(cls, token: str | None) -> str | None:
        if token is not None and not is_sendable(token):
            raise ValueError("a token of printable ASCII characters")
        return token

    @field_validator("token_file")
    @classmethod
    def _holds_a_token(cls, path: Path | None) -> Path | None:
        if path is not None:
            token = _token_in(path)
            if len(token) < MIN_TOKEN or not is_sendable(token):
                raise ValueError(
                    f"{path} holds a token of at least {MIN_TOKEN} printable ASCII characters"
                )
        return path

    @model_validator(mode="after")
    def _fill_in(self) -> Settings:
        if not self.socket_mode:
            self.socket_mode = 0o600 if self.allow_uids == frozenset() else 0o666
        if self.token is None and self.token_file is not None:
            self.token = _token_in(self.token_file)
        return self


def read_settings(**overrides: Any) -> Settings:
    """The settings of the environment, with what the command line says in place of it.

    Raises BadSettings, which names every problem at once.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as invalid:
        lines = [
            ": ".join(filter(None, [".".join(map(str, problem["loc"])), _plain(problem["msg"])]))
            for problem in invalid.errors(include_url=False, include_context=False)
        ]
        raise BadSettings(problems="\n".join(f"  {line}" for line in lines)) from None


def warnings(settings: Settings, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What is odd and yet no reason not to start, a sentence each.

    An unknown ORBIT_* is among them: Kubernetes puts such names into every pod
    beside a service called orbit, and an error would crash-loop it.
    """
    unknown = [name for name in environ if name.startswith("ORBIT_") and name not in known_names()]
    links = [name for name in unknown if _SERVICE_LINK.fullmatch(name)]
    said = [f"{name} is not a setting; {_nearest(name)}" for name in unknown if name not in links]
    if links:
        said.append(
            f"{len(links)} variables of Kubernetes Services, such as {links[0]}, are no settings; "
            "enableServiceLinks: false keeps them out"
        )
    if settings.metrics_interval < TRYING_OUT_MS:
        said.append(f"METRICS_INTERVAL={settings.metrics_interval} is for trying out")
    return said


def let_sqlite_sort(settings: Settings, environ: MutableMapping[str, str] = os.environ) -> None:
    """Say where SQLite puts what is too much for memory: there may be no /tmp to write to.

    To be called before sqlite3 is imported, which reads it then.
    """
    if settings.state is not None:
        environ.setdefault("SQLITE_TMPDIR", str(settings.state))


def known_names() -> set[str]:
    return ELSEWHERE | {field.alias or "" for field in Settings.model_fields.values()}


def _nearest(name: str) -> str:
    near = get_close_matches(name, known_names(), n=1)
    return f"did you mean {near[0]}?" if near else "it is passed over"


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _token_given(others: ValidationInfo) -> bool:
    # A token that is bad is missing among the others, and named by itself.
    return any(others.data.get(name, "bad") is not None for name in ("token", "token_file"))


def _with_token(allowed: frozenset[str], others: ValidationInfo) -> frozenset[str]:
    if ANY in allowed and not _token_given(others):
        raise ValueError(f"{ANY} lets any web page in: set ORBIT_TOKEN or ORBIT_TOKEN_FILE too")
    return allowed


def _token_in(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None


def _uid_of(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {name!r} here; give a number") from None
