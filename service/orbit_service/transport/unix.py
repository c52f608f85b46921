"""
The worker socket: newline-framed JSON-RPC on a Unix stream socket.

It reads and writes its sockets itself. asyncio's transports (uvloop's too) drop
what they have read when a write meets EPIPE: of 279 lines that a worker wrote
before it was killed, one was read. Here a failed write never ends reading,
reading goes to the end of the stream, and an acknowledgement never holds it up.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from loguru import logger
from msgspec import UNSET, Raw, Struct, UnsetType

from orbit_rpc_schema.errors import LineTooLong as LineTooLongError
from orbit_rpc_schema.errors import NotAdmitted, OrbitError, TooManyConnections
from orbit_rpc_schema.messages import WRITING
from orbit_rpc_schema.wire import MAX_LINE, LineDecoder, LineTooLong, encode, notification
from orbit_service.rpc.dispatch import Dispatcher
from orbit_service.rpc.workers import SUSPECT_SECONDS, Peer, Workers
from orbit_service.transport.listen import MAX_WORKERS
from orbit_service.transport.peers import Admission, has_exited, open_pidfd, peer_of

READ_BYTES = 262_144  # one turn of the loop; more would keep the neighbours waiting
MAX_UNSENT = 1_048_576  # bytes of answers that a client does not read
MAX_WAITING = 100  # calls of one connection that wait for their turn
# A connection that speaks for no worker and says nothing for so long is ended, twice the time
# at most: what is forgotten somewhere must not use up the places of workers.
IDLE_SECONDS = 300.0


class Envelope(Struct):
    """A message whose params are left for whoever knows its method."""

    jsonrpc: str
    method: str
    params: Raw = Raw(b"{}")
    id: str | int | UnsetType | None = UNSET


_envelopes = msgspec.json.Decoder(Envelope)


class UnixServer:
    """Takes connections from a listening socket and serves them until closed."""

    def __init__(
        self,
        listener: socket.socket,
        dispatcher: Dispatcher,
        workers: Workers,
        admission: Admission,
        limit: int = MAX_WORKERS,
    ) -> None:
        self.limit = limit
        self.connections: set[Connection] = set()
        # What ends the looking out for processes whose connection has ended.
        self.watching: set[Callable[[], None]] = set()
        self.dispatcher = dispatcher
        self.workers = workers
        self._listener = listener
        self._admission = admission
        self._refused_uids: set[int] = set()

    def start(self) -> None:
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def listen_on(self, listener: socket.socket) -> None:
        """Another socket in place of the one that nobody can reach any more."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._listener = listener
        self.start()

    def close(self) -> None:
        """Stop listening, read what has arrived, and close every connection."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for connection in list(self.connections):
            connection.shut()
        for stop in list(self.watching):
            stop()

    def _accept(self) -> None:
        try:
            accepted, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of file descriptors: the connection stays in the backlog. Trying
            # again at once would keep the loop busy with nothing else.
            logger.error("cannot accept a worker's connection: {}", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            loop.call_later(0.5, self._listen_again)
            return
        accepted.setblocking(False)
        pid, uid = peer_of(accepted)
        if not self._admission.admits(uid):
            self._turn_away(accepted, uid)
        elif len(self.connections) >= self.limit:
            self.workers.collector.faults["connections"] += 1
            _refuse(accepted, TooManyConnections(limit=self.limit))
        else:
            self.connections.add(Connection(self, accepted, pid))

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:  # else it was closed meanwhile
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _turn_away(self, accepted: socket.socket, uid: int | None) -> None:
        self.workers.collector.faults["uid"] += 1
        if uid not in self._refused_uids and len(self._refused_uids) < 100:
            self._refused_uids.add(uid or 0)
            logger.warning(
                "refused a connection of uid {0}: set ORBIT_ALLOW_UIDS={0} to admit it", uid
            )
        _refuse(accepted, NotAdmitted(uid=uid))


class Connection:
    """One accepted connection."""

    def __init__(self, server: UnixServer, accepted: socket.socket, pid: int | None) -> None:
        self._server = server
        self._socket = accepted
        self._loop = asyncio.get_running_loop()
        self._lines = LineDecoder()
        self._peer = Peer(
            server.workers,
            pid,
            on_replaced=self._close,
            on_durable=self._acknowledge,
            send=self._tell,
        )
        self._acked_sent = 0
        self._unsent = bytearray()
        self._writable = True  # false once a write has failed for good
        self._waiting: deque[bytes] = deque()
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()  # set while the client takes its answers
        self._room.set()
        self._reading = False
        self._ended = False  # the stream, by its other side
        self._closed = False
        self._spoke = False  # since the last look
        self._look = self._loop.call_later(IDLE_SECONDS, self._end_when_idle)
        self._pidfd = open_pidfd(pid)
        if self._pidfd is not None:
            # A child that inherited the socket keeps it open when its parent dies.
            self._loop.add_reader(self._pidfd, self._process_gone)
        self._read_on()

    # ------------------------------------------------------------ reading

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._feed(data)
        else:
            self._end_of_stream()

    def _end_when_idle(self) -> None:
        if self._peer.session is None and not self._spoke and self._task is None:
            self._server.workers.collector.faults["idle"] += 1
            self._close()
            return
        self._spoke = False
        self._look = self._loop.call_later(IDLE_SECONDS, self._end_when_idle)

    def _feed(self, data: bytes) -> None:
        self._spoke = True
        for line in self._lines.feed(data):
            if self._closed:  # replaced, in the middle of what it sent
                return
            if isinstance(line, LineTooLong):
                self._server.workers.collector.faults["line too long"] += 1
                logger.warning("skipped a line over {} bytes from pid {}", MAX_LINE, self._peer.pid)
                self._send(_error_line(LineTooLongError(limit=MAX_LINE)))
            elif self._task is not None or not self._write(line):
                self._wait(line)
        self._acknowledge()

    def _write(self, line: bytes) -> bool:
        """Do a single writing message here and now; False when the line is anything else."""
        answer: dict[str, Any]
        try:
            envelope = _envelopes.decode(line)
            if envelope.method not in WRITING or envelope.jsonrpc != "2.0":
                return False
            if bytes(memoryview(envelope.params)[:1]) != b"{":  # by position
                return False
            answer = {"result": self._peer.write(envelope.method, envelope.params)}
        except OrbitError as error:
            answer = {"error": error.to_json()}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # The params among it: a text there is not seen to be UTF-8 before it is read.
            return False
        if envelope.id is not UNSET:
            self._send(encode({"jsonrpc": "2.0", **answer, "id": envelope.id}))
        return True

    def _wait(self, line: bytes) -> None:
        """Leave a line to the dispatcher. Order is kept: what follows waits behind it."""
        self._waiting.append(line)
        if self._task is None:
            self._task = self._loop.create_task(self._work_off())
        self._read_on()

    async def _work_off(self) -> None:
        try:
            while self._waiting and not self._closed:
                line = self._waiting.popleft()
                if not self._write(line):
                    answer = await self._server.dispatcher.answer(line, self._peer)
                    if answer is not None:
                        self._send(answer + b"\n")
                self._acknowledge()
                self._read_on()
                # One read holds thousands of calls; their answers would be held as well.
                await self._room.wait()
        finally:
            self._task = None

    def _read_on(self) -> None:
        """Read while the client takes its answers and does not run ahead of them."""
        if len(self._unsent) < MAX_UNSENT or not self._writable or self._closed:
            self._room.set()
        else:
            self._room.clear()
        wanted = (
            not (self._closed or self._ended)
            and len(self._waiting) < MAX_WAITING
            and self._room.is_set()
        )
        if wanted and not self._reading:
            self._loop.add_reader(self._socket, self._readable)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._socket)
        self._reading = wanted

    # ------------------------------------------------------------ writing

    def _acknowledge(self) -> None:
        """Tell how far the session is on the disk; only the newest number matters."""
        session = self._peer.session
        if session is None or session.durable <= self._acked_sent:
            return
        # Behind answers that are not read it waits: the next one says more.
        if not self._unsent:
            self._acked_sent = session.durable
            self._send(encode(notification("runs.acked", {"seq": session.durable})))

    def _tell(self, line: bytes) -> None:
        """Send what nobody asked for; not to a client that leaves its answers unread."""
        if len(self._unsent) < MAX_UNSENT:
            self._send(line)

    def _send(self, data: bytes) -> None:
        if self._closed or not self._writable:
            return
        waiting = bool(self._unsent)
        self._unsent += data
        if not waiting:
            self._flush()
        self._read_on()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
            del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            # The reader is gone; what it wrote before is still to be read.
            self._give_up_writing()
        self._loop.remove_writer(self._socket)
        if self._unsent:
            self._loop.add_writer(self._socket, self._drained)

    def _give_up_writing(self) -> None:
        self._writable = False
        self._unsent.clear()

    def _drained(self) -> None:
        self._flush()
        self._acknowledge()
        self._read_on()

    # ------------------------------------------------------------ ending

    def _process_gone(self) -> None:
        """The peer's process has ended; count what it left in the socket."""
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        self._give_up_writing()
        self._loop.remove_writer(self._socket)
        self._drain()
        self._read_on()
        self._end_of_stream()

    def _drain(self) -> None:
        """Read what has arrived already; a dead process writes no more, so this ends."""
        while not self._closed:
            try:
                data = self._socket.recv(READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self._feed(data)

    def _end_of_stream(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._lines.unfinished:
            self._server.workers.collector.faults["line cut off"] += 1
        if self._task is not None:
            # Calls are waiting; among them may be runs. They are done first.
            self._stop_reading()
            self._task.add_done_callback(lambda _task: self._gone())
        else:
            self._gone()

    def _gone(self) -> None:
        if self._closed:
            return
        exited = has_exited(self._pidfd)
        self._peer.vanished(exited)
        pidfd, self._pidfd = self._pidfd, None
        self._close()
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            if exited:
                os.close(pidfd)
            else:
                # A process that is killed closes its files a moment before it is seen
                # to be gone.
                self._watch_for_exit(pidfd)

    def _watch_for_exit(self, pidfd: int) -> None:
        """Look out for the end of the process while its session is suspect."""

        watching = self._server.watching

        def gone() -> None:
            stop()
            self._peer.process_gone()

        def stop() -> None:
            watching.discard(stop)
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
            timer.cancel()

        timer = self._loop.call_later(SUSPECT_SECONDS, stop)
        watching.add(stop)
        self._loop.add_reader(pidfd, gone)

    def shut(self) -> None:
        """The service stops: take what has arrived, then close without losing the session."""
        self._drain()
        self._close()

    def _stop_reading(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._socket)
            self._reading = False

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._look.cancel()
        self._room.set()
        self._server.connections.discard(self)
        self._stop_reading()
        self._loop.remove_writer(self._socket)
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._socket.close()


def _error_line(error: OrbitError) -> bytes:
    return encode({"jsonrpc": "2.0", "error": error.to_json(), "id": None})


def _refuse(accepted: socket.socket, error: OrbitError) -> None:
    """Say why and hang up; a client that does not read is not waited for."""
    with accepted:
        try:
            accepted.send(_error_line(error))
        except OSError:
            pass
