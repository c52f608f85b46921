"""
Who may ask over HTTP: by which name, from which page, with which token.

A browser on a developer's machine can reach a service on loopback for any page that it
shows. So a name that merely resolves to 127.0.0.1 (DNS rebinding) is not taken for ours,
and a page of another origin is turned away before anything is done for it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
ANY = "*"
# What a browser asks before it sends what a form could not; it need not ask again for 600 s.
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, trpc-accept, trpc-batch-mode",
    "Access-Control-Max-Age": "600",
}


@dataclass(frozen=True, slots=True)
class Access:
    """`local` is true when the service listens on loopback alone.

    `hosts` are names by which it may be called beside those of loopback. Where it listens
    elsewhere and none are given, any name will do, because there a token is required.
    `origins` are those of pages that may ask, as a browser sends them.
    """

    local: bool = True
    token: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def is_called(self, host: str) -> bool:
        """Whether the header `Host` is a name of this service."""
        if ANY in self.hosts or not (self.local or self.hosts):
            return True
        name = _name_of(host.lower())
        return name in LOCAL_NAMES or name in self.hosts

    def admits(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask; our own always may."""
        return origin.partition("://")[2].lower() == host.lower() or self.shares_with(origin)

    def shares_with(self, origin: str | None) -> bool:
        """Whether a page of another origin may read the answers."""
        return origin is not None and (ANY in self.origins or origin in self.origins)

    def trusts(self, authorization: str) -> bool:
        """Whether the header `Authorization` has the token, or none is needed."""
        if self.token is None:
            return True
        scheme, _space, given = authorization.partition(" ")
        # A header holds whatever bytes were sent; those that are no text come as surrogates.
        sent = given.encode(errors="surrogateescape")
        return scheme.lower() == "bearer" and hmac.compare_digest(sent, self.token.encode())

    def cors(self, origin: str | None) -> Mapping[str, str]:
        """The headers by which a browser lets that page read an answer (fetch.spec.whatwg.org)."""
        if not self.origins:
            return {}
        if origin is None or not self.shares_with(origin):
            return {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _name_of(host: str) -> str:
    name, _colon, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).removesuffix(".")
