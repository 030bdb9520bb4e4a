"""Errors of requests. None contains the key, even if the server's answer did."""

from __future__ import annotations


class ServerError(RuntimeError):
    """A request without a usable answer.

    Args:
        message: which server, its answer, and what to do.
        retries: how often the request was repeated.
    """

    def __init__(self, message: str, retries: int = 0) -> None:
        super().__init__(message)
        self.retries = retries


class RequestFailed(ServerError):
    """No usable answer after all retries: the server is busy, broken or too slow, or does not answer with JSON."""


class ServerUnreachable(ServerError):
    """No connection after all retries: other requests would fail too."""


class RequestRefused(ServerError):
    """The server refuses the request, and retrying does not help (HTTP 3xx and most of 4xx).

    Args:
        message: which server, its answer, and what to do.
        status: the HTTP status.
        for_all: True if other requests would be refused too (wrong key, path or model; no credit left), False if
            only this one is, for instance because its text is too long.
        retries: how often the request was repeated.
    """

    def __init__(self, message: str, status: int, for_all: bool, retries: int = 0) -> None:
        super().__init__(message, retries)
        self.status = status
        self.for_all = for_all

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.status, self.for_all, self.retries)
