"""The courier: mail, chats, webhooks and the log, and what it keeps to itself."""

from __future__ import annotations

import logging
import socket
import threading

import pytest
from apprise.plugins.slack import NotifySlack
from apprise.plugins.telegram import NotifyTelegram

from builders import a_message, an_item
from orbit_service.notify.courier import AppriseCourier, NotSent, check, reason

SECRET = "T0PSECRET"
BAD_NAME = "x\r\nBcc: all@example.com\r\n\r\n<b>@everyone</b> <!channel>"
# One for each place where an address holds what is secret; nobody listens there.
WITH_SECRETS = [
    f"mailto://user:{SECRET}@127.0.0.1:9?from=a@example.com&to=b@example.com",
    f"mailtos://127.0.0.1:9?user={SECRET}&pass={SECRET}&to=b@example.com&mode=ssl",
    f"json://user:{SECRET}@127.0.0.1:9/{SECRET}/?+Authorization={SECRET}&-token={SECRET}",
    f"http://user:{SECRET}@127.0.0.1:9/{SECRET}?token={SECRET}",
    f"https://127.0.0.1:9/{SECRET}",
    f"https://{SECRET}:x@[::1]:9/%54{SECRET}",
    f"http://{SECRET}.invalid/",
    f"http://{SECRET}:port/",
    f"http://[{SECRET}/",
    f"slack://{SECRET}/bad",
    f"nosuch://{SECRET}:{SECRET}@{SECRET}/{SECRET}",
    f"{SECRET}",
    f"ntfy://user:{SECRET}@127.0.0.1:9/{SECRET}",
    f"gotify://127.0.0.1:9/{SECRET}",
    f"mmost://127.0.0.1:9/{SECRET}{SECRET}",
    f"form://127.0.0.1:9/{SECRET}?:{SECRET}={SECRET}",
    f"xml://127.0.0.1:9/{SECRET}",
]


# ---------------------------------------------------------------- mail


async def test_a_mail_says_it_all_in_plain_text(send, postbox):
    item = an_item(error_type="KeyError", error="'id'", link="https://orbit.example/#a")
    await send(f"mailto://{postbox.address}?from=a@example.com&to=b@example.com", a_message(item))

    [mail] = postbox.mails
    assert mail["Subject"] == "Firing (critical): census: error rate over 5m is 40 %, above 10 %"
    assert mail["X-Orbit-Key"] == "k-1"
    body = mail.get_body(("plain",)).get_content()
    for said in (item.summary, "pipeline: census", "KeyError: 'id'", item.link, "Key: k-1"):
        assert said in body


@pytest.mark.parametrize("format", ["text", "html"])
async def test_a_hostile_name_adds_no_header_and_no_markup_to_a_mail(send, postbox, format):
    item = an_item(summary=BAD_NAME, labels={"pipeline": BAD_NAME}, error=BAD_NAME)
    message = a_message(item, key=f"k-1{BAD_NAME}", node=BAD_NAME)
    address = f"mailto://{postbox.address}?from=a@example.com&to=b@example.com&format={format}"
    await send(address, message)

    [mail] = postbox.mails
    assert mail["Bcc"] is None
    assert "Bcc: all@example.com <b>@everyone</b>" in mail["Subject"]
    if format == "html":
        assert "<b>@everyone" not in mail.get_body(("html",)).get_content()


async def test_a_mail_that_is_refused_says_with_what(send, postbox):
    postbox.refuse = f"554 we do not want {SECRET}"

    with pytest.raises(NotSent, match="the mail server answered 554"):
        await send(f"mailto://{postbox.address}?from=a@b.example&to=b@b.example", a_message())


# ---------------------------------------------------------------- webhooks


async def test_a_webhook_gets_json_and_the_key(send, receiver):
    await send(f"http://{receiver.address}/hook%2Fa?token=1&token=2", a_message(an_item()))

    [request], [body] = receiver.requests, receiver.bodies
    assert request.raw_path == "/hook%2Fa?token=1&token=2"
    assert (request.headers["X-Orbit-Key"], request.headers["Idempotency-Key"]) == ("k-1", "k-1")
    assert request.headers["Content-Type"] == "application/json"
    assert body.keys() == {
        "key",
        "at",
        "node",
        "test",
        "title",
        "text",
        "type",
        "alerts",
        "more",
        "heldBack",
    }
    assert body["alerts"][0]["labels"] == {"pipeline": "census"}
    assert body["type"] == "failure"


async def test_a_webhook_is_told_who_calls(send, receiver):
    await send(f"http://anna:p%40ss@{receiver.address}/", a_message(test=True))

    assert receiver.requests[0].headers["Authorization"] == "Basic YW5uYTpwQHNz"


async def test_a_json_address_is_as_apprise_knows_it_with_all_that_a_webhook_gets(send, receiver):
    address = f"json://{receiver.address}/hook?+X-Mine=1&:team=data&:title=subject"
    await send(address, a_message(an_item()))

    [request], [body] = receiver.requests, receiver.bodies
    assert request.headers["X-Mine"] == "1"
    assert request.headers["X-Orbit-Key"] == "k-1"
    assert (body["team"], body["version"], body["type"]) == ("data", "1.0", "failure")
    assert body["message"] == body["text"]
    assert body["subject"].startswith("Firing (critical)")
    assert body["alerts"][0]["id"] == "a1"


async def test_a_hostile_name_reaches_a_webhook_as_it_is(send, receiver):
    await send(f"http://{receiver.address}/", a_message(an_item(error=BAD_NAME), key="k\r\nX: 1"))

    assert receiver.bodies[0]["alerts"][0]["error"]["message"] == BAD_NAME
    assert receiver.requests[0].headers["X-Orbit-Key"] == "k--X:-1"


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (500, "HTTP 500 Internal Server Error"),
        (401, "HTTP 401 Unauthorized"),
        (302, "HTTP 302 Found"),
        (599, "HTTP 599"),
    ],
)
async def test_what_a_receiver_answers_is_why_it_was_not_sent(send, receiver, status, why):
    receiver.statuses = [status]

    with pytest.raises(NotSent) as refused:
        await send(f"http://{receiver.address}/", a_message(an_item()))
    assert str(refused.value) == why
    assert len(receiver.requests) == 1  # the courier does not try again, that is delivery's


# ---------------------------------------------------------------- chats


@pytest.fixture
def slack(receiver, monkeypatch) -> str:
    # Slack's own server is the only one that the plugin knows.
    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://{receiver.address}/services")
    return "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"


@pytest.mark.parametrize("blocks", ["no", "yes"])
async def test_slack_gets_its_markup_and_a_hostile_name_is_none(send, receiver, slack, blocks):
    hostile = "<!channel> <@U1> @here & <https://evil.example|bank>"
    items = [an_item(summary=hostile, error=hostile), an_item(summary="and *this*")]
    await send(f"{slack}?blocks={blocks}", a_message(*items, node=hostile))

    [body] = receiver.bodies
    said = str(body)
    assert "Firing (critical): and *this*" in said
    assert "*Firing (critical): &lt;!channel&gt; &lt;@" in said
    assert "amp;lt;" not in said  # escaped once
    for mention in ("<", "@U1", "@here"):
        assert mention not in said
    assert "Key: k-1" in said


async def test_slacks_own_address_goes_the_way_of_slack(send, receiver, slack):
    tokens = slack.removeprefix("slack://")
    await send(f"https://hooks.slack.com/services/{tokens}", a_message(an_item()))

    assert receiver.requests[0].path == f"/services/{tokens}"
    assert "attachments" in receiver.bodies[0]


async def test_a_hostile_name_mentions_nobody_in_another_chat(send, receiver):
    item = an_item(summary="@all @channel", error="[bank](https://evil.example)")
    await send(f"mmost://{receiver.address}/3ccdd113474722377935511fc85d3dd4", a_message(item))

    said = receiver.bodies[0]["text"]
    assert "@all" not in said
    assert "@channel" not in said
    assert "](" not in said


async def test_telegram_gets_html_and_a_hostile_name_is_none(send, receiver, monkeypatch):
    # Telegram's own server is the only one that the plugin knows.
    monkeypatch.setattr(NotifyTelegram, "notify_url", f"http://{receiver.address}/bot")
    item = an_item(summary="<b>x</b> & <a href='https://evil.example'>bank</a>")
    await send("tgram://123456789:abcdefg_hijklmnop/12315544/", a_message(item))

    [body] = receiver.bodies
    assert body["parse_mode"] == "HTML"
    assert "&lt;" in body["text"]
    assert "<a" not in body["text"]
    assert "<b>x" not in body["text"]
    assert "Key: k-1" in body["text"]


# ---------------------------------------------------------------- the log


@pytest.mark.parametrize(
    ("item", "level"),
    [
        (an_item(), "ERROR"),
        (an_item(severity="warning"), "WARNING"),
        (an_item(severity="info"), "INFO"),
        (an_item(saying="resolved"), "INFO"),
    ],
)
def test_the_log_is_a_channel_that_needs_nothing(logged, item, level):
    AppriseCourier().send("log://", a_message(item))

    [line] = logged
    assert line.startswith(f"{level} {item.saying.capitalize()} (")


def test_a_name_in_the_log_is_one_line_and_no_format(logged):
    AppriseCourier().send("log://", a_message(an_item(summary="{message} <red>\n{0}")))

    assert "{message} <red> {0}; Rule" in logged[0]


# ---------------------------------------------------------------- addresses and secrets


@pytest.mark.parametrize(
    "address",
    [
        "log://",
        "mailto://user:pw@example.com",
        "json://localhost/x",
        "https://example.com/hook",
        "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
    ],
)
def test_an_address_that_can_be_sent_to_is_one(address):
    assert check(address) is None


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nosuch://x", "no service is called by such an address"),
        ("slack://bad", "its parts make no address of Slack; see https://appriseit.com/"),
        ("https:///x", "no service is called by such an address"),
    ],
)
def test_an_address_that_cannot_says_what_is_wrong(address, why):
    assert why in check(address)

    with pytest.raises(NotSent, match=why):
        AppriseCourier().send(address, a_message(test=True))


@pytest.mark.parametrize("address", ["https://[x/", "http://host:port/"])
def test_an_address_that_cannot_be_read_is_none(address):
    assert check(address) == "it cannot be read (ValueError)"


@pytest.mark.parametrize("address", WITH_SECRETS)
def test_a_secret_is_neither_logged_nor_raised(address, logged, caplog, capfd):
    caplog.set_level(0)
    logging.getLogger().setLevel(0)
    with pytest.raises(NotSent) as refused:
        AppriseCourier().send(address, a_message(an_item()))

    error = refused.value
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    told = [str(error), repr(error), str(check(address)), *logged, caplog.text, *capfd.readouterr()]
    assert SECRET not in "\n".join(told)
    assert str(error)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Failed to send JSON POST notification: Not Found, error=404.", "HTTP 404 Not Found"),
        ("Socket Exception: [Errno 111] Connection refused", "Connection refused"),
        (
            "Socket Exception: Failed to resolve 'pw' ([Errno -2] Name or service not known)",
            "its host name cannot be found",
        ),
        (
            "Socket Exception: (535, b'5.7.8 Error: pw')",
            "the mail server answered 535",
        ),
        ("SMTP recipient a@b was refused: 550 no pw", "the mail server answered 550"),
        ("Socket Exception: HTTPConnectionPool: Read timed out. pw", "it did not answer in time"),
        (
            "Socket Exception: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: pw",
            "its certificate is not to be trusted",
        ),
        ("Response Details:\r\nb'error=500 pw'", ""),
        ("Loaded JSON URL: json://pw", ""),
    ],
)
def test_of_what_apprise_logs_only_the_reason_is_said(line, why):
    assert reason(line) == why


def test_two_threads_hear_each_their_own_reason():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.listen()
        port = silent.getsockname()[1]
        heard = {}

        def call(address):
            try:
                AppriseCourier().send(address, a_message(an_item()))
            except NotSent as error:
                heard[address] = str(error)

        slow, gone = f"json://127.0.0.1:{port}?rto=0.3", "json://127.0.0.1:9"
        threads = [threading.Thread(target=call, args=(address,)) for address in (slow, gone)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert heard == {slow: "it did not answer in time", gone: "Connection refused"}
