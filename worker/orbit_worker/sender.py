"""
The one thread and the one socket: drain, encode, send, resume.

Callers append to the buffer and wake the thread when it is parked; everything
else is done by the thread, so that what interrupts a caller (frameworks raise
their time limits from signal handlers) finds nothing half done. Who waits for
something leaves a Waiter, which the thread releases. Where no thread can be had
(while the interpreter leaves, at a limit of the system) whoever waits takes the
steps itself; the lock keeps steps apart.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

# Eventlet puts another in the place of os.write, which waits first, and raises
# where two of its threads wait: callers are to do neither.
from posix import write
from typing import TYPE_CHECKING, Any, Literal

from orbit_rpc_schema.wire import (
    HEARTBEAT_SECONDS,
    Json,
    connect_line,
    encode,
    notification,
    request,
)
from orbit_worker.buffer import MAX_OPEN, Buffer
from orbit_worker.connection import Connection, Foreign, Gone, wait
from orbit_worker.host import Control, HostCalls, QueueDepths
from orbit_worker.process import cpu_seconds, rss_bytes

if TYPE_CHECKING:
    from orbit_worker.adoption import Adopter
    from orbit_worker.spool import Spool

SHARE_SECONDS = 0.05  # how long a result waits for company under load
READ_SECONDS = 0.2  # how long what the service says may lie under load, when nobody waits for it
IDLE_TURNS = 3  # empty turns before the thread parks
FIRST_RETRY = 0.05
LAST_RETRY = 2.0
START_RETRY = 1.0  # of the thread
REFUSED_RETRY = 10.0  # the service said no: a wrong version, a uid that is not admitted
# A stopped service takes connections and says nothing; it is still there.
GREETING_SECONDS = 10.0
DEPTHS_SECONDS = 1.0  # how long a heartbeat waits for the host's queue depths
LOCK_SECONDS = 0.5  # how long a flush waits for a step to end
ROOM_SECONDS = 1.0  # how long a flood waits for the thread, once, before results are dropped

log = logging.getLogger("orbit_worker")

Said = Literal["connected", "refused", "away"]


class Refusal(Exception):
    """The service answers, and takes no messages of ours; the text says why."""


class State(Enum):
    DOWN = "down"
    GREETING = "greeting"
    READY = "ready"


def wall_clock() -> int:
    return time.time_ns() // 1_000_000


class Waiter:
    """Somebody who waits until a condition holds; whoever steps looks at it."""

    def __init__(self, until: Callable[[], bool]) -> None:
        self.done = False
        self._until = until
        self._lock = threading.Lock()
        self._lock.acquire()

    def look(self) -> None:
        if not self.done and self._until():
            self.done = True
            self._lock.release()

    def wait(self, seconds: float) -> None:
        if not self.done:
            self._lock.acquire(timeout=max(seconds, 0.0))


class Sender:
    """Sends one session's buffer to the service.

    `hello` gives the params of worker.connect, `last_report` the time of the last
    periodic report for the heartbeat; `queue_depths` and `control` are the host's
    callbacks, see HostCalls. With a `spool`, messages are on the disk before they are
    sent, and the `adopter` sends what ended processes have left there.
    """

    def __init__(
        self,
        path: Path,
        buffer: Buffer,
        hello: Callable[[], Json],
        last_report: Callable[[], int | None] = lambda: None,
        queue_depths: QueueDepths | None = None,
        control: Control | None = None,
        spool: Spool | None = None,
        adopter: Adopter | None = None,
    ) -> None:
        # True while no thread is about to look at the buffer: it has to be woken. Only
        # the thread changes it, so that no caller can be late with it.
        self.parked = True
        self._ever_connected = False
        self._path = path
        self._buffer = buffer
        self._hello = hello
        self._last_report = last_report
        self._spool = spool
        self._adopter = adopter
        self.host = HostCalls(queue_depths, control, self._wake, self._obeyed)
        self._lock = threading.Lock()  # of a step
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._start_at = 0.0  # not before, after a start that failed
        self._wake_in, self._wake_out = -1, -1
        self._stopping = False
        self._goodbye = "exit"
        self._waiters: list[Waiter] = []
        self._floods: list[Waiter] = []
        self._stalled = False  # the thread left a flood waiting; nobody waits for it again
        self._state = State.DOWN
        self._connection: Connection | None = None
        self._position = 0  # the number of the last message that is wholly on this connection
        self._in_step = False
        self._steps = 0  # begun so far
        self._calls: dict[str, Json | None] = {}
        self._lines: list[bytes] = []  # that go after what is recorded
        self._retry_at = 0.0
        self._retry_after = FIRST_RETRY
        self._greeting_until = 0.0
        self._beat_at = 0.0
        self._read_at = 0.0
        self._asked = False  # for queue depths
        self._said: Said | None = None
        self._news: list[tuple[int, str]] = [] if spool is None else spool.news

    # ------------------------------------------------------------ callers

    def nudge(self) -> None:
        """Something was appended while the thread is parked."""
        self._wake()

    def start(self) -> None:
        """Connect and keep the heartbeat, with nothing to send yet."""
        self._wake()

    def make_room(self) -> bool:
        """More is open than the thread keeps up with: wait for it; False to drop the result."""
        if not self._awake():
            if self._lock.locked():
                return False
            with self._lock:
                self._buffer.form(wall_clock())
            return True
        if self._stalled or threading.current_thread() is self._thread:
            return False
        room = Waiter(lambda: len(self._buffer.open) <= MAX_OPEN)
        self._floods.append(room)
        try:
            room.wait(ROOM_SECONDS)
        finally:
            self._floods.remove(room)
        self._stalled = not room.done
        return room.done

    def flush(self, timeout: float) -> bool:
        """Send until what was recorded before is acknowledged; False when the time is up before.

        While there is no service, what is in a synced spool is safe as well.
        """
        if self._deliver(timeout, spool_will_do=True):
            return True
        if self._spool is None or not self._lock.acquire(timeout=LOCK_SECONDS):
            return False
        try:
            # The service is there and does not answer, or there is no thread to be had.
            self._buffer.form_all(wall_clock())
            return self._spool.holds(self._buffer.seq, time.monotonic())
        finally:
            self._lock.release()

    def _deliver(self, timeout: float, *, spool_will_do: bool) -> bool:
        upto: list[int] = []
        before = self._steps

        def delivered() -> bool:
            # The step that is under way may have formed before the last result was there.
            if self._steps == before:
                return False
            if not upto:
                upto.append(self._buffer.seq)
            if self._buffer.acknowledged(upto[0]):
                return True
            if self._spool is None or not spool_will_do or self._state is not State.DOWN:
                return False
            return self._spool.holds(upto[0], time.monotonic())

        return self._wait_until(delivered, timeout)

    def call(self, method: str, params: Mapping[str, Any], timeout: float) -> Json | None:
        """A call on the session's own connection, after all that was recorded before.

        None when there was no answer in time.
        """
        deadline = time.monotonic() + timeout
        if not self._deliver(timeout, spool_will_do=False):
            return None
        id = os.urandom(8).hex()
        self._calls[id] = None
        self._lines.append(encode(request(id, method, params)))
        try:
            self._wait_until(
                lambda: self._calls[id] is not None or self._connection is None,
                deadline - time.monotonic(),
            )
        finally:
            answer = self._calls.pop(id)
        return answer

    def close(self, timeout: float, reason: str) -> bool:
        """Flush, say goodbye and stop; what flush said. Without ever connecting: nothing."""
        deadline = time.monotonic() + timeout
        flushed = self._buffer.empty or (
            (self._reaches_out(timeout) or self._spool is not None) and self.flush(timeout)
        )
        self._goodbye = reason
        self._stopping = True
        if self._awake():
            assert self._thread is not None
            self._thread.join(max(deadline - time.monotonic(), 0.5))
        elif not self._lock.locked():
            with self._lock:
                self._leave()
        return flushed

    def _reaches_out(self, timeout: float) -> bool:
        """True once connected; a process that ends before its first try makes it now."""
        if self._ever_connected:
            return True
        if self._said is not None:
            return False
        self._wait_until(lambda: self._said is not None or self._state is not State.DOWN, timeout)
        return self._said in (None, "connected")

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent, without a word on the wire."""
        if self._connection is not None:
            self._connection.close()
        for descriptor in (self._wake_in, self._wake_out):
            if descriptor >= 0:
                os.close(descriptor)
        if self._spool is not None:
            self._spool.abandon()
        if self._adopter is not None:
            self._adopter.abandon()

    # ------------------------------------------------------------ waiting

    def _wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        if threading.current_thread() is self._thread:
            return False  # a callback of the host's logging; it would wait for itself
        waiter = Waiter(condition)
        self._waiters.append(waiter)
        try:
            while not waiter.done:
                awake = self._awake()
                if not awake:
                    self._step_here(deadline)
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                if awake:
                    # In slices: the thread may end in between.
                    waiter.wait(min(remaining, 0.5))
        finally:
            self._waiters.remove(waiter)
        return waiter.done

    def _step_here(self, deadline: float) -> None:
        """One step in the caller's thread, and a short wait for what it leads to."""
        connection = None
        if not self._lock.locked():
            with self._lock:
                self._step(time.monotonic())
                connection = self._connection
            self._tell_news()
        if not any(waiter.done for waiter in self._waiters):
            remaining = deadline - time.monotonic()
            wait(connection, None, max(min(remaining, 0.02), 0.0))

    # ------------------------------------------------------------ the thread

    def _wake(self) -> None:
        self._awake()

    def _awake(self) -> bool:
        """Make sure that the thread looks at the buffer; False when there is none to be had."""
        if self._thread is not None and self._thread.is_alive():
            try:
                write(self._wake_out, b"\0")
            except BlockingIOError:
                pass  # the pipe is full: it is awake
            return True
        if self._stopping or self._starting.locked() or time.monotonic() < self._start_at:
            return False
        with self._starting:
            started = self._start_thread()
        if not started:
            self._start_at = time.monotonic() + START_RETRY
        return started

    def _start_thread(self) -> bool:
        if self._wake_in < 0:
            try:
                self._wake_in, self._wake_out = os.pipe()
            except OSError as error:
                if error.errno is None:
                    raise  # the host's signal handler
                return False  # out of descriptors
            os.set_blocking(self._wake_in, False)
            os.set_blocking(self._wake_out, False)
        self._thread = threading.Thread(target=self._run, name="orbit-worker", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            return False  # at a limit of the system, or the interpreter is leaving
        return True

    def _run(self) -> None:
        idle = 0
        while not self._stopping and self._thread is threading.current_thread():
            try:
                idle = self._turn(idle)
            except Exception:
                # Ours to mend, and no reason to leave the host without its metrics.
                log.exception("the sender failed; it goes on with a new connection")
                with self._lock:
                    self._lost(time.monotonic(), "an internal error")
                time.sleep(LAST_RETRY)
        if self._stopping:
            with self._lock:
                self._leave()

    def _turn(self, idle: int) -> int:
        """One look at the buffer and one wait; how many looks in a row found nothing."""
        with self._lock:
            idle = 0 if self._buffer.open else idle + 1
            self._step(time.monotonic())
        self._tell_news()
        self.parked = idle >= IDLE_TURNS
        if not self.parked:
            # Between turns under load an acknowledgement is no reason to wake: it
            # would make each message as small as the answer is quick.
            connection = self._connection
            if connection is not None and not self._listens(connection):
                connection = None
            wait(connection, self._wake_in, SHARE_SECONDS)
            return idle
        if not self._buffer.open:  # else: appended by somebody who saw us awake
            wait(self._connection, self._wake_in, max(self._due_in(time.monotonic()), 0.0))
        return idle

    def _listens(self, connection: Connection) -> bool:
        """True when what the service says is wanted now, or when there was nothing else to do."""
        return bool(
            self.parked
            or self._waiters
            or self._state is State.GREETING
            or connection.busy  # the wait for it ends when there is something to read
        )

    def _due_in(self, now: float) -> float:
        match self._state:
            case State.READY:
                due = self._beat_at - now
            case State.GREETING:
                due = self._greeting_until - now
            case State.DOWN:
                due = self._retry_at - now
        return due if self._spool is None else min(due, self._spool.due_in(now))

    def _leave(self) -> None:
        """Say goodbye where the line is free for it, and let go."""
        connection = self._connection
        if connection is not None and self._state is State.READY:
            try:
                # Who was told to restart answers, and is asked to leave by its own callback.
                while self._lines and not connection.busy and not self._in_step:
                    connection.send(self._lines.pop(0))
                if not connection.busy and not self._in_step:
                    goodbye = notification("worker.disconnect", {"reason": self._goodbye})
                    connection.send(encode(goodbye))
            except Gone:
                pass  # the service went first
        self._drop_connection()
        if self._spool is not None:
            self._spool.close()
        if self._adopter is not None:
            self._adopter.stop()
        self.parked = True

    def _tell_news(self) -> None:
        """Log outside the lock: handlers are the host's code."""
        while self._news:
            level, text = self._news.pop(0)
            log.log(level, "%s", text)

    # ------------------------------------------------------------ one step, under the lock

    def _step(self, now: float) -> None:
        """Form, receive, send; never waits."""
        if self._in_step:
            # An exception from a signal handler cut a step short. What went out and
            # what was read is unknown; on a new connection the numbers tell.
            self._drop_connection()
        self._in_step = True
        self._steps += 1
        self._buffer.form_all(
            wall_clock(), after_each=self._look_at_floods, hurry=bool(self._waiters)
        )
        if self._spool is not None:
            self._spool.keep(now)
        try:
            self._exchange(now)
        except Gone as why:
            self._lost(now, str(why))
        except Refusal as why:
            self._lost(now, f"it refuses: {why}", retry=REFUSED_RETRY)
        except Foreign:
            self._lost(now, "what answers there is another program", retry=REFUSED_RETRY)
        if self._spool is not None:
            self._spool.keep(now)  # again: what was acknowledged need not be there
        for waiter in list(self._waiters):
            waiter.look()
        self._in_step = False

    def _look_at_floods(self) -> None:
        self._stalled = False
        for flood in list(self._floods):
            flood.look()

    def _exchange(self, now: float) -> None:
        if self._state is State.DOWN and now >= self._retry_at:
            self._connection = Connection(self._path)
            self._state = State.GREETING
            self._greeting_until = now + GREETING_SECONDS
            self._connection.send(connect_line("hello", self._hello()))
        connection = self._connection
        if connection is None:
            return
        if self._listens(connection) or now >= self._read_at:
            self._read_at = now + READ_SECONDS
            for message in connection.read():
                self._take(message, now)
        if self._state is State.GREETING and now >= self._greeting_until:
            raise Gone("it takes the connection and does not answer")
        connection.push()
        if self._state is State.READY:
            self._transmit(connection, now)

    def _take(self, message: Json, now: float) -> None:
        try:
            if message.get("method") == "runs.acked":
                self._buffer.acknowledge(_number(message["params"]["seq"]))
            elif message.get("method") == "worker.control":
                self.host.obey(dict(message["params"]))
            elif message.get("id") == "hello" and "result" in message:
                result = message["result"]
                self._greeted(_number(result["acked"]), result.get("node"), now)
            elif message.get("id") in self._calls:
                self._calls[message["id"]] = message
            elif "error" in message:
                self._refused(str(message["error"].get("message", "an error")))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Foreign from None

    def _greeted(self, acked: int, node: str | None, now: float) -> None:
        if self._spool is not None:
            self._spool.met(node)
        if self._adopter is not None:
            self._adopter.met(node)
        self._buffer.resume(acked)
        self._position = acked
        self._state = State.READY
        self._ever_connected = True
        self._retry_after = FIRST_RETRY
        self._beat_at = now
        self._asked = False
        self._say("connected", f"connected to the metrics service at {self._path}")

    def _refused(self, why: str) -> None:
        if self._state is State.GREETING:
            raise Refusal(why)
        self._say("refused", f"the metrics service refused a message: {why}")

    def _transmit(self, connection: Connection, now: float) -> None:
        if self._adopter is not None:
            self._adopter.look_when_due(now)
        self._beat_when_due(now)
        if self._waiters:
            self._buffer.hurry()
        while not connection.busy:
            message = self._buffer.after(self._position)
            if message is not None:
                # A cut connection forgets the position, so it may run ahead of the socket.
                self._position = message.seq
                connection.send(message.line)
            elif self._lines:
                connection.send(self._lines.pop(0))
            else:
                return

    def _beat_when_due(self, now: float) -> None:
        if self._asked:
            if not self.host.told and now < self._beat_at:
                return
        elif now < self._beat_at:
            return
        elif self.host.ask_depths():
            self._asked = True
            self._beat_at = now + DEPTHS_SECONDS
            return
        self._asked = False
        self._beat_at = now + HEARTBEAT_SECONDS
        told = self.host.take_depths()
        self._buffer.beat(
            cpu_seconds(),
            rss_bytes(),
            queues=None if told is None else {name: w.depth for name, w in told.items()},
            oldest={n: w.oldest_at_ms for n, w in (told or {}).items() if w.oldest_at_ms},
            last_report_at_ms=self._last_report(),
        )

    def _lost(self, now: float, why: str, retry: float | None = None) -> None:
        self._drop_connection()
        self._retry_at = now + (retry or self._retry_after)
        self._retry_after = min(self._retry_after * 2, LAST_RETRY)
        self._say("away", f"no metrics service at {self._path} ({why}); runs wait here")

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._state = State.DOWN
        self._lines.clear()

    def _obeyed(self, id: str, outcome: str) -> None:
        answer = {"id": id, "outcome": outcome}
        self._lines.append(encode(notification("worker.controlled", answer)))
        self._wake()

    def _say(self, state: Said, text: str) -> None:
        """One line a change of state, however often it is tried."""
        if state != self._said:
            self._said = state
            self._news.append((logging.INFO if state == "connected" else logging.WARNING, text))


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value
