"""A process that dies, hangs or fails ends the others, with one sentence, exit code 1 and the last checkpoint."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DDPStrategy

from lit_align import AlignmentTrainer
from lit_align.training import rank_links
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.main_thread import MainThread
from lit_align.training.rank_watch import is_of_a_collective
from tests.helpers.processes import exit_codes_of_ranks

pytestmark = pytest.mark.filterwarnings("ignore")
LIMIT = 16.0
"""The strategy's timeout, in seconds, of a run that hangs: short, and no pause on a busy machine."""


class Harm(Callback):
    """Does something to one rank in the third step."""

    def __init__(self, rank: int, how: str) -> None:
        self.rank = rank
        self.how = how

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3 and trainer.global_rank == self.rank:
            getattr(self, self.how)()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self) -> None:
        time.sleep(600)

    def fail(self) -> None:
        raise RuntimeError("a bug of the user's")

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def end_soon(self) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    def go_on(self) -> None:
        """Harms nobody."""

    go_on_unseen = go_on


def fit(folder: Path, rank: int, how: str) -> None:
    if how == "go_on_unseen":
        rank_links.Client = refused  # type: ignore[assignment]
    trainer = AlignmentTrainer(
        default_root_dir=folder, max_steps=5, accelerator="cpu", devices=2, logger=False, enable_progress_bar=False,
        strategy=DDPStrategy(timeout=timedelta(seconds=LIMIT if how == "hang" else 300)), limit_val_batches=0,
        callbacks=[Harm(rank, how), AlignmentCheckpoint(every_n_train_steps=2)],
    )  # fmt: skip
    trainer.fit(BoringModel(), ckpt_path="last")


def refused(*_: Any, **__: Any) -> None:
    raise ConnectionRefusedError


@pytest.mark.parametrize(
    ("rank", "how", "codes", "says"),
    [
        (0, "die", [-signal.SIGKILL, 1], "error: rank 0 has ended without an error"),
        (1, "die", [1, -signal.SIGKILL], "error: rank 1 (process "),
        (1, "hang", [1, 1], "stands in hang (test_rank_watch.py:"),
        (1, "fail", [1, 1], "has ended by RuntimeError: a bug of the user's"),
    ],
)
def test_one_rank_ends_all(rank: int, how: str, codes: list[int], says: str, tmp_path: Path) -> None:
    began = time.monotonic()
    assert exit_codes_of_ranks(2, tmp_path, fit, tmp_path / "run", rank, how) == codes
    assert time.monotonic() - began < LIMIT + 60
    said = (tmp_path / "out.txt").read_text()
    assert said.count("and the run ends: the last checkpoint is of step 2, and --ckpt_path last goes on from it.") == 1
    assert says in said
    if (rank, how) == (1, "die"):
        assert exit_codes_of_ranks(2, tmp_path, fit, tmp_path / "run", rank, "go_on") == [0, 0]
        assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


@pytest.mark.parametrize(("rank", "how", "code"), [(0, "end", 143), (1, "end_soon", 138)])
def test_a_signal_to_one_rank_saves_the_step_and_stops_both(rank: int, how: str, code: int, tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, tmp_path, fit, tmp_path / "run", rank, how) == [code, code]
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert "and the run ends" not in (tmp_path / "out.txt").read_text(), "no rank is missed"
    assert exit_codes_of_ranks(2, tmp_path, fit, tmp_path / "run", rank, "go_on") == [0, 0]


def test_where_no_connection_is_possible_the_run_goes_on_unwatched(tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, tmp_path, fit, tmp_path / "run", 1, "go_on_unseen") == [0, 0]
    assert (tmp_path / "out.txt").read_text().count("Processes cannot reach each other to be watched") == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:902."), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (torch.distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("a bug of the user's"), False),
        (ValueError("gloom"), False),
    ],
)
def test_what_is_said_of_other_ranks(error: Exception, expected: bool) -> None:
    assert is_of_a_collective(error) is expected


def test_where_the_main_thread_is() -> None:
    main = MainThread()
    pulse = main.look()
    assert not pulse.waits and "main_thread.py" in pulse.where
