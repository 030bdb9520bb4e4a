"""What can go wrong with a request. No error holds the key, also where the server's own words did."""

from __future__ import annotations


class ServerError(RuntimeError):
    """A request without a usable answer.

    Args:
        message: which server, what it said, and what to do.
        retries: how often the request had been repeated by then.
    """

    def __init__(self, message: str, retries: int = 0) -> None:
        super().__init__(message)
        self.retries = retries


class RequestFailed(ServerError):
    """Tried as often as allowed: busy, broken, too slow, or an answer that is no JSON object."""


class ServerUnreachable(ServerError):
    """No connection, tried as often as allowed: other requests would fare no better."""


class RequestRefused(ServerError):
    """Refused for a reason that trying again does not mend (HTTP 3xx and most of 4xx).

    Args:
        message: as for every `ServerError`.
        status: the HTTP status.
        for_all: other requests would be refused as well (wrong key, path or model; no credit left), in contrast to
            one that cannot be served, such as a text that is too long.
    """

    def __init__(self, message: str, status: int, for_all: bool, retries: int = 0) -> None:
        super().__init__(message, retries)
        self.status = status
        self.for_all = for_all

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.status, self.for_all, self.retries)
