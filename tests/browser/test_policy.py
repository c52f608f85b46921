"""What the page's policy allows in a real browser, whatever its script may come to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

ATTACKS = {
    "markup from a text": "document.body.innerHTML = '<img src=x onerror=alert(1)>'",
    "code from a text": "new Function('alert(1)')()",
    "a script in the page": "put('script', 'textContent', 'alert(1)')",
    "a script from elsewhere": "put('script', 'src', elsewhere)",
    "a style from elsewhere": "const l = document.createElement('link'); l.rel = 'stylesheet';"
    "l.href = elsewhere; document.head.append(l)",
    "an image from elsewhere": "put('img', 'src', elsewhere)",
    "a page within": "put('iframe', 'src', elsewhere)",
    "a call elsewhere": "fetch(elsewhere).catch(() => {})",
    "a form sent elsewhere": "put('form', 'action', elsewhere).submit()",
    "a base elsewhere": "put('base', 'href', elsewhere)",
}
# Later, when it is the page's own doing: what a test evaluates is above the policy.
ATTACK = """(elsewhere) => {
    const put = (name, property, value) => {
        const made = document.createElement(name);
        made[property] = value;
        document.body.append(made);
        return made;
    };
    setTimeout(() => { %s }, 0);
}"""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of somebody who is told nothing.

    Chromium opens a connection to where it may go next before it asks the policy whether it may.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        listener.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                connection, _address = listener.accept()
                with connection:
                    connection.settimeout(20)  # it ends with the visitor, who has left
                    assert connection.recv(1) == b""


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_the_pages_own_is_stopped(elsewhere, quiet, visit, attack):
    visitor = visit(quiet)
    page = visitor.open()

    with page.expect_console_message(lambda message: message.text.startswith("policy: ")):
        page.evaluate(ATTACK % ATTACKS[attack], elsewhere)

    # All but a dialog is how the browser says that it was stopped.
    visitor.forgive("error: ", "warning: ", "raised: ", "reached out to ")


def test_the_page_may_listen_to_its_own_service(quiet, visit):
    page = visit(quiet).open()

    selected = page.evaluate(
        """() => new Promise((settle) => {
            const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws",
                ["orbit-metrics.v1"]);
            socket.onopen = () => settle(socket.protocol);
            socket.onerror = () => settle("refused");
        })"""
    )

    assert selected == "orbit-metrics.v1"
