"""Many requests to one server, a few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from lit_align.remote.errors import RequestFailed, RequestRefused, ServerError, ServerUnreachable
from lit_align.remote.exchange import Reply, Setback, exchange
from lit_align.remote.key import read_key, require_variable_name

if TYPE_CHECKING:
    from aiohttp import ClientSession

Body = Mapping[str, Any]
Outcome = Reply | ServerError
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds before a try is repeated, doubled from try to try
_LONGEST_ASKED = 300.0  # a server that asks for more is not waited for
_WARN_FROM = 3  # tries without a connection
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Server:
    """Where requests go, and how patiently. It holds settings alone: no connection, and no key.

    Args:
        base_url: with the version, without the route: `http://localhost:8000/v1`.
        api_key_env: name of the environment variable that holds the key; where it is not set, none is sent.
        concurrency: requests under way at once.
        retries: how often a request is repeated that met a busy or broken server. Waits double from half a second
            to 30 s, with jitter; a `Retry-After` of up to 5 minutes is respected, by all requests together.
        connect_timeout: seconds for a connection.
        timeout: seconds for a whole answer, from the connection to its last byte.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        base_url: str,
        api_key_env: str | None = None,
        concurrency: int = 8,
        retries: int = 6,
        connect_timeout: float = 10.0,
        timeout: float = 120.0,
    ) -> None:
        require_variable_name(api_key_env)
        for name, number, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}")
        for name, seconds in (("connect_timeout", connect_timeout), ("timeout", timeout)):
            if not seconds > 0:
                raise ValueError(f"{name} must be above 0 seconds, got {seconds}")
        self.base_url = _checked_url(base_url)
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.retries = retries
        self.connect_timeout = connect_timeout
        self.timeout = timeout

    def post(self, route: str, body: Body, retries: int | None = None, plain: bool = False) -> Reply:
        """One request.

        Args:
            route: what follows `base_url`, such as `/completions`.
            body: sent as JSON.
            retries: for this request; None takes the server's number.
            plain: the answer may be any text; the reply then holds nothing.

        Raises:
            ServerError: there is no answer.
        """
        with self.answers(route, [body], retries, plain) as answers:
            ((_, outcome),) = answers
        if isinstance(outcome, ServerError):
            raise outcome
        return outcome

    @contextmanager
    def answers(
        self, route: str, bodies: Sequence[Body], retries: int | None = None, plain: bool = False
    ) -> Iterator[Iterator[tuple[int, Outcome]]]:
        """Asks for all `bodies`; gives (index, answer or error) as they come, in any order.

        Leaving the block, also by an exception or Ctrl-C, ends what is still under way and closes the connections.
        """
        key = read_key(self.api_key_env)
        if key and self.base_url.startswith("http:") and not _is_here(self.base_url):
            text = f"${self.api_key_env} goes to {self.base_url} unencrypted: take https, or api_key_env: null"
            warnings.warn(text, stacklevel=2)
        work = _Work(self, route, bodies, self.retries if retries is None else retries, key, plain)
        work.start()
        try:
            yield (work.next() for _ in bodies)
        finally:
            work.stop()


class _Work:
    """A batch of requests on a thread with an event loop of its own, so that it runs beside any other loop."""

    def __init__(
        self, server: Server, route: str, bodies: Sequence[Body], retries: int, key: str | None, plain: bool
    ) -> None:
        self._server, self._bodies, self._retries, self._key, self._plain = server, bodies, retries, key, plain
        self._url = server.base_url + route
        self._done: SimpleQueue[tuple[int, Outcome] | BaseException] = SimpleQueue()
        self._todo = iter(range(len(bodies)))
        self._not_before = 0.0  # on the monotonic clock: until then the server wants no request at all
        self._jitter = random.Random()  # its own: the run's randomness is not touched
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="lit-align requests", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def next(self) -> tuple[int, Outcome]:
        item = self._done.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        self._ready.wait()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # the main thread must not wait for what will not come
            self._done.put(error)
        finally:
            self._ready.set()

    async def _all(self) -> None:
        import aiohttp  # takes a third of a second, which only who asks a server should wait

        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._ready.set()
        server = self._server
        limits = aiohttp.ClientTimeout(
            total=server.timeout, connect=server.connect_timeout, sock_connect=server.connect_timeout
        )
        connections = aiohttp.TCPConnector(limit=server.concurrency)
        proxy = _proxy(server.base_url)
        async with aiohttp.ClientSession(connector=connections, timeout=limits, proxy=proxy) as session:
            workers = min(server.concurrency, len(self._bodies))
            await asyncio.gather(*(self._work_off(session) for _ in range(workers)))

    async def _work_off(self, session: ClientSession) -> None:
        for index in self._todo:
            self._done.put((index, await self._outcome(session, self._bodies[index])))

    async def _outcome(self, session: ClientSession, body: Body) -> Outcome:
        for tried in range(self._retries + 1):
            await self._turn()
            got = await exchange(session, self._url, body, self._key, self._plain)
            if isinstance(got, Reply):
                return Reply(got.payload, retries=tried)
            if not got.again or tried == self._retries or (got.wait or 0.0) > _LONGEST_ASKED:
                return self._error(got, tried)
            self._warn(got, tried)
            if got.wait is not None:
                self._not_before = max(self._not_before, time.monotonic() + got.wait)
            await asyncio.sleep((got.wait or 0.0) + self._back_off(tried))
        raise AssertionError("the last try returns")

    async def _turn(self) -> None:
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait + self._jitter.uniform(0, _FIRST_WAIT))

    def _back_off(self, tried: int) -> float:
        return min(_FIRST_WAIT * 2**tried, _LONGEST_WAIT) * self._jitter.uniform(0.5, 1.0)

    def _warn(self, got: Setback, tried: int) -> None:
        if got.unreachable and tried + 1 >= _WARN_FROM and not self._warned:
            self._warned = True
            warnings.warn(f"{self._url} cannot be reached ({got.what}); trying again", stacklevel=2)

    def _error(self, got: Setback, tried: int) -> ServerError:
        times = f", tried {tried + 1} times" if tried else ""
        if got.unreachable:
            return ServerUnreachable(
                f"{self._url} cannot be reached{times}: {got.what}. Is the server running, and is base_url right?",
                tried,
            )
        answered = f"answered {got.status}" if got.status is not None else "gave no answer"
        text = f"{self._url} {answered}{times}: {got.what.rstrip('.')}"
        if got.status is None or (got.again and not got.for_all):
            long = f". It asks to wait {got.wait:.0f} s" if (got.wait or 0.0) > _LONGEST_ASKED else ""
            return RequestFailed(f"{text}{long}. See the server's log; fewer requests at once (`concurrency`) or a "
                                 "longer `timeout` may help", tried)  # fmt: skip
        return RequestRefused(f"{text}. {self._advice(got)}", got.status, got.for_all, tried)

    def _advice(self, got: Setback) -> str:
        if got.status in (401, 403):
            name = self._server.api_key_env
            sent = "was sent" if self._key else "is not set"
            return f"The key in ${name} {sent}: is it right?" if name else "Name the key's variable in `api_key_env`"
        if got.status in (404, 405):
            return "Does base_url end as the server wants it (often /v1), and does it serve this model?"
        if got.status is not None and 300 <= got.status < 400:
            return "Redirects are not followed: give the final address as base_url"
        if got.for_all:
            return "The account has no credit left"
        return "The server does not take this request as it is"


def _is_here(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


def _proxy(url: str) -> str | None:
    """`$HTTPS_PROXY` and the like. Not by aiohttp's `trust_env`: a `~/.netrc` would then send a password of its own."""
    parts = urlsplit(url)
    if _is_here(url) or proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


def _checked_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query:
        raise ValueError("base_url must hold no name, password or query: a key belongs into the environment")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must look like http://localhost:8000/v1, got {base_url!r}")
    return base_url.rstrip("/")
