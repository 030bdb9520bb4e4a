"""The two sources of pairs. A source holds data and a cursor: what it gives next depends on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lit_align.batch import PairReference, TokenizedPair
from lit_align.data.rounds import Round
from lit_align.records import CandidateSet
from lit_align.seeding import derive_seed

MakeRound = Callable[[Sequence[int], int], Round]
MakeOffered = Callable[[int], "Round | None"]
_EMPTY_ROUNDS = 3


class _Order:
    """The endless order of n things: one seeded permutation an epoch, or over and over as they are."""

    def __init__(self, size: int, seed: int, purpose: str, shuffled: bool = True) -> None:
        self.size, self.seed, self.purpose, self.shuffled = size, seed, purpose, shuffled
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.size)
        if not self.shuffled:
            return index
        if epoch != self._epoch:
            rng = np.random.default_rng(derive_seed(self.seed, self.purpose, epoch))
            self._epoch, self._permutation = epoch, rng.permutation(self.size)
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

    def take(self, count: int, rank: int, world: int) -> list[TokenizedPair]:
        """This rank's next `count` pairs; the cursor moves on by those of all ranks."""
        positions = [self.cursor + slot * world + rank for slot in range(count)]
        self.cursor += count * world
        return [self.pairs[self._order[position]] for position in positions]

    def upcoming(self, count: int) -> Sequence[TokenizedPair]:
        """The next `count` pairs of all ranks together, or all pairs where that is fewer."""
        if count >= len(self.pairs):
            return self.pairs
        return [self.pairs[self._order[self.cursor + offset]] for offset in range(count)]


def fingerprint(pairs: Sequence[TokenizedPair], sets: Sequence[CandidateSet]) -> str:
    """The number of pairs and a hash of their tokens and of the training prompts."""
    digest = hashlib.blake2b(digest_size=8)
    for pair in pairs:
        for ids in (pair.prompt, pair.chosen, pair.rejected):
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    for one in sets:
        digest.update(repr(one.prompt).encode("utf-8", "backslashreplace"))
    return f"{len(pairs)} pairs (hash {digest.hexdigest()})"


class OnPolicySource:
    """Pairs of on-policy rounds, each used once, in seeded order.

    A round is made when too few pairs are left or when a fresh one was requested. The last few pairs of a
    round that do not fill a batch open the next one; a requested round drops what is left. Candidates on offer
    make a round before others are sampled.

    Args:
        prompts: the number of training prompts.
        round_prompts: prompts a sampled round (M); no more than there are.
        seed: the run's seed.
        make_round: indices of prompts and the round's number -> the round, the same on every rank.
        make_offered: the round's number -> the round of what is on offer, likewise; None where nothing is.
    """

    def __init__(
        self, prompts: int, round_prompts: int, seed: int, make_round: MakeRound, make_offered: MakeOffered
    ) -> None:
        self.round_prompts = min(round_prompts, prompts)
        self.seed = seed
        self.make_round, self.make_offered = make_round, make_offered
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
            offered = self.make_offered(self.rounds)
            made = self._sampled_round() if offered is None else offered
            rng = np.random.default_rng(derive_seed(self.seed, "round order", self.rounds))
            shuffled = [made.pairs[index] for index in rng.permutation(len(made.pairs))]
            self.pending = [*([] if self.fresh else self.pending), *shuffled]
            self.rounds += 1
            self.fresh = False
            empty = 0 if made.pairs else empty + (offered is None)
            if empty == _EMPTY_ROUNDS:
                raise RuntimeError(
                    f"{empty} on-policy rounds of {self.round_prompts} prompts each gave no pair: the judge gave all "
                    "candidates of each prompt the same score or none, or they were too long. Look at the data's "
                    "`round_stats`; a judge that grades, more candidates or a higher temperature help."
                )

    def _sampled_round(self) -> Round:
        cursor = self.prompt_cursor
        indices: dict[int, None] = {}  # each once: where an epoch meets the next, a prompt may come twice
        while len(indices) < self.round_prompts:
            indices[self._order[cursor]] = None
            cursor += 1
        made = self.make_round(list(indices), self.rounds)
        self.prompt_cursor = cursor
        return made

    def take(self, count: int, rank: int, world: int) -> list[TokenizedPair]:
        """This rank's next `count` pairs, which :meth:`ensure` has made sure of."""
        taken, self.pending = self.pending[: count * world], self.pending[count * world :]
        return taken[rank::world]

    def state_dict(self) -> dict[str, Any]:
        return {
            "pending": pack(self.pending),
            "rounds": self.rounds,
            "prompt_cursor": self.prompt_cursor,
            "fresh": self.fresh,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pending = unpack(state["pending"])
        self.rounds, self.prompt_cursor, self.fresh = state["rounds"], state["prompt_cursor"], state["fresh"]


def pack(pairs: Sequence[TokenizedPair]) -> dict[str, Any]:
    """Pairs as a few tensors, which a checkpoint loaded with `weights_only=True` may hold."""
    parts = [ids for p in pairs for ids in (p.prompt, p.chosen, p.rejected, p.target) if ids is not None]
    lengths = [
        [len(p.prompt), len(p.chosen), len(p.rejected), -1 if p.target is None else len(p.target)] for p in pairs
    ]
    logps = [values for p in pairs if p.reference is not None for values in (p.reference.chosen, p.reference.rejected)]
    return {
        "tokens": torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.int32),
        "lengths": torch.tensor(lengths, dtype=torch.int64).reshape(-1, 4),
        "margins": torch.tensor([p.margin for p in pairs], dtype=torch.float64),
        "on_policy": torch.tensor([p.on_policy for p in pairs], dtype=torch.bool),
        "reference_logps": torch.from_numpy(np.concatenate(logps)) if logps else torch.empty(0),
        "reference_versions": torch.tensor([-1 if p.reference is None else p.reference.version for p in pairs]),
    }


def unpack(packed: dict[str, Any]) -> list[TokenizedPair]:
    """What :func:`pack` was given."""
    tokens, logps = _Parts(packed["tokens"].numpy()), _Parts(packed["reference_logps"].numpy())
    columns = [packed[key].tolist() for key in ("lengths", "margins", "on_policy", "reference_versions")]
    pairs = []
    for (prompt, chosen, rejected, target), margin, on_policy, version in zip(*columns, strict=True):
        reference = None
        if version >= 0:
            reference = PairReference(logps.next(chosen), logps.next(rejected), version)
        pairs.append(
            TokenizedPair(
                prompt=tokens.next(prompt),
                chosen=tokens.next(chosen),
                rejected=tokens.next(rejected),
                margin=margin,
                on_policy=on_policy,
                target=None if target < 0 else tokens.next(target),
                reference=reference,
            )
        )
    return pairs


class _Parts:
    """Takes arrays back out of their concatenation."""

    def __init__(self, together: np.ndarray) -> None:
        self.together, self.start = together, 0

    def next(self, length: int) -> np.ndarray:
        self.start += length
        return self.together[self.start - length : self.start].copy()
