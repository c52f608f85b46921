"""
The way out: an address and a message become a mail, a post to a chat, a call of a webhook.

Apprise does it, for a hundred services. Its log and its errors quote addresses, and these
hold passwords and tokens: nothing of them leaves this file. Of why a message was not sent
only what is known to hold no secret is said, a status or an error of the system.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from loguru import logger

from orbit_service.alerts.messages import Message
from orbit_service.alerts.rules import LOG
from orbit_service.notify import render

if TYPE_CHECKING:
    from apprise import AppriseAsset, NotifyBase

CONNECT_SECONDS = 10.0
READ_SECONDS = 15.0  # Apprise's four are too few: what comes later is sent a second time
LOUDNESS = {"info": "INFO", "success": "INFO", "warning": "WARNING", "failure": "ERROR"}
SLACK_ROOM = 3_000  # characters; docs.slack.dev/reference/block-kit/blocks/section-block
# As Apprise calls what mentions nobody, where a name is to stay as it is.
QUIET = ("mailto", "json", "form", "xml")


class NotSent(Exception):
    """The receiver did not take it, or is away; the text says why, and holds no secret."""


class Courier(Protocol):
    def send(self, address: str, message: Message) -> None:
        """Send it, in the calling thread. Raises NotSent."""
        ...


class AppriseCourier:
    """Sends by Apprise, which is imported late: 0.2 s, and 16 MiB beside the rest of us."""

    def send(self, address: str, message: Message) -> None:
        if _scheme(address) == _scheme(LOG):
            _log(message)
            return
        with _Heard() as heard:
            # Apprise raises what the libraries beneath it raise, and these quote addresses.
            try:
                service = _service(address)
                sent = service is not None and _send(service, message)
            except Exception as error:  # noqa: BLE001
                raise NotSent(f"it failed with {type(error).__name__}") from None
        if service is None:
            raise NotSent(_unusable(address))
        if not sent:
            raise NotSent(heard.why or f"{service.service_name} is away, or did not take it")


def check(address: str) -> str | None:
    """Why nothing can be sent to the address, without what is in it; or None."""
    if _scheme(address) == _scheme(LOG):
        return None
    with _Heard():
        try:
            service = _service(address)
        except Exception as error:  # noqa: BLE001  # it quotes the address
            return f"it cannot be read ({type(error).__name__})"
    return _unusable(address) if service is None else None


def _scheme(address: str) -> str:
    return address.partition("://")[0].lower()


def _log(message: Message) -> None:
    for level, line in render.log_lines(message):
        logger.log(LOUDNESS[level], "{}", line)


# ---------------------------------------------------------------- services


def _service(address: str) -> NotifyBase | None:
    from apprise import Apprise, AppriseAsset

    # It would keep a folder of its own. Icons are not ours, and are read from its makers'.
    asset = AppriseAsset(storage_mode="memory", image_path_mask=False, service_timeout=0)
    asset.async_mode = False  # it and a timeout of its own would have threads of its own
    asset.image_url_mask = asset.image_url_logo = ""
    asset.app_id = asset.app_desc = "Orbit Metrics"
    asset.app_url = ""
    # A POST that is sent elsewhere becomes a GET, of which the answer means nothing.
    asset.http_redirects = False
    # An address such as https://hooks.slack.com/... it knows for what it is.
    service = Apprise.instantiate(address, asset=asset)
    if service is None and _scheme(address) in ("http", "https"):
        service = _webhook(address, asset)
    if service is not None:
        if service.socket_connect_timeout == type(service).socket_connect_timeout:
            service.socket_connect_timeout = CONNECT_SECONDS
        if service.socket_read_timeout == type(service).socket_read_timeout:
            service.socket_read_timeout = READ_SECONDS
    return service


def _webhook(address: str, asset: AppriseAsset) -> NotifyBase | None:
    """Any other address of the web; its path and query are passed on as they stand."""
    from apprise.plugins.custom_json import NotifyJSON

    parts = urlsplit(address)
    if not parts.hostname or parts.port == 0:  # which raises for what is no number
        return None
    make: Any = NotifyJSON  # it has no types
    service: NotifyBase = make(
        secure=parts.scheme.lower() == "https",
        host=parts.netloc.rpartition("@")[2],
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        fullpath=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        payload={"version": "", "message": "", "attachments": ""},  # left out
        asset=asset,
    )
    return service


def _send(service: NotifyBase, message: Message) -> bool:
    from apprise import Apprise, NotifyFormat, NotifyType, OverflowMode
    from apprise.plugins.custom_json import NotifyJSON
    from apprise.plugins.slack import NotifySlack

    kind = NotifyType(render.level(message))
    made: Any = service
    if isinstance(getattr(service, "headers", None), dict):  # of a mail, or of a call
        made.headers["X-Orbit-Key"] = _in_header(message.key)
    if isinstance(service, NotifySlack):
        body = render.text(message, render.MRKDWN, SLACK_ROOM, titled=render.TITLE_ROOM)
        # Not notify(): to it mrkdwn is Markdown, of which it escapes what is escaped already.
        return bool(
            made.send(
                body=body,
                title=render.title(message, render.SLACK_TITLE),
                notify_type=kind,
                body_format=NotifyFormat.MARKDOWN,
                body_passthrough=False,
            )
        )
    if isinstance(service, NotifyJSON):
        made.headers["Idempotency-Key"] = _in_header(message.key)
        made.payload_extras = {**render.payload(message), **made.payload_extras}
    quiet = made.protocol in QUIET
    style = render.PLAIN if quiet else render.CHAT
    title_room = min(service.title_maxlen or render.TITLE_ROOM, render.TITLE_ROOM)
    title = render.title(message, style, title_room)
    room = service.body_maxlen - (0 if service.title_maxlen else len(title) + 2)
    body = render.text(
        message, style, min(room, render.BODY_ROOM), titled=0 if quiet else title_room
    )
    service.overflow_mode = OverflowMode.TRUNCATE  # of what is longer once it is escaped
    service.optional = False  # a receiver that is away is a failure, whatever the address says
    # Said to be plain, a text is escaped where a service takes HTML or Markdown; by all of
    # Apprise, for service.notify() alone leaves some as they are. One service is called in
    # this thread.
    apprise = Apprise(asset=service.asset)
    apprise.add(service)
    return bool(
        apprise.notify(title=title, body=body, notify_type=kind, body_format=NotifyFormat.TEXT)
    )


def _in_header(key: str) -> str:
    return re.sub(r"[^\x21-\x7e]", "-", key)[: render.NAME_ROOM]


# ---------------------------------------------------------------- reasons


class _Heard:
    """Listens to what Apprise logs of a thread's sending, of which no more is heard."""

    def __init__(self) -> None:
        self.why = ""

    def __enter__(self) -> _Heard:
        _listen()
        _ears.heard = self
        return self

    def __exit__(self, *_error: object) -> None:
        _ears.heard = None

    def hear(self, text: str) -> None:
        self.why = reason(text) or self.why


class _Ear(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        heard = getattr(_ears, "heard", None)
        if heard is not None:
            heard.hear(record.getMessage())


_ears = threading.local()
_ear = _Ear()


def _listen() -> None:
    """Keep both logs from whoever else listens; urllib3's has the paths of what is called."""
    for name in ("apprise", "urllib3"):
        log = logging.getLogger(name)
        log.propagate = False
        log.handlers = [_ear]
    # The errors that say why are told at this level.
    logging.getLogger("apprise").setLevel(logging.DEBUG)
    logging.getLogger("urllib3").setLevel(logging.WARNING)


def reason(text: str) -> str:
    """What a line of Apprise's log says of why, in words that come from no address."""
    if text.startswith("Response Details"):
        return ""  # these are the receiver's own words
    if found := re.search(r"\berror=(\d{3})\b", text):
        return _status(int(found[1]))
    if "certificate verify failed" in text:
        return "its certificate is not to be trusted"
    if found := re.search(r"\[Errno (-?\d+)\]", text):
        return _of_the_system(int(found[1]))
    if "timed out" in text:
        return "it did not answer in time"
    if found := re.search(r"(?:Exception: |: |refused: )\(?(\d{3})(?:, b['\"]| )", text):
        return f"the mail server answered {found[1]}"
    return ""


def _status(code: int) -> str:
    try:
        return f"HTTP {code} {HTTPStatus(code).phrase}"
    except ValueError:
        return f"HTTP {code}"


def _of_the_system(number: int) -> str:
    if number < 0:  # of the look-up of names; its texts are not in os
        return "its host name cannot be found"
    return os.strerror(number)


def _unusable(address: str) -> str:
    """Why there is no service for the address."""
    from apprise.plugins import N_MGR

    scheme = _scheme(address)
    if scheme not in N_MGR:
        return "no service is called by such an address; see appriseit.com/services"
    plugin = N_MGR[scheme]
    return f"its parts make no address of {plugin.service_name}; see {plugin.setup_url}"
