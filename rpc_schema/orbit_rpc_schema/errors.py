"""
The error tree with its JSON-RPC codes.

    OrbitError                         -32000
    ├── NotSerialisable                -32004
    ├── HistoryUnavailable             -32005
    ├── RunNotCreated                  -32006
    ├── NotSent                        -32007
    ├── AlertsUnavailable              -32008
    ├── InternalError                  -32603
    └── CallerError
        ├── ParseError                 -32700   JSON-RPC 2.0, section 5.1
        ├── InvalidRequest             -32600
        ├── MethodNotFound             -32601
        ├── InvalidParams              -32602
        ├── LineTooLong                -32010
        ├── BatchTooLarge              -32011
        ├── SocketOnly                 -32020
        ├── WebSocketOnly              -32027
        ├── NoSuchSubscription         -32028
        ├── TooManySubscriptions       -32029
        ├── CreatesNoRuns              -32030
        ├── NotOnHub                   -32026
        ├── NoRules                    -32031
        ├── BadRules                   -32032
        ├── NoSuchAlert                -32033
        ├── NoSuchSilence              -32034
        ├── NoSuchChannel              -32035
        ├── TooManySilences            -32036
        ├── NotConnected               -32021
        ├── AlreadyConnected           -32022
        ├── UnsupportedProtocol        -32023
        ├── TooManyConnections         -32024
        └── NotAdmitted                -32025

A class's docstring is its message and its advice: the first line goes into
`message`, the rest into `data.advice`, with the fields filled in. What keeps a
service from starting is Explained in the same way, and has no code.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from typing import Any, ClassVar


class Explained(Exception):
    """Something went wrong."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        # Under `python -OO` there are no docstrings; the name stands in.
        text = cleandoc(type(self).__doc__ or type(self).__name__).format_map(fields)
        self.message, _, self.advice = text.partition("\n")
        super().__init__(text)


class OrbitError(Explained):
    """The service could not do this."""

    code: ClassVar[int] = -32000

    def to_json(self) -> dict[str, Any]:
        """The error object of JSON-RPC 2.0, section 5.1."""
        data = {**self.fields, **({"advice": self.advice} if self.advice else {})}
        return {"code": self.code, "message": self.message, **({"data": data} if data else {})}


class NotSerialisable(OrbitError):
    """
    The result cannot be written as JSON.
    It holds NaN, infinity or something that JSON has no form for; this is our mistake.
    """

    code = -32004


class HistoryUnavailable(OrbitError):
    """
    The history cannot be read: {why}.
    Nothing is lost; worker.metrics without a window and worker.health are answered.
    """

    code = -32005


class RunNotCreated(OrbitError):
    """
    The run could not be put in: {why}.
    """

    code = -32006


class NotSent(OrbitError):
    """
    The channel {channel} did not take the message: {why}.
    """

    code = -32007


class AlertsUnavailable(OrbitError):
    """
    The alerts cannot be changed or read now: {why}.
    What fires is still evaluated, as far as it can be.
    """

    code = -32008


class CallerError(OrbitError):
    """The call was wrong."""


class ParseError(CallerError):
    """Parse error"""

    code = -32700


class InvalidRequest(CallerError):
    """Invalid Request"""

    code = -32600


class MethodNotFound(CallerError):
    """Method not found"""

    code = -32601


class InvalidParams(CallerError):
    """Invalid params"""

    code = -32602


class InternalError(OrbitError):
    """Internal error"""

    code = -32603


class LineTooLong(CallerError):
    """
    The line is over {limit} bytes and was skipped.
    Send runs in more than one message.
    """

    code = -32010


class BatchTooLarge(CallerError):
    """
    A batch holds at most {limit} calls; this one has {size}.
    Send it in parts.
    """

    code = -32011


class SocketOnly(CallerError):
    """
    {method} is for workers, on the Unix socket.
    Over HTTP the reading procedures are answered; rpc.discover lists them.
    """

    code = -32020


class WebSocketOnly(CallerError):
    """
    {method} answers with notifications, which need a WebSocket.
    Connect to /ws.
    """

    code = -32027


class NoSuchSubscription(CallerError):
    """
    This connection has no subscription {subscription!r}.
    """

    code = -32028


class TooManySubscriptions(CallerError):
    """
    A connection holds at most {limit} subscriptions.
    Unsubscribe from one, or open another connection.
    """

    code = -32029


class CreatesNoRuns(CallerError):
    """
    No run can be put in here: the service does not know the pipeline worker's database.
    Start it with ORBIT_PIPELINES_DATABASE, and with orbit-metrics[pipelines] installed.
    """

    code = -32030


class NoRules(CallerError):
    """
    No rules are set here.
    Start the service with ORBIT_ALERTS, the path of a file of rules.
    """

    code = -32031


class BadRules(CallerError):
    """
    The file of rules is not taken; those in force stay so.
    {problems}
    """

    code = -32032


class NoSuchAlert(CallerError):
    """
    There is no alert {alert!r} that is pending or fires.
    alerts.list tells their ids.
    """

    code = -32033


class NoSuchSilence(CallerError):
    """
    There is no silence {id!r} in force.
    """

    code = -32034


class NoSuchChannel(CallerError):
    """
    There is no channel {channel!r} in the file of rules; there are: {known}.
    """

    code = -32035


class TooManySilences(CallerError):
    """
    {limit} silences are in force already.
    End one, or use a pattern that covers several.
    """

    code = -32036


class NotOnHub(CallerError):
    """
    {method} is answered by each node, and this is the hub of many.
    Ask a node; fleet.metrics lists them.
    """

    code = -32026


class NotConnected(CallerError):
    """
    {method} needs a worker.connect first on this connection.
    """

    code = -32021


class AlreadyConnected(CallerError):
    """
    This connection belongs to a session already.
    Open another connection for another session.
    """

    code = -32022


class UnsupportedProtocol(CallerError):
    """
    Protocol {asked} is not spoken here; {supported} is.
    Upgrade whichever of client and service is older.
    """

    code = -32023


class TooManyConnections(CallerError):
    """
    The service holds {limit} connections already.
    """

    code = -32024


class NotAdmitted(CallerError):
    """
    Connections of uid {uid} are not admitted.
    Start the service with ORBIT_ALLOW_UIDS={uid} to admit them.
    """

    code = -32025


def all_errors(root: type[OrbitError] = OrbitError) -> Iterator[type[OrbitError]]:
    """Every class of the tree, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)
