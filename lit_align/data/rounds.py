"""One on-policy round: prompts, samples, verdicts, pairs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_align.batch import TokenizedPair
from lit_align.data.encoder import Encoder
from lit_align.data.judging import encode_pairs
from lit_align.data.selection import PairSelector
from lit_align.ranks import gather, own_share
from lit_align.records import CandidateSet, Origin, PreferencePair
from lit_align.seeding import derive_seed

Sample = Callable[..., list[CandidateSet]]
JudgeSets = Callable[[Sequence[CandidateSet]], list[CandidateSet]]
AddReference = Callable[[Sequence[TokenizedPair]], list[TokenizedPair]]
COUNTED = (
    "prompts", "candidates", "pairs", "ties", "duplicates", "abstentions", "single_candidate", "below_margin",
    "too_similar", "prompt_too_long", "prompt_cut", "completion_too_long", "equal_completions",
)  # fmt: skip


@dataclass(frozen=True)
class Round:
    """The pairs of a round and what it took.

    Args:
        pairs: the same on every rank, in the order of their prompts.
        stats: the counts of :data:`COUNTED`, `index`, `step`, `yield` (pairs per judged answer), `mean_score`
            (NaN if nothing was scored), `sample_seconds`, `judge_seconds` and `reference_seconds` (of the
            slowest rank).
        paired: the positions, among the sets it was made of, of those that gave a pair.
    """

    pairs: list[TokenizedPair]
    stats: dict[str, int | float]
    paired: list[int]


@dataclass(frozen=True)
class RoundMaker:
    """Makes rounds.

    Args:
        sample: sets and the purpose of the draw -> the sets with candidates of the policy.
        judge: sets -> scored sets.
        selector: makes pairs.
        encoder: tokenises them.
        add_reference: pairs -> the pairs with their reference log-probs, where the loss has a reference.
        seed: the run's seed.
    """

    sample: Sample
    judge: JudgeSets
    selector: PairSelector
    encoder: Encoder
    add_reference: AddReference
    seed: int

    def make(self, sets: Sequence[CandidateSet], index: int, step: int) -> Round:
        """Samples, judges and pairs the prompts of `sets`, shared among the ranks.

        Args:
            sets: the prompts, each on one rank.
            index: the number of the round, for its seeds.
            step: the optimizer step at which the candidates are sampled.
        """
        started = time.perf_counter()
        sampled = self.sample(own_share(sets), "round", index)
        between = time.perf_counter()
        scored = self.judge(sampled)
        seconds = {"sample_seconds": between - started, "judge_seconds": time.perf_counter() - between}
        counts: Counter[str] = Counter(prompts=len(scored))
        placed = [
            (place, pair)
            for place, judged in zip(own_share(range(len(sets))), scored, strict=True)
            for pair in self._pairs(judged, derive_seed(self.seed, "round", index, place), step, counts)
        ]
        scores = [c.score for one in scored for c in one.candidates if c.score is not None and math.isfinite(c.score)]
        counts["candidates"] += sum(len(one.candidates) for one in scored)
        counts["pairs"] += len(placed)
        between = time.perf_counter()
        pairs = self.add_reference([pair for _, pair in placed])
        seconds["reference_seconds"] = time.perf_counter() - between
        share = _Share([place for place, _ in placed], pairs, counts, seconds, scores)
        return _together(gather(share), index, step)

    def _pairs(self, scored: CandidateSet, seed: int, step: int, counts: Counter[str]) -> list[TokenizedPair]:
        pairs = [_on_policy(pair, step) for pair in self.selector.select(scored, seed, counts)]
        return encode_pairs(pairs, self.encoder, counts)


def _on_policy(pair: PreferencePair, step: int) -> PreferencePair:
    return replace(pair, origin=Origin.ON_POLICY, step_sampled=step)


@dataclass(frozen=True)
class _Share:
    """What one rank made of its prompts; `places` are those of the pairs' prompts in the round."""

    places: list[int]
    pairs: list[TokenizedPair]
    counts: Counter[str]
    seconds: dict[str, float]
    scores: list[float]


def _together(shares: Sequence[_Share], index: int, step: int) -> Round:
    counts = sum((share.counts for share in shares), Counter())
    scores = [score for share in shares for score in share.scores]
    stats: dict[str, Any] = {"index": index, "step": step, **{key: counts[key] for key in COUNTED}}
    stats["yield"] = counts["pairs"] / counts["candidates"] if counts["candidates"] else 0.0
    stats["mean_score"] = math.fsum(scores) / len(scores) if scores else math.nan
    for key in ("sample_seconds", "judge_seconds", "reference_seconds"):
        stats[key] = max(share.seconds[key] for share in shares)
    placed = [pair for share in shares for pair in zip(share.places, share.pairs, strict=True)]
    placed.sort(key=lambda of_round: of_round[0])  # as one process makes them
    return Round([pair for _, pair in placed], stats, sorted({place for place, _ in placed}))
