"""On-policy rounds: prompts to samples to verdicts to pairs, and the numbers of each round."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from lit_align.batch import TokenizedPair
from lit_align.clock import timed
from lit_align.data.encoder import Encoder
from lit_align.data.held_out import HeldOut
from lit_align.data.judging import judge_sets
from lit_align.data.needs import require
from lit_align.data.selection import PairSelector
from lit_align.data.trainer_view import TrainerView
from lit_align.judges import Judge
from lit_align.policy.sharding import gathered, trained_whole
from lit_align.ranks import gather, own_share
from lit_align.records import Candidate, CandidateSet, Origin
from lit_align.sampling import Sampler, SamplingRequest
from lit_align.seeding import derive_seed

Stats = dict[str, int | float]
AddReference = Callable[[Sequence[TokenizedPair]], list[TokenizedPair]]
Sample = Callable[..., list[CandidateSet]]
COUNTED = (
    "prompts", "candidates", "pairs", "ties", "duplicates", "abstentions", "single_candidate", "below_margin",
    "too_similar", "prompt_too_long", "prompt_cut", "completion_too_long", "equal_completions",
)  # fmt: skip
_TIMED = ("sample_seconds", "judge_seconds", "reference_seconds")


@dataclass(frozen=True)
class Round:
    """The pairs of a round and its numbers.

    Args:
        pairs: the same on every rank, in the order of their prompts.
        stats: the counts of :data:`COUNTED`, `index`, `step`, `yield` (pairs per judged answer), `mean_score`
            (NaN if nothing was scored), `sample_seconds`, `judge_seconds` and `reference_seconds` (of the
            slowest rank).
        paired: the positions, among the sets it was made of, of those that gave a pair.
    """

    pairs: list[TokenizedPair]
    stats: Stats
    paired: list[int]


@dataclass(eq=False)
class Rounds:
    """Samples the policy, makes on-policy rounds of the samples, and keeps their numbers.

    Args:
        train_sets: the training prompts.
        held_out: holds the candidates of a measurement that become a round.
        sampler: draws candidates from the policy.
        judge: scores them.
        selector: makes pairs of them.
        encoder: tokenises prompts and pairs.
        add_reference: pairs -> the pairs with their reference log-probs, if the loss has a reference.
        run: the Trainer as it is; its module has the policy.
        seed: the run's seed.

    Attributes:
        stats: of the last round, see :class:`Round`; and `reused`, how many of its candidates a measurement had
            sampled.
        new: the same of each round that was made for the micro-batch at hand.
        counts: the sums over all rounds, under keys that begin with `on_policy/`.
    """

    train_sets: Sequence[CandidateSet]
    held_out: HeldOut
    sampler: Sampler | None
    judge: Judge | None
    selector: PairSelector
    encoder: Encoder
    add_reference: AddReference
    run: TrainerView
    seed: int
    stats: Stats = field(init=False, default_factory=dict)
    new: list[Stats] = field(init=False, default_factory=list)
    counts: Counter[str] = field(init=False, default_factory=Counter)

    def begin_micro_batch(self) -> None:
        """The rounds made from here on are those of the next micro-batch."""
        self.new = []

    @timed("sampling")
    def sample(
        self,
        sets: Sequence[CandidateSet],
        *purpose: str | int,
        num_candidates: int | None = None,
        desc: str = "sampling",
    ) -> list[CandidateSet]:
        """See :meth:`AlignmentDataModule.sample`."""
        require("sampling", sampler=self.sampler)
        assert self.sampler is not None
        if self.run.module is None:
            raise RuntimeError(
                "sampling takes the policy from the Trainer's module: attach this data module to a Trainer"
            )
        with self._weights_at_hand():
            sampled = self._draw(self.sampler, sets, purpose, num_candidates, desc) if sets else []
        return [
            replace(candidates, candidates=tuple(map(self.encoder.as_in_data, answers_to_it)))
            for candidates, answers_to_it in zip(sets, sampled, strict=True)
        ]

    def _weights_at_hand(self) -> AbstractContextManager[None]:
        """Gives each device what the sampler needs of a policy that is spread over them. All ranks enter it."""
        assert self.sampler is not None
        policy = self.run.module.policy
        return gathered(policy) if self.sampler.runs_policy else trained_whole(policy)

    def _draw(
        self,
        sampler: Sampler,
        sets: Sequence[CandidateSet],
        purpose: Sequence[str | int],
        num_candidates: int | None,
        desc: str,
    ) -> list[tuple[Candidate, ...]]:
        encoder = self.encoder
        prompt_ids = [encoder.encode_prompt(candidates.prompt) for candidates in sets]
        answers = len(sets) * (num_candidates or sampler.num_candidates)
        with self.run.bar(answers, desc, "answers") as bar:
            request = SamplingRequest(
                model=self.run.module.policy,
                tokenizer=encoder.tokenizer,
                prompt_ids=prompt_ids,
                # By what the policy reads: not by place or rank, so that any number of processes samples alike.
                seeds=[derive_seed(self.seed, "sample", *purpose, "prompt", *ids) for ids in prompt_ids],
                stop_ids=encoder.stop_ids,
                pad_id=encoder.pad_id,
                num_candidates=num_candidates,
                progress=bar.update,
            )
            return sampler.sample(request)

    def make_sampled(self, indices: Sequence[int], index: int) -> Round:
        """A round of new samples for some of the training prompts.

        Args:
            indices: of the prompts.
            index: the number of the round.
        """
        sets = [self.train_sets[i] for i in indices]
        return self._keep_numbers(self._make(sets, index, self.run.step, self.sample))

    def make_measured(self, index: int) -> Round | None:
        """A round of what a measurement sampled, filled up to the sampler's number; None if there is nothing.

        Args:
            index: the number of the round.
        """
        sets = self.held_out.queued
        if not sets:
            return None
        measured = self._make(sets, index, self.held_out.sampled_at, self._fill_up)
        self.held_out.clear_queue()  # not before: a judge may fail
        self.held_out.mark_trained([sets[position] for position in measured.paired])
        return self._keep_numbers(measured, reused=sum(len(candidates.candidates) for candidates in sets))

    def _fill_up(self, sets: Sequence[CandidateSet], *purpose: str | int) -> list[CandidateSet]:
        """Sets with as many candidates as those of a sampled round: pairs of few candidates teach less."""
        assert self.sampler is not None
        number = self.sampler.num_candidates
        lacking = number - min((len(candidates.candidates) for candidates in sets), default=number)
        if lacking <= 0:
            return list(sets)
        more = self.sample(sets, *purpose, num_candidates=lacking)
        return [
            replace(candidates, candidates=candidates.candidates + added.candidates)
            for candidates, added in zip(sets, more, strict=True)
        ]

    @timed("on_policy_round")
    def _make(self, sets: Sequence[CandidateSet], index: int, step: int, sample: Sample) -> Round:
        """Samples, judges and pairs the prompts of `sets`, shared among the ranks.

        Args:
            sets: the prompts, each on one rank.
            index: the number of the round, for its seeds.
            step: the optimizer step at which the candidates are sampled.
            sample: sets and the purpose of the draw -> the sets with candidates of the policy.
        """
        require("an on-policy round", sampler=self.sampler, judge=self.judge)
        started = time.perf_counter()
        with self._weights_at_hand():
            sampled = sample(own_share(sets), "round", index)
        sampled_at = time.perf_counter()
        scored = self._score(sampled)
        judged_at = time.perf_counter()
        counts: Counter[str] = Counter(prompts=len(scored))
        places: list[int] = []
        pairs: list[TokenizedPair] = []
        for place, candidates in zip(own_share(range(len(sets))), scored, strict=True):
            of_prompt = self._pair(candidates, derive_seed(self.seed, "round", index, place), counts)
            places += [place] * len(of_prompt)
            pairs += of_prompt
        paired_at = time.perf_counter()
        pairs = self.add_reference(pairs)
        seconds = dict(
            zip(_TIMED, (sampled_at - started, judged_at - sampled_at, time.perf_counter() - paired_at), strict=True)
        )
        answers = list(chain.from_iterable(candidates.candidates for candidates in scored))
        counts["candidates"] += len(answers)
        counts["pairs"] += len(pairs)
        scores = [answer.score for answer in answers if answer.score is not None and math.isfinite(answer.score)]
        return _join(gather(_Share(places, pairs, counts, seconds, scores)), index, step)

    def _score(self, sets: Sequence[CandidateSet]) -> list[CandidateSet]:
        assert self.judge is not None
        answers = sum(len(candidates.candidates) for candidates in sets)
        with self.run.bar(answers, "judging", "answers") as bar:
            return judge_sets(self.judge, sets, bar.update)

    def _pair(self, scored: CandidateSet, seed: int, counts: Counter[str]) -> list[TokenizedPair]:
        pairs = self.selector.select(scored, seed, counts)
        return self.encoder.encode_pairs([replace(pair, origin=Origin.ON_POLICY) for pair in pairs], counts)

    def _keep_numbers(self, new_round: Round, reused: int = 0) -> Round:
        self.stats = {**new_round.stats, "reused": reused}
        self.new.append(self.stats)
        self.counts.update({f"on_policy/{key}": int(self.stats[key]) for key in (*COUNTED, "reused")})
        self.counts["on_policy/rounds"] += 1
        return new_round

    def state_dict(self) -> dict[str, Any]:
        """The numbers, in plain types."""
        return {"round_stats": dict(self.stats), "counts": dict(self.counts), "new_rounds": list(self.new)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from where `state` was taken."""
        self.stats = dict(state["round_stats"])
        self.counts = Counter(state["counts"])
        self.new = list(state["new_rounds"])


@dataclass(frozen=True)
class _Share:
    """The part of a round that one rank made; `places` are those of the pairs' prompts in the round."""

    places: list[int]
    pairs: list[TokenizedPair]
    counts: Counter[str]
    seconds: dict[str, float]
    scores: list[float]


def _join(shares: Sequence[_Share], index: int, step: int) -> Round:
    """The round of all ranks, as one process makes it."""
    counts = sum((share.counts for share in shares), Counter())
    scores = list(chain.from_iterable(share.scores for share in shares))
    stats: Stats = {"index": index, "step": step, **{key: counts[key] for key in COUNTED}}
    stats["yield"] = counts["pairs"] / counts["candidates"] if counts["candidates"] else 0.0
    stats["mean_score"] = math.fsum(scores) / len(scores) if scores else math.nan
    for key in _TIMED:
        stats[key] = max(share.seconds[key] for share in shares)
    placed: list[tuple[int, TokenizedPair]] = []
    for share in shares:
        placed += zip(share.places, share.pairs, strict=True)
    placed.sort(key=lambda place_and_pair: place_and_pair[0])
    return Round([pair for _, pair in placed], stats, sorted({place for place, _ in placed}))
