"""Sends many requests to one server, or to several that do the same, a limited number at a time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from lit_align.remote.errors import RequestFailed, RequestRefused, ServerError, ServerUnreachable
from lit_align.remote.exchange import Failure, Reply, exchange
from lit_align.remote.key import read_key, require_variable_name
from lit_align.remote.pool import Pool

if TYPE_CHECKING:
    from aiohttp import ClientSession

Body = Mapping[str, Any]
Outcome = Reply | ServerError
_FIRST_WAIT = 0.5  # seconds before the first retry; each further wait is twice as long
_LONGEST_WAIT = 30.0
_LONGEST_RETRY_AFTER = 300.0  # if a server asks for a longer wait, the request fails
_WARN_FROM = 3  # tries without a connection
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Server:
    """Address and limits of a server, or of several. It holds settings: no connection and no key.

    Several servers share the requests. One that cannot be reached, or that refuses all requests, is left out for a
    minute, and the others take its requests; only where none is left, requests fail.

    Args:
        base_url: the address with the version but without the route, such as `http://localhost:8000/v1`; or several.
        api_key_env: name of the environment variable with the key; if the variable is not set, no key is sent.
        concurrency: the most requests at once, of each server.
        retries: how often a request is repeated if the server is busy or broken. Waits double from half a second to
            30 s, with jitter; all requests together respect a `Retry-After` of up to 5 minutes.
        connect_timeout: seconds to wait for a connection.
        timeout: seconds to wait for an answer, from the connection to its last byte.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        api_key_env: str | None = None,
        concurrency: int = 8,
        retries: int = 6,
        connect_timeout: float = 10.0,
        timeout: float = 120.0,
    ) -> None:
        require_variable_name(api_key_env)
        for name, number, minimum in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if number < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {number}")
        for name, seconds in (("connect_timeout", connect_timeout), ("timeout", timeout)):
            if not seconds > 0:
                raise ValueError(f"{name} must be above 0 seconds, got {seconds}")
        self.pool = Pool(base_url)
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.retries = retries
        self.connect_timeout = connect_timeout
        self.timeout = timeout

    def post(self, route: str, body: Body, retries: int | None = None, ignore_body: bool = False) -> Reply:
        """Sends one request and waits for the answer.

        Args:
            route: the path after `base_url`, such as `/completions`.
            body: the content, sent as JSON.
            retries: how often to repeat this request; None takes the server's `retries`.
            ignore_body: the answer may be any text; the reply's payload is empty.

        Raises:
            ServerError: there is no usable answer.
        """
        with self.answers(route, [body], retries, ignore_body) as answers:
            ((_, outcome),) = answers
        if isinstance(outcome, ServerError):
            raise outcome
        return outcome

    def post_to_all(self, route: str, body: Body, retries: int) -> None:
        """Sends one request to each server, whose answers may be any text; those that cannot be reached are left out.

        Raises:
            ServerError: one does not take it, or none can be reached.
        """
        refusals: list[ServerError] = []
        for url in self.pool.urls:
            alone = copy(self)
            alone.pool = Pool(url)
            try:
                alone.post(route, body, retries, ignore_body=True)
            except ServerError as error:
                if not isinstance(error, ServerUnreachable) or not self.pool.lose(url, "it cannot be reached"):
                    refusals.append(error)
        if refusals:
            raise refusals[0]

    @contextmanager
    def answers(
        self, route: str, bodies: Sequence[Body], retries: int | None = None, ignore_body: bool = False
    ) -> Iterator[Iterator[tuple[int, Outcome]]]:
        """Sends all `bodies` and yields (index, answer or error) as they come, in any order.

        Leaving the block, also by an exception or Ctrl-C, cancels open requests and closes the connections.
        """
        key = read_key(self.api_key_env)
        for url in self.pool.urls:
            if key and url.startswith("http:") and not _is_local(url):
                text = f"${self.api_key_env} goes to {url} unencrypted: use https, or api_key_env: null"
                warnings.warn(text, stacklevel=2)
        requests = _Requests(self, route, bodies, self.retries if retries is None else retries, key, ignore_body)
        requests.start()
        try:
            yield (requests.next() for _ in bodies)
        finally:
            requests.stop()


class _Requests:
    """A batch of requests on a thread with its own event loop, so that it works beside any other loop."""

    def __init__(
        self, server: Server, route: str, bodies: Sequence[Body], retries: int, key: str | None, ignore_body: bool
    ) -> None:
        self._server = server
        self._bodies = bodies
        self._retries = retries
        self._key = key
        self._ignore_body = ignore_body
        self._route = route
        self._outcomes: SimpleQueue[tuple[int, Outcome] | BaseException] = SimpleQueue()
        self._indices = iter(range(len(bodies)))
        self._not_before: dict[str, float] = {}  # by server, monotonic time before which it accepts no request
        self._jitter = random.Random()  # separate, so that the run's random state stays the same
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="lit-align requests", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def next(self) -> tuple[int, Outcome]:
        item = self._outcomes.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        self._ready.wait()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has already ended
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            asyncio.run(self._send_all())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # else the main thread would wait forever
            self._outcomes.put(error)
        finally:
            self._ready.set()

    async def _send_all(self) -> None:
        import aiohttp  # takes a third of a second, so only when a server is used

        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._ready.set()
        server = self._server
        limits = aiohttp.ClientTimeout(
            total=server.timeout, connect=server.connect_timeout, sock_connect=server.connect_timeout
        )
        most = server.concurrency * len(server.pool.urls)
        connections = aiohttp.TCPConnector(limit=most)
        async with aiohttp.ClientSession(connector=connections, timeout=limits) as session:
            workers = min(most, len(self._bodies))
            await asyncio.gather(*(self._send_in_turn(session, worker) for worker in range(workers)))

    async def _send_in_turn(self, session: ClientSession, worker: int) -> None:
        for index in self._indices:
            self._outcomes.put((index, await self._send(session, self._bodies[index], worker)))

    async def _send(self, session: ClientSession, body: Body, worker: int) -> Outcome:
        pool = self._server.pool
        retries = 0
        while True:
            url = pool.choose(worker)
            await self._wait_for_server(url)
            address = url + self._route
            result = await exchange(session, address, _proxy(url), body, self._key, self._ignore_body)
            if isinstance(result, Reply):
                return Reply(result.payload, retries, url)
            if (result.unreachable or result.for_all) and pool.lose(url, result.reason):
                pool.moved += 1
                continue
            wait = result.retry_after or 0.0
            if not result.retryable or retries == self._retries or wait > _LONGEST_RETRY_AFTER:
                return self._error(address, result, retries)
            self._warn(address, result, retries)
            if result.retry_after is not None:
                self._not_before[url] = max(self._not_before.get(url, 0.0), time.monotonic() + wait)
            await asyncio.sleep(wait + self._back_off(retries))
            retries += 1

    async def _wait_for_server(self, url: str) -> None:
        while (wait := self._not_before.get(url, 0.0) - time.monotonic()) > 0:
            await asyncio.sleep(wait + self._jitter.uniform(0, _FIRST_WAIT))

    def _back_off(self, retries: int) -> float:
        return min(_FIRST_WAIT * 2**retries, _LONGEST_WAIT) * self._jitter.uniform(0.5, 1.0)

    def _warn(self, address: str, failure: Failure, retries: int) -> None:
        if failure.unreachable and retries + 1 >= _WARN_FROM and not self._warned:
            self._warned = True
            warnings.warn(f"{address} cannot be reached ({failure.reason}); trying again", stacklevel=2)

    def _error(self, address: str, failure: Failure, retries: int) -> ServerError:
        times = f", tried {retries + 1} times" if retries else ""
        if failure.unreachable:
            urls = self._server.pool.urls
            place = address if len(urls) == 1 else f"none of {', '.join(urls)}"
            return ServerUnreachable(
                f"{place} {'can' if len(urls) > 1 else 'cannot'} be reached{times}: {failure.reason}. Is the server "
                "running, and is base_url right?",
                retries,
            )
        answer = f"answered {failure.status}" if failure.status is not None else "gave no answer"
        text = f"{address} {answer}{times}: {failure.reason.rstrip('.')}"
        if failure.status is None or (failure.retryable and not failure.for_all):
            wait = failure.retry_after or 0.0
            request = f". It asks to wait {wait:.0f} s" if wait > _LONGEST_RETRY_AFTER else ""
            return RequestFailed(
                f"{text}{request}. See the server's log; fewer requests at once (`concurrency`) or a longer `timeout` "
                "may help",
                retries,
            )
        return RequestRefused(f"{text}. {self._advice(failure)}", failure.status, failure.for_all, retries)

    def _advice(self, failure: Failure) -> str:
        if failure.status in (401, 403):
            name = self._server.api_key_env
            state = "was sent" if self._key else "is not set"
            return f"The key in ${name} {state}: is it right?" if name else "Name the key's variable in `api_key_env`"
        if failure.status in (404, 405):
            return "Does base_url end as the server wants it (often /v1), and does it serve this model?"
        if failure.status is not None and 300 <= failure.status < 400:
            return "Redirects are not followed: give the final address as base_url"
        if failure.for_all:
            return "The account has no credit left"
        return "The server does not take this request as it is"


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


def _proxy(url: str) -> str | None:
    """The proxy from `$HTTPS_PROXY` and the like. aiohttp's `trust_env` would also send passwords from `~/.netrc`."""
    parts = urlsplit(url)
    if _is_local(url) or proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)
