"""The connections between the processes of a run over which each hears of another's end."""

from __future__ import annotations

import os
import platform
import secrets
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, cast

from lightning.pytorch import Trainer

from lit_align.console import format_duration
from lit_align.escape import escape
from lit_align.training.main_thread import MainThread, Pulse

_PULSE = 1.0  # seconds between two reports of a rank
_GRACE = 10.0  # seconds for the main thread to come out of a collective by itself
_TO_SAVE = 60.0  # and for what callbacks do after an error


@dataclass(frozen=True)
class Farewell:
    """A rank's last word: why it ends; None where it ends as all others do."""

    reason: str | None


@dataclass(frozen=True)
class End:
    """The first rank's word that the run is over; `failed` where the others have to end at once."""

    failed: bool


class Link:
    """One rank's side of the watch; a thread of its own reports and listens."""

    def __init__(self, trainer: Trainer) -> None:
        self.failed = threading.Event()
        self.trainer = trainer
        self.rank = trainer.global_rank
        timeout: timedelta | None = getattr(trainer.strategy, "_timeout", None)
        limit = timeout.total_seconds() if timeout is not None else float("inf")
        self.limit = limit - min(5.0, limit / 4)  # before the process group's own end, which names nobody
        self._main = MainThread()
        self._over = False
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="lit-align rank watch", daemon=True)

    def connect(self) -> bool:
        """Joins the ranks; whether this one could."""
        raise NotImplementedError

    def start(self) -> None:
        """Begins to watch, once all are connected."""
        self._thread.start()

    def close(self) -> None:
        """Ends the connections."""
        raise NotImplementedError

    def _run(self) -> None:
        with suppress(Exception):  # of connections that an end closes
            while not self._over:
                self._look()

    def _look(self) -> None:
        raise NotImplementedError

    def leave(self, reason: str | None) -> None:
        """Says that this rank ends, and why."""
        raise NotImplementedError

    def see_others_end(self) -> None:
        """Waits a moment for the others, which may not have heard yet."""

    def await_verdict(self) -> bool:
        """Waits until it is known which rank has failed, if one has; then no signal interrupts what follows."""
        self._ending.set()
        known = self.failed.wait(_GRACE)
        for number in (signal.SIGTERM, signal.SIGINT) if known else ():
            signal.signal(number, signal.SIG_IGN)
        return known

    def _end(self) -> None:
        """Ends the process where its main thread does not: it may wait in a collective for ever."""
        self.failed.set()
        self._over = True
        time.sleep(_GRACE)
        if self._ending.is_set():
            time.sleep(_TO_SAVE)
        self.see_others_end()
        os._exit(1)

    def _tell(self, what: str) -> None:
        saved = getattr(self.trainer.checkpoint_callback, "saved_step", 0)
        last = (
            f"the last checkpoint is of step {saved}, and --ckpt_path last goes on from it"
            if saved
            else ("there is no checkpoint yet, so that it has to begin again")
        )
        text = f"\nerror: {what}, and the run ends: {last}."
        print(escape(text), file=sys.stderr, flush=True)


class First(Link):
    """Rank 0's side, to which the others are connected."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        strategy: Any = trainer.strategy
        self._address = strategy.cluster_environment.main_address
        self._key = secrets.token_bytes(32)
        here = self._address in ("localhost", "127.0.0.1")
        self._listener = Listener(("127.0.0.1" if here else "", 0), backlog=trainer.world_size, authkey=self._key)
        self._others: dict[Connection, int] = {}
        self._pulses: dict[int, Pulse] = {}
        self._farewells: dict[int, Farewell] = {}
        self._names: dict[int, str] = {}
        self._launcher = strategy.launcher
        self._accepting = threading.Thread(target=self._accept, args=(trainer.world_size - 1,), daemon=True)

    def connect(self) -> bool:
        """See :meth:`Link.connect`."""
        self._accepting.start()
        self.trainer.strategy.broadcast((self._address, cast(Any, self._listener).address[1], self._key))
        return True

    def start(self) -> None:
        """See :meth:`Link.start`."""
        self._accepting.join()
        _take_over_from_lightning()
        super().start()

    def close(self) -> None:
        """See :meth:`Link.close`."""
        self._listener.close()
        for connection in self._others:
            connection.close()

    def _accept(self, count: int) -> None:
        while len(self._others) < count:
            try:
                connection = self._listener.accept()
                rank, name = connection.recv()
            except (AuthenticationError, EOFError):  # somebody else's
                continue
            except OSError:  # closed
                return
            self._names[rank] = name
            self._others[connection] = rank

    def _look(self) -> None:
        for ready in wait(list(self._others), _PULSE):
            connection = cast(Connection, ready)
            try:
                self._hear(self._others[connection], connection.recv())
            except (EOFError, OSError):
                self._lose(self._others.pop(connection))
        self._pulses[0] = self._main.look()
        if len(self._pulses) == self.trainer.world_size and all(p.still > self.limit for p in self._pulses.values()):
            self._fail(self._describe_standstill())

    def _hear(self, rank: int, word: Any) -> None:
        if isinstance(word, Pulse):
            self._pulses[rank] = word
        else:
            self._farewells[rank] = word

    def _lose(self, rank: int) -> None:
        farewell = self._farewells.get(rank)
        if farewell is None:
            how = "has ended without an error, as for a lack of memory or by kill -9"
        elif farewell.reason is None:
            return
        else:
            how = f"has ended by {farewell.reason}"
        self._fail(f"rank {rank} ({self._names[rank]}) {how}")

    def _describe_standstill(self) -> str:
        own = f"process {os.getpid()} on {platform.node()}"
        stuck = {rank: pulse for rank, pulse in sorted(self._pulses.items()) if not pulse.waits} or self._pulses
        named = [f"rank {n} ({self._names.get(n, own)}) stands in {p.where}" for n, p in list(stuck.items())[:3]]
        more = f" and {len(stuck) - 3} more" if len(stuck) > 3 else ""
        return f"no process has moved for {format_duration(self.limit)}: {'; '.join(named)}{more}"

    def _fail(self, what: str) -> None:
        if self._over:
            return
        self._tell(what)
        self._announce(End(failed=True))
        self._end()

    def _announce(self, word: End) -> None:
        for connection in list(self._others):
            with suppress(OSError):
                connection.send(word)

    def leave(self, reason: str | None) -> None:
        """See :meth:`Link.leave`."""
        self._over = True
        self._ending.set()
        self._announce(End(failed=reason is not None))
        if reason is not None:
            self.see_others_end()
        self._thread.join(timeout=2 * _PULSE)

    def see_others_end(self) -> None:
        """Gives the others their grace; those that Lightning started here and that still run then are killed."""
        until = time.monotonic() + _GRACE
        open_ones = list(self._others)
        while open_ones and time.monotonic() < until:
            for connection in wait(open_ones, 0.2):
                try:
                    cast(Connection, connection).recv()
                except (EOFError, OSError):
                    open_ones.remove(cast(Connection, connection))
        if self._launcher is not None:
            self._launcher.kill(signal.SIGKILL)


class Other(Link):
    """The side of any other rank."""

    _first: Connection

    def connect(self) -> bool:
        """See :meth:`Link.connect`."""
        place: Any = self.trainer.strategy.broadcast(None)
        try:
            self._first = Client(place[:2], authkey=place[2])
            self._first.send((self.rank, f"process {os.getpid()} on {platform.node()}"))
        except (AuthenticationError, EOFError, OSError):
            return False
        return True

    def close(self) -> None:
        """See :meth:`Link.close`."""
        with suppress(AttributeError):  # never connected
            self._first.close()

    def _look(self) -> None:
        try:
            with self._lock:
                self._first.send(self._main.look())
            if self._first.poll(_PULSE):
                self._obey(self._first.recv())
        except (EOFError, OSError):
            if self._over:
                return
            if self.rank == 1:
                self._tell("rank 0 has ended without an error, as for a lack of memory or by kill -9")
            self._end()

    def _obey(self, word: End) -> None:
        self._over = True
        if word.failed:
            self._end()

    def leave(self, reason: str | None) -> None:
        """See :meth:`Link.leave`."""
        self._over = True
        self._ending.set()
        with self._lock, suppress(OSError):
            self._first.send(Farewell(reason))


def _take_over_from_lightning() -> None:
    """Lightning's own observer kills this process within five seconds of another's end, before anything is said."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            vars(thread).update(_child_processes=[])
