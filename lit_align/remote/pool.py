"""The addresses of one or several servers that do the same, and which of them cannot be used at the moment."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from urllib.parse import urlsplit

_AGAIN = 60.0  # seconds after which a lost server is tried again


class Pool:
    """Servers that take each other's requests.

    Args:
        base_url: one address, or several.

    Attributes:
        urls: the addresses.
        moved: requests that went to another server because theirs was lost.

    Raises:
        ValueError: an address is none, comes twice, or there is none.
    """

    def __init__(self, base_url: str | Sequence[str]) -> None:
        self.urls = tuple(map(_validate_url, [base_url] if isinstance(base_url, str) else base_url))
        if not self.urls or len(set(self.urls)) < len(self.urls):
            raise ValueError(f"expected base_url to be one address or several different ones, got {base_url!r}")
        self.moved = 0
        self._lost: dict[str, float] = {}
        self._said: set[str] = set()

    @property
    def usable(self) -> list[str]:
        """The servers that are not lost; all of them if all are."""
        now = time.monotonic()
        return [url for url in self.urls if now - self._lost.get(url, -_AGAIN) >= _AGAIN] or list(self.urls)

    def choose(self, worker: int) -> str:
        """The server of a worker; the workers of a lost one are spread over the others.

        Args:
            worker: its number.
        """
        home = self.urls[worker % len(self.urls)]
        usable = self.usable
        return home if home in usable else usable[worker // len(self.urls) % len(usable)]

    def lose(self, url: str, why: str) -> bool:
        """Leaves a server out for a minute, which is said the first time.

        Returns:
            Whether another one can take its requests.
        """
        others = [other for other in self.usable if other != url]
        if not others:
            return False
        self._lost[url] = time.monotonic()
        if url not in self._said:
            self._said.add(url)
            others_take = f"{len(others)} of {len(self.urls)} servers take its requests, and it is tried again later"
            warnings.warn(f"{url} is lost ({why}): {others_take}", stacklevel=2)
        return True


def _validate_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query:
        raise ValueError("base_url must hold no name, password or query: put the key into an environment variable")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must look like http://localhost:8000/v1, got {base_url!r}")
    return base_url.rstrip("/")
