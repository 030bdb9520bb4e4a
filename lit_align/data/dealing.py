"""Which pairs each micro-batch holds: drawn from the two sources, and sorted by length inside an optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_align.batch import TokenizedPair
from lit_align.data.sources import OffPolicySource, OnPolicySource, pack
from lit_align.data.trainer_view import TrainerView
from lit_align.seeding import derive_seed


@dataclass(frozen=True)
class _Step:
    """Micro-batches that are drawn together, and where the sources stood before.

    Other ranks deal other pairs out of the same sources, so that this, not what is left of a rank's hand, is what a
    checkpoint needs.
    """

    first: int
    micro_batches: int
    share: float
    cursor: int
    pending: list[TokenizedPair]


class Dealer:
    """Deals micro-batches of pairs, the same for the same seed and state.

    The source of each slot is drawn alike on every rank. The micro-batches of one optimizer step are drawn together,
    and its pairs are then sorted by length, the longest first: a micro-batch is padded to its longest row, so that
    rows of about one length waste little, and where memory does not suffice it shows at once. Which pairs a step
    holds does not depend on it.

    Args:
        off: the static pairs.
        on: the pairs of on-policy rounds.
        batch_size: pairs a micro-batch and rank.
        seed: the run's seed.
        run: the Trainer as it is.
        before_static: called with the number of static pairs of all ranks that come next, before they are taken.

    Attributes:
        delivered: micro-batches dealt so far.
    """

    def __init__(
        self,
        off: OffPolicySource,
        on: OnPolicySource,
        batch_size: int,
        seed: int,
        run: TrainerView,
        before_static: Callable[[int], None],
    ) -> None:
        self.off, self.on = off, on
        self.batch_size, self.seed = batch_size, seed
        self.delivered = 0
        self._run, self._before_static = run, before_static
        self._step: _Step | None = None
        self._hand: list[list[TokenizedPair]] = []

    def deal(self, share: float) -> list[TokenizedPair]:
        """This rank's next micro-batch. Makes an on-policy round where one is due.

        Args:
            share: of on-policy pairs; it counts when a step begins.
        """
        if not self._hand:
            self._step = self._step or self._begin(share)
            pairs = self._take(self._step)
            if self._step.micro_batches > 1:
                with_target = self._run.needs_target
                pairs.sort(key=lambda pair: row_length(pair, with_target), reverse=True)
            begun = (self.delivered - self._step.first) * self.batch_size
            self._hand = [pairs[at : at + self.batch_size] for at in range(begun, len(pairs), self.batch_size)]
        dealt = self._hand.pop(0)
        self.delivered += 1
        if not self._hand:
            self._step = None
        return dealt

    def _begin(self, share: float) -> _Step:
        micro_batches = self._run.sorted_together()
        on_count = int(self._from_policy(self.delivered, micro_batches, share).sum())
        if on_count:
            self.on.ensure(on_count * self._run.world)
        return _Step(self.delivered, micro_batches, share, self.off.cursor, self.on.pending)

    def _take(self, step: _Step) -> list[TokenizedPair]:
        rank, world = self._run.rank, self._run.world
        from_policy = self._from_policy(step.first, step.micro_batches, step.share)
        on_count = int(from_policy.sum())
        off_count = len(from_policy) - on_count
        if off_count:
            self._before_static(off_count * world)
        on, off = iter(self.on.take(on_count, rank, world)), iter(self.off.take(off_count, rank, world))
        return [next(on) if is_on else next(off) for is_on in from_policy]

    def _from_policy(self, first: int, micro_batches: int, share: float) -> np.ndarray:
        """[micro_batches * batch_size] bool: which slots take an on-policy pair."""
        seeds = [derive_seed(self.seed, "mixture", first + index) for index in range(micro_batches)]
        return np.concatenate([np.random.default_rng(seed).random(self.batch_size) < share for seed in seeds])

    def state_dict(self) -> dict[str, Any]:
        """Where the deal stands, the same on every rank. Amid a step: how the step began."""
        step = self._step
        state: dict[str, Any] = {
            "delivered": self.delivered,
            "off_policy_cursor": self.off.cursor,
            "on_policy": self.on.state_dict(),
            "step": None,
        }
        if step is not None:
            state["off_policy_cursor"] = step.cursor
            state["on_policy"]["pending"] = pack(step.pending)
            state["step"] = {"first": step.first, "micro_batches": step.micro_batches, "share": step.share}
        return state

    def load_state_dict(self, state: dict[str, Any], amid_step: bool) -> None:
        """Goes on where `state` was taken.

        Args:
            state: from :meth:`state_dict`.
            amid_step: take up a step in the middle; False, for another number of ranks or batch size, begins it anew.
        """
        self.delivered = state["delivered"]
        self.off.cursor = state["off_policy_cursor"]
        self.on.load_state_dict(state["on_policy"])
        self._hand, self._step = [], None
        if amid_step and state["step"] is not None:
            self._step = _Step(**state["step"], cursor=self.off.cursor, pending=self.on.pending)


def row_length(pair: TokenizedPair, with_target: bool) -> int:
    """Tokens of the pair's row: the prompt once, and all its completions behind it (`policy/shared_prompt.py`)."""
    target = len(pair.target) if with_target and pair.target is not None else 0
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected) + target
