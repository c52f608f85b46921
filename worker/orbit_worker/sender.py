"""
The one thread and the one socket: drain, encode, send, resume.

Everything happens in `step`, which never waits: the thread calls it in its
rhythm, a caller calls it inline when the thread is parked, and flush calls it
from whatever thread is leaving. Who steps holds the lock; the socket is
non-blocking, so the lock is never held for longer than an encoding takes.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from orbit_rpc_schema.wire import (
    HEARTBEAT_SECONDS,
    Json,
    LineDecoder,
    LineTooLong,
    connect_line,
    encode,
    notification,
    request,
)
from orbit_worker.buffer import MAX_OPEN, Buffer

SHARE_SECONDS = 0.05  # how long a result waits for company under load
IDLE_TURNS = 3  # empty turns before the thread parks
FIRST_RETRY = 0.05
LAST_RETRY = 2.0
REFUSED_RETRY = 10.0  # the service said no: a wrong version, a uid that is not admitted
GREETING_SECONDS = 10.0
# A stopped service takes connections and says nothing; it is still there.
READ_BYTES = 65_536

log = logging.getLogger("orbit_worker")

Said = Literal["connected", "refused", "away"]
Control = Callable[[str, "str | None"], "bool | None"]


class State(Enum):
    DOWN = "down"
    GREETING = "greeting"
    READY = "ready"


def wall_clock() -> int:
    return time.time_ns() // 1_000_000


class Sender:
    """Sends one session's buffer to the service.

    `hello` gives the params of worker.connect, `gauges` what else a heartbeat
    tells, `control` obeys worker.control and answers True (done), False
    (refused) or None (unknown).
    """

    def __init__(
        self,
        path: Path,
        buffer: Buffer,
        hello: Callable[[], Json],
        gauges: Callable[[], Json],
        control: Control | None = None,
    ) -> None:
        # True while no thread is about to look at the buffer: a caller has to.
        self.parked = True
        self.ever_connected = False
        self._path = path
        self._buffer = buffer
        self._hello = hello
        self._gauges = gauges
        self._control = control
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake_in, self._wake_out = -1, -1
        self._stopping = False
        self._state = State.DOWN
        self._socket: socket.socket | None = None
        self._lines = LineDecoder()
        self._position = 0  # the number of the last message that is wholly on this connection
        self._line = memoryview(b"")  # the rest of the message under way
        self._in_step = False
        self._calls: dict[str, Json | None] = {}
        self._call_lines: list[bytes] = []
        self._controls: list[Json] = []
        self._retry_at = 0.0
        self._retry_after = FIRST_RETRY
        self._greeting_until = 0.0
        self._beat_at = 0.0
        self._inline_at = 0.0
        self._said: Said | None = None

    # ------------------------------------------------------------ callers

    def nudge(self) -> None:
        """Something was appended while the thread is parked: send it, or wake the thread.

        Or more was appended than the thread keeps up with: form one message of it here.
        """
        while self._buffer.open and not self._lock.locked():
            if not self.parked and len(self._buffer.open) <= MAX_OPEN:
                return
            # Only tried, in effect: who holds it meanwhile does no waiting under it.
            with self._lock:
                self._nudge_locked()

    def _nudge_locked(self) -> None:
        now = time.monotonic()
        if not self.parked or self._stopping:
            self._buffer.form_one(wall_clock())
        elif self._state is State.READY and now >= self._inline_at + SHARE_SECONDS:
            self._inline_at = now
            self._step(now)
        else:
            self._wake()

    def start(self) -> None:
        """Connect and keep the heartbeat, with nothing to send yet."""
        with self._lock:
            self._wake()

    def flush(self, timeout: float) -> bool:
        """Send until everything is acknowledged; False when the time is up before."""
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                self._step(time.monotonic())
                done = self._buffer.empty
                connection = self._socket
            remaining = deadline - time.monotonic()
            if done or remaining <= 0:
                self.nudge()  # for whoever found the lock taken
                return done
            self._wait(connection, min(remaining, 0.02))

    def call(self, method: str, params: Mapping[str, Any], timeout: float) -> Json | None:
        """A call on the session's own connection, after all that was recorded before.

        None when there was no answer in time.
        """
        deadline = time.monotonic() + timeout
        if not self.flush(timeout):
            return None
        id = os.urandom(8).hex()
        with self._lock:
            self._calls[id] = None
            self._call_lines.append(encode(request(id, method, params)))
        try:
            while self._calls[id] is None:
                with self._lock:
                    self._step(time.monotonic())
                    connection = self._socket
                remaining = deadline - time.monotonic()
                if remaining <= 0 or connection is None:
                    break
                if self._calls[id] is None:
                    self._wait(connection, min(remaining, 0.02))
        finally:
            answer = self._calls.pop(id)
        return answer

    def close(self, timeout: float, reason: str) -> bool:
        """Flush, say goodbye and stop; what flush said. Without ever connecting: nothing."""
        flushed = self._buffer.empty or (self._reaches_out() and self.flush(timeout))
        with self._lock:
            self._stopping = True
            self._wake()
            if self._state is State.READY and not self._line and not self._in_step:
                self._in_step = True
                try:
                    self._send(encode(notification("worker.disconnect", {"reason": reason})))
                except OSError as error:
                    _pass_on(error)  # else: the service went first
                self._in_step = False
            self._drop_connection()
            self.parked = True
        return flushed

    def _reaches_out(self) -> bool:
        """True once connected; a process that ends before its first try makes it now."""
        if self.ever_connected:
            return True
        with self._lock:
            first_try = self._said is None
            self._step(time.monotonic())
            return first_try and self._state is not State.DOWN

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent, without a word on the wire."""
        if self._socket is not None:
            self._socket.close()
        for descriptor in (self._wake_in, self._wake_out):
            if descriptor >= 0:
                os.close(descriptor)

    # ------------------------------------------------------------ the thread

    def _wake(self) -> None:
        """Make sure that the thread looks at the buffer. Called under the lock.

        `parked` changes last: after an exception in between, the next caller tries again.
        """
        if self._thread is not None and self._thread.is_alive():
            try:
                os.write(self._wake_out, b"\0")
            except BlockingIOError:
                pass  # the pipe is full: it is awake
            self.parked = False
            return
        if self._stopping:
            self.parked = True  # nobody else will look: each caller does
            return
        if self._wake_in < 0:
            self._wake_in, self._wake_out = os.pipe()
            os.set_blocking(self._wake_in, False)
            os.set_blocking(self._wake_out, False)
        thread = threading.Thread(target=self._run, name="orbit-worker", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            pass  # the interpreter is leaving; flush at exit does the work
        self.parked = False

    def _run(self) -> None:
        idle = 0
        while not self._stopping and self._thread is threading.current_thread():
            try:
                idle, timeout = self._turn(idle)
                self._obey_all()
                # Between turns under load an acknowledgement is no reason to wake:
                # it would make each message as small as the answer is quick.
                listen = self.parked or self._line or self._state is State.GREETING
                self._wait(self._socket if listen else None, timeout, woken=self.parked)
            except Exception:
                # Ours to mend, and no reason to leave the host without its metrics.
                log.exception("the sender failed; it goes on with a new connection")
                with self._lock:
                    self._lost(time.monotonic(), "an internal error")
                time.sleep(LAST_RETRY)

    def _turn(self, idle: int) -> tuple[int, float]:
        """One look at the buffer; how many were empty, and how long to wait until the next."""
        with self._lock:
            now = time.monotonic()
            had_work = bool(self._buffer.open)
            self._step(now)
            idle = 0 if had_work else idle + 1
            if idle < IDLE_TURNS:
                return idle, SHARE_SECONDS
            self.parked = True
        if self._buffer.open:
            # Appended by somebody who saw that the thread was awake.
            self.parked = False
            return 0, 0.0
        return idle, max(self._due_in(time.monotonic()), 0.0)

    def _due_in(self, now: float) -> float:
        match self._state:
            case State.READY:
                return self._beat_at - now
            case State.GREETING:
                return self._greeting_until - now
            case State.DOWN:
                return self._retry_at - now

    def _wait(self, connection: socket.socket | None, timeout: float, woken: bool = False) -> None:
        """Wait for the socket, for a wake-up where that is wanted, or for the time."""
        poll = select.poll()
        if woken and self._wake_in >= 0:
            poll.register(self._wake_in, select.POLLIN)
        if connection is not None and connection.fileno() >= 0:
            events = select.POLLIN | (select.POLLOUT if self._line else 0)
            poll.register(connection, events)
        ready = poll.poll(timeout * 1000)
        if woken and any(descriptor == self._wake_in for descriptor, _event in ready):
            os.read(self._wake_in, 4096)

    # ------------------------------------------------------------ one step, under the lock

    def _step(self, now: float) -> None:
        if self._in_step:
            # An exception from a signal handler cut a step short. What went out and
            # what was read is unknown; on a new connection the numbers tell.
            self._drop_connection()
        self._in_step = True
        self._buffer.form_all(wall_clock())
        if self._state is State.DOWN and now >= self._retry_at:
            self._connect(now)
        if self._socket is not None:
            self._receive(now)
        if self._state is State.GREETING and now >= self._greeting_until:
            self._lost(now, "it takes the connection and does not answer")
        if self._state is State.READY:
            self._transmit(now)
        self._in_step = False

    def _connect(self, now: float) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(str(self._path))
        except OSError as error:
            connection.close()
            _pass_on(error)
            self._lost(now, error.strerror or str(error))
            return
        self._socket = connection
        self._lines = LineDecoder()
        self._state = State.GREETING
        self._greeting_until = now + GREETING_SECONDS
        self._line = memoryview(connect_line("hello", self._hello()))
        self._send_rest(now)

    def _receive(self, now: float) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            _pass_on(error)
            self._lost(now, error.strerror or str(error))
            return
        for line in self._lines.feed(data):
            message = None if isinstance(line, LineTooLong) else _decoded(line)
            if message is None:
                self._lost(now, "what answers there is another program", retry=REFUSED_RETRY)
                return
            self._take(message, now)
        if not data:
            self._lost(now, "it closed the connection")

    def _take(self, message: Json, now: float) -> None:
        if message.get("method") == "runs.acked":
            self._buffer.acknowledge(message["params"]["seq"])
        elif message.get("method") == "worker.control":
            self._controls.append(message["params"])
            self._wake()
        elif message.get("id") == "hello" and "result" in message:
            self._greeted(message["result"], now)
        elif message.get("id") in self._calls:
            self._calls[message["id"]] = message
        elif "error" in message:
            said = message["error"].get("message", "an error")
            if self._state is State.GREETING:
                self._lost(now, f"it refuses: {said}", retry=REFUSED_RETRY)
            else:
                self._say("refused", f"the metrics service refused a message: {said}")

    def _greeted(self, answer: Json, now: float) -> None:
        self._state = State.READY
        self.ever_connected = True
        self._buffer.resume(answer["acked"])
        self._position = answer["acked"]
        self._retry_after = FIRST_RETRY
        self._beat_at = now
        self._say("connected", f"connected to the metrics service at {self._path}")

    def _transmit(self, now: float) -> None:
        if now >= self._beat_at:
            self._beat_at = now + HEARTBEAT_SECONDS
            self._buffer.beat(cpu_seconds(), rss_bytes(), **self._gauges())
        self._send_rest(now)
        while self._state is State.READY and not self._line:
            message = self._buffer.after(self._position)
            if message is not None:
                # A cut connection forgets the position, so it may run ahead of the socket.
                self._position = message.seq
                self._line = memoryview(message.line)
            elif self._call_lines:
                self._line = memoryview(self._call_lines.pop(0))
            else:
                return
            self._send_rest(now)

    def _send_rest(self, now: float) -> None:
        while self._line and self._socket is not None:
            try:
                sent = self._send(self._line)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                _pass_on(error)
                # What the service wrote before it went is still to be read.
                self._lost(now, error.strerror or str(error))
                return
            self._line = self._line[sent:]

    def _send(self, data: memoryview | bytes) -> int:
        assert self._socket is not None
        return self._socket.send(data, getattr(socket, "MSG_NOSIGNAL", 0))

    def _lost(self, now: float, why: str, retry: float | None = None) -> None:
        self._drop_connection()
        self._retry_at = now + (retry or self._retry_after)
        self._retry_after = min(self._retry_after * 2, LAST_RETRY)
        self._say("away", f"no metrics service at {self._path} ({why}); runs wait here")

    def _drop_connection(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._state = State.DOWN
        self._line = memoryview(b"")
        self._call_lines.clear()

    def _obey_all(self) -> None:
        """worker.control: the host's code, so in the sender's own thread and outside the lock."""
        while self._controls:
            params = self._controls.pop(0)
            outcome = self._outcome(str(params.get("action")), params.get("pipeline"))
            answer = {"id": str(params.get("id")), "outcome": outcome}
            with self._lock:
                self._call_lines.append(encode(notification("worker.controlled", answer)))
                self._step(time.monotonic())

    def _outcome(self, action: str, pipeline: str | None) -> str:
        if self._control is None:
            return "unknown"
        try:
            done = self._control(action, pipeline)
        except Exception:
            log.exception("the control callback failed")
            return "refused"
        return "unknown" if done is None else "done" if done else "refused"

    def _say(self, state: Said, text: str) -> None:
        """One line a change of state, however often it is tried."""
        if state != self._said:
            self._said = state
            log.log(logging.INFO if state == "connected" else logging.WARNING, "%s", text)


def _decoded(line: bytes) -> Json | None:
    """One JSON object; None for anything else."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _pass_on(error: OSError) -> None:
    """Raise a TimeoutError of the host's signal handler: the system's own have a number."""
    if error.errno is None and type(error) is not OSError:
        raise error


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_bytes() -> int:
    """Resident memory now; where the system does not tell, its peak."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123  # a third of the cost
            return int(statm.read().split()[1]) * resource.getpagesize()
    except (FileNotFoundError, PermissionError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
