"""A single try of a request: the answer, or the reason of the failure and whether to retry."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_align.escape import escape_line
from lit_align.remote.key import without_key

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_MAX_BYTES = 64 * 2**20
_MAX_CHARACTERS = 400  # shown of a server's answer
_REFUSES_ALL = (401, 402, 403, 404, 405)
_BUSY = (408, 409, 425, 429)
_NO_CREDIT = ("insufficient_quota", "billing_not_active")


@dataclass(frozen=True)
class Reply:
    """A usable answer.

    Args:
        payload: the JSON object.
        retries: how often the request was repeated.
        url: the server's address, without the route.
    """

    payload: dict[str, Any]
    retries: int = 0
    url: str = ""


@dataclass(frozen=True)
class Failure:
    """A try without a usable answer.

    Args:
        reason: the cause in words, without the key.
        status: the HTTP status; None if there was no answer.
        retryable: another try may help.
        unreachable: there was no connection.
        retry_after: seconds that the server asks to wait; None if it does not.
        for_all: other requests would be refused too.
    """

    reason: str
    status: int | None = None
    retryable: bool = True
    unreachable: bool = False
    retry_after: float | None = None
    for_all: bool = False


async def exchange(
    session: ClientSession, url: str, proxy: str | None, body: Mapping[str, Any], key: str | None, ignore_body: bool
) -> Reply | Failure:
    """Posts `body` once. All errors of the network or the server are returned as a `Failure`.

    Args:
        session: of aiohttp, with its limits.
        url: where to post.
        proxy: the address of the proxy to go through; None for none.
        body: the content, sent as JSON.
        key: sent as a bearer token; None sends none.
        ignore_body: any text counts as an answer; the reply's payload is empty.
    """
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"} if key else None
    try:
        async with session.post(url, proxy=proxy, json=body, headers=headers, allow_redirects=False) as response:
            return _evaluate(response, await _read_text(response), key, ignore_body)
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        in_time = not isinstance(error, asyncio.TimeoutError)
        reason = str(getattr(error, "os_error", error)) if in_time else "no connection in time"
        return Failure(without_key(reason, key), unreachable=True)
    except TimeoutError:
        return Failure("no whole answer in time")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Failure(
            without_key(f"the connection broke off ({type(error).__name__}: {error})", key)[:_MAX_CHARACTERS]
        )


async def _read_text(response: ClientResponse) -> str:
    parts = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES >> 20} MiB in an answer")
    return b"".join(parts).decode("utf-8", "replace")


def _evaluate(response: ClientResponse, text: str, key: str | None, ignore_body: bool) -> Reply | Failure:
    status = response.status
    public_text = without_key(text, key)  # before the text is shortened, which could leave a part of the key
    if status == 200:
        return Reply({}) if ignore_body else _parse(text, public_text)
    if 300 <= status < 400:
        target = without_key(response.headers.get("Location", "nowhere"), key)
        return Failure(_shorten(f"a redirect to {target}"), status, retryable=False, for_all=True)
    no_credit = status == 429 and any(sign in text for sign in _NO_CREDIT)
    return Failure(
        _shorten(_message(public_text)),
        status,
        retryable=not no_credit and (status in _BUSY or status >= 500),
        retry_after=_retry_after(response.headers),
        for_all=no_credit or status in _REFUSES_ALL,
    )


def _parse(text: str, public_text: str) -> Reply | Failure:
    try:
        payload = json.loads(text)
    except ValueError:
        payload = None
    if isinstance(payload, dict):
        return Reply(payload)
    return Failure(f"an answer that is no JSON object: {_shorten(public_text)}")


def _message(text: str) -> str:
    """The message in an error's body, under the names that servers use; the whole body if there is none."""
    try:
        body = json.loads(text)
    except ValueError:
        return text
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and name in body:
            body = body[name]
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` or by `Retry-After`, which may also be a date; None without either."""
    for name, unit in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    date = email.utils.parsedate_tz(headers.get("Retry-After", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


def _shorten(text: str) -> str:
    text = escape_line(text)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
