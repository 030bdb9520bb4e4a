"""Watches the processes of a run: where one dies or stands still, the others end, and one sentence says which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_align.console import note
from lit_align.ranks import gather
from lit_align.run_parts import find_callback
from lit_align.training.interruption import interruptions_of
from lit_align.training.rank_links import First, Link, Other

_SIGNS_OF_GLOO = ("gloo", "pair closure", "Timed out waiting")


class RankWatch(Callback):
    """Ends all processes of a run, with one sentence and exit code 1, where one of them dies or stands still.

    Without it the others wait for the lost one, or end with a message of the network. Each process reports to the
    first one over a connection that closes with its process, however that ends. A run stands still where no process
    has moved for the `timeout` of the strategy, which is Lightning's (30 minutes; `DDPStrategy(timeout=...)`): then
    those that do not wait in a collective are named. The last checkpoint stays as it is.
    """

    def __init__(self) -> None:
        self._link: Link | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._link is not None or trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
            return
        link = First(trainer) if trainer.global_rank == 0 else Other(trainer)
        if all(gather(link.connect())):
            self._link = link
            link.start()
        else:
            link.close()
            note("Processes cannot reach each other to be watched: if one dies or hangs, no line will say which.")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._link is not None:
            self._link.leave(None)
            self._link = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._link is None:
            return
        if not is_of_a_collective(exception) or not self._link.await_verdict():
            self._link.leave(_describe(trainer, exception))

    def end_with_others(self, error: BaseException) -> None:
        """Ends this process if another one has failed, which was said; else does nothing.

        Args:
            error: of this process.

        Raises:
            SystemExit: another process has failed.
        """
        if self._link is not None and self._link.failed.is_set():
            self._link.see_others_end()
            raise SystemExit(1) from error


@contextmanager
def ended_with_others(trainer: Trainer) -> Iterator[None]:
    """Ends a process quietly whose fit fails in the block because another process has, which was said.

    Raises:
        SystemExit: another process has failed.
    """
    try:
        yield
    except Exception as error:
        watch = find_callback(trainer, RankWatch)
        if watch is not None:
            watch.end_with_others(error)
        raise


def is_of_a_collective(error: BaseException) -> bool:
    """Whether an error says that other ranks cannot be reached, or do not answer."""
    of_gloo = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_GLOO)
    return of_gloo or isinstance(error, dist.DistError)


def _describe(trainer: Trainer, error: BaseException) -> str | None:
    interruptions = interruptions_of(trainer)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        together = interruptions is not None and interruptions.stops_together
        return None if together else "a signal"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
