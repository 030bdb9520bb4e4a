"""One try of one request: what came back, and whether another try may help."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_align.remote.key import without_key

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_MOST_BYTES = 64 * 2**20
_SHOWN = 400  # characters of what a server says
_FOR_ALL = (401, 402, 403, 404, 405)
_BUSY = (408, 409, 425, 429)
_NO_CREDIT = ("insufficient_quota", "billing_not_active")


@dataclass(frozen=True)
class Reply:
    """An answer.

    Args:
        payload: the JSON object.
        retries: how often the request had to be repeated.
    """

    payload: dict[str, Any]
    retries: int = 0


@dataclass(frozen=True)
class Setback:
    """A try without an answer.

    Args:
        what: in words, without the key.
        status: the HTTP status; None where none came.
        again: another try may help.
        unreachable: no connection came about.
        wait: seconds that the server asks to wait.
        for_all: other requests would be refused as well.
    """

    what: str
    status: int | None = None
    again: bool = True
    unreachable: bool = False
    wait: float | None = None
    for_all: bool = False


async def exchange(
    session: ClientSession, url: str, body: Mapping[str, Any], key: str | None, plain: bool
) -> Reply | Setback:
    """Posts `body` once. Whatever the network or the server do comes back as a `Setback`.

    With `plain`, what the answer says does not matter, only that it is one.
    """
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"} if key else None
    try:
        async with session.post(url, json=body, headers=headers, allow_redirects=False) as response:
            return _judged(response, await _text(response), key, plain)
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        said = (
            "no connection in time"
            if isinstance(error, asyncio.TimeoutError)
            else str(getattr(error, "os_error", error))
        )
        return Setback(without_key(said, key), unreachable=True)
    except asyncio.TimeoutError:
        return Setback("no whole answer in time")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Setback(without_key(f"the connection broke off ({type(error).__name__}: {error})", key)[:_SHOWN])


async def _text(response: ClientResponse) -> str:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES >> 20} MiB in an answer")
    return b"".join(parts).decode("utf-8", "replace")


def _judged(response: ClientResponse, text: str, key: str | None, plain: bool) -> Reply | Setback:
    status = response.status
    said = without_key(text, key)  # before anything is cut: half a key is one too many
    if status == 200:
        if plain:
            return Reply({})
        try:
            payload = json.loads(text)
        except ValueError:
            payload = None
        return (
            Reply(payload) if isinstance(payload, dict) else Setback(f"an answer that is no JSON object: {_cut(said)}")
        )
    if 300 <= status < 400:
        said = without_key(f"a redirect to {response.headers.get('Location', 'nowhere')}", key)
        return Setback(_cut(said), status, again=False, for_all=True)
    no_credit = status == 429 and any(sign in text for sign in _NO_CREDIT)
    return Setback(
        _cut(_message(said)),
        status,
        again=not no_credit and (status in _BUSY or status >= 500),
        wait=_asked_wait(response.headers),
        for_all=no_credit or status in _FOR_ALL,
    )


def _message(text: str) -> str:
    """The words in an error's body, in the shapes that servers give them; else the body."""
    try:
        body = json.loads(text)
    except ValueError:
        return text
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and name in body:
            body = body[name]
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds in `Retry-After`, which may also be a date, or in `retry-after-ms`."""
    for name, unit in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    date = email.utils.parsedate_tz(headers.get("Retry-After", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
