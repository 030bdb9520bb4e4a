"""Which pairs each micro-batch holds: two sources, each with a cursor, and the scheduler that draws from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np

from lit_align.batch import TokenizedPair
from lit_align.data.packing import pack, unpack
from lit_align.data.rounds import COUNTED, Round
from lit_align.data.token_budget import TokenBudget
from lit_align.data.trainer_view import TrainerView
from lit_align.seeding import derive_seed

MakeSampled = Callable[[Sequence[int], int], Round]
MakeMeasured = Callable[[int], "Round | None"]
_NO_REASONS = ("prompts", "candidates", "pairs")
_EMPTY_ROUNDS = 3
_DRAWS = 256
"""Pairs whose sources are drawn with one seed."""


class _Order:
    """The endless order of n things: one seeded permutation an epoch, or over and over as they are."""

    def __init__(self, size: int, seed: int, purpose: str, shuffled: bool = True) -> None:
        self.size = size
        self.seed = seed
        self.purpose = purpose
        self.shuffled = shuffled
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.size)
        if not self.shuffled:
            return index
        if epoch != self._epoch:
            rng = np.random.default_rng(derive_seed(self.seed, self.purpose, epoch))
            self._epoch = epoch
            self._permutation = rng.permutation(self.size)
        return int(self._permutation[index])


class OffPolicySource:
    """Static pairs, epoch after epoch.

    Args:
        pairs: all training pairs, the same on every rank.
        seed: the run's seed.
        shuffled: in seeded order, another one each epoch; else as they are.
    """

    def __init__(self, pairs: Sequence[TokenizedPair], seed: int, shuffled: bool = True) -> None:
        self.pairs = pairs
        self.cursor = 0
        self._order = _Order(len(pairs), seed, "off-policy", shuffled)

    def take(self, count: int) -> list[TokenizedPair]:
        """The next `count` pairs of all ranks together."""
        positions = range(self.cursor, self.cursor + count)
        self.cursor += count
        return [self.pairs[self._order[position]] for position in positions]

    def upcoming(self, count: int) -> Sequence[TokenizedPair]:
        """The next `count` pairs of all ranks together, or all pairs if there are fewer."""
        if count >= len(self.pairs):
            return self.pairs
        return [self.pairs[self._order[self.cursor + offset]] for offset in range(count)]


class OnPolicySource:
    """Pairs of on-policy rounds, each used once, in seeded order.

    A round is made when too few pairs are left or when a fresh one was requested. The last few pairs of a
    round that do not fill a batch open the next one; a requested round drops what is left. Candidates that a
    measurement sampled make a round before others are sampled.

    Args:
        prompts: the number of training prompts.
        round_prompts: prompts a sampled round (M); no more than there are.
        seed: the run's seed.
        make_sampled: indices of prompts and the round's number -> the round, the same on every rank.
        make_measured: the round's number -> the round of what a measurement sampled, the same on every rank; None if
            there is nothing.
    """

    def __init__(
        self, prompts: int, round_prompts: int, seed: int, make_sampled: MakeSampled, make_measured: MakeMeasured
    ) -> None:
        self.round_prompts = min(round_prompts, prompts)
        self.seed = seed
        self.make_sampled = make_sampled
        self.make_measured = make_measured
        self.pending: list[TokenizedPair] = []
        self.rounds = 0
        self.prompt_cursor = 0
        self.fresh = False
        self._order = _Order(prompts, seed, "round prompts")

    def request_round(self) -> None:
        """The next pair comes from a fresh round; what is left of the current one is dropped."""
        self.fresh = True

    def ensure(self, count: int) -> None:
        """Makes rounds until `count` pairs are there.

        Raises:
            RuntimeError: after three sampled rounds in a row without a pair.
        """
        empty = 0
        while self.fresh or len(self.pending) < count:
            measured = self.make_measured(self.rounds)
            new_round = measured or self._sample_round()
            pairs = new_round.pairs
            rng = np.random.default_rng(derive_seed(self.seed, "round order", self.rounds))
            shuffled = [pairs[index] for index in rng.permutation(len(pairs))]
            self.pending = shuffled if self.fresh else [*self.pending, *shuffled]
            self.rounds += 1
            self.fresh = False
            empty = 0 if pairs else empty + (measured is None)
            if empty == _EMPTY_ROUNDS:
                raise RuntimeError(
                    f"{empty} on-policy rounds of {self.round_prompts} prompts each gave no pair: {_why(new_round)}"
                )

    def _sample_round(self) -> Round:
        cursor = self.prompt_cursor
        indices: dict[int, None] = {}  # each once: a prompt may come again soon, in the next epoch
        while len(indices) < self.round_prompts:
            indices[self._order[cursor]] = None
            cursor += 1
        sampled = self.make_sampled(list(indices), self.rounds)
        self.prompt_cursor = cursor
        return sampled

    def take(self, count: int) -> list[TokenizedPair]:
        """The next `count` pairs of all ranks together, which :meth:`ensure` has made sure of."""
        taken = self.pending[:count]
        self.pending = self.pending[count:]
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {
            "pending": pack(self.pending),
            "rounds": self.rounds,
            "prompt_cursor": self.prompt_cursor,
            "fresh": self.fresh,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pending = unpack(state["pending"])
        self.rounds = state["rounds"]
        self.prompt_cursor = state["prompt_cursor"]
        self.fresh = state["fresh"]


@dataclass(frozen=True)
class _Step:
    """Micro-batches that are drawn together, and where the run and its sources stood before.

    Other ranks take other pairs of the same sources, so that a checkpoint needs this and not the micro-batches of one
    rank.
    """

    first: int
    first_pair: int
    micro_batches: int
    share: float
    cursor: int
    pending: list[TokenizedPair]


@dataclass(eq=False)
class BatchScheduler:
    """Draws micro-batches of pairs, the same for the same seed and state.

    All ranks draw the pairs of all, whose sources go by their number in the run: a step of so many pairs holds the same
    ones on any number of ranks, with any batch size. The micro-batches of one optimizer step are drawn together, and
    a rank's pairs are then sorted by length, the longest first: a micro-batch is padded to its longest row, so that
    rows of about one length waste little, and a lack of memory shows at once. Which pairs a step holds does not depend
    on it.

    Args:
        off: the static pairs.
        on: the pairs of on-policy rounds.
        batch_size: pairs a micro-batch and rank.
        seed: the run's seed.
        run: the Trainer as it is.
        before_static: called with the number of static pairs of all ranks that come next, before they are taken.
        batch_tokens: the most tokens of a micro-batch: those of a step then hold about as many tokens each, in place
            of as many pairs. None cuts by pairs.

    Attributes:
        delivered: micro-batches given so far.
        drawn: pairs of all ranks drawn so far.
    """

    off: OffPolicySource
    on: OnPolicySource
    batch_size: int
    seed: int
    run: TrainerView
    before_static: Callable[[int], None]
    batch_tokens: int | None = None
    delivered: int = field(init=False, default=0)
    drawn: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._budget = None if self.batch_tokens is None else TokenBudget(self.batch_tokens)
        self._step: _Step | None = None
        self._micro_batches: list[list[TokenizedPair]] = []

    def next_pairs(self, share: float) -> list[TokenizedPair]:
        """This rank's next micro-batch. Makes an on-policy round if one is due.

        Args:
            share: of on-policy pairs; it counts when a step begins.
        """
        if not self._micro_batches:
            self._step = self._step or self._begin(share)
            self._micro_batches = self._split(self._step)
        pairs = self._micro_batches.pop(0)
        self.delivered += 1
        if not self._micro_batches:
            self._step = None
        return pairs

    def _begin(self, share: float) -> _Step:
        step = _Step(self.delivered, self.drawn, self.run.count_sorted_together(), share, self.off.cursor, [])
        on_count = int(self._from_policy(step).sum())
        if on_count:
            self.on.ensure(on_count)
        return replace(step, pending=self.on.pending)

    def _split(self, step: _Step) -> list[list[TokenizedPair]]:
        """The micro-batches of a step that were not given yet: none of them at its begin, some after a checkpoint."""
        pairs = self._take(step)
        if step.micro_batches > 1:
            with_target = self.run.needs_target
            pairs.sort(key=lambda pair: row_length(pair, with_target), reverse=True)
        counts = [self.batch_size] * step.micro_batches
        if self._budget is not None:
            tokens = [row_length(pair, self.run.needs_target) for pair in pairs]
            counts = self._budget.cut(tokens, step.micro_batches)
        ends = list(accumulate(counts))
        return [pairs[end - count : end] for count, end in zip(counts, ends, strict=True)][
            self.delivered - step.first :
        ]

    def _take(self, step: _Step) -> list[TokenizedPair]:
        from_policy = self._from_policy(step)
        on_count = int(from_policy.sum())
        off_count = len(from_policy) - on_count
        if off_count:
            self.before_static(off_count)
        on = iter(self.on.take(on_count))
        off = iter(self.off.take(off_count))
        of_all_ranks = [next(on) if is_on else next(off) for is_on in from_policy]
        self.drawn = step.first_pair + len(of_all_ranks)
        return of_all_ranks[self.run.rank :: self.run.world]

    def _from_policy(self, step: _Step) -> np.ndarray:
        """[pairs of all ranks in the step] bool: which of them are on-policy."""
        count = step.micro_batches * self.batch_size * self.run.world
        blocks = range(step.first_pair // _DRAWS, (step.first_pair + count - 1) // _DRAWS + 1)
        seeds = [derive_seed(self.seed, "mixture", block) for block in blocks]
        draws = np.concatenate([np.random.default_rng(seed).random(_DRAWS) for seed in seeds])
        return draws[step.first_pair % _DRAWS :][:count] < step.share

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, the same on every rank. Amid a step: how the step began."""
        step = self._step
        state: dict[str, Any] = {
            "delivered": self.delivered,
            "drawn": self.drawn,
            "off_policy_cursor": self.off.cursor,
            "on_policy": self.on.state_dict(),
            "step": None,
        }
        if step is not None:
            state["drawn"] = step.first_pair
            state["off_policy_cursor"] = step.cursor
            state["on_policy"]["pending"] = pack(step.pending)
            state["step"] = {"first": step.first, "micro_batches": step.micro_batches, "share": step.share}
        return state

    def load_state_dict(self, state: dict[str, Any], amid_step: bool) -> None:
        """Continues from where `state` was taken.

        Args:
            state: from :meth:`state_dict`.
            amid_step: take up a step in the middle; False, for another number of ranks or batch size, begins it anew.
        """
        self.delivered = state["delivered"]
        self.drawn = state["drawn"]
        self.off.cursor = state["off_policy_cursor"]
        self.on.load_state_dict(state["on_policy"])
        self._micro_batches = []
        self._step = None
        if amid_step and state["step"] is not None:
            self._step = _Step(**state["step"], first_pair=self.drawn, cursor=self.off.cursor, pending=self.on.pending)


def row_length(pair: TokenizedPair, with_target: bool) -> int:
    """Tokens of the pair's row: the prompt once, and all its completions behind it (`shared_rows.py`)."""
    target = len(pair.target) if with_target and pair.target is not None else 0
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected) + target


def _why(empty: Round) -> str:
    """What a round without a pair was short of."""
    reasons = {key: empty.stats[key] for key in COUNTED if key not in _NO_REASONS and empty.stats.get(key)}
    if not reasons:
        return "`data.selector` chose none of the candidates, which the judge told apart"
    counted = ", ".join(f"{key}: {count}" for key, count in reasons.items())
    return (
        f"the judge gave all candidates of each prompt the same score or none, or they were too long ({counted} in the "
        "last). A judge that grades, more candidates or a higher temperature help."
    )
