"""What comes from the policy of a run: candidates for prompts, and the on-policy rounds made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lit_align.data.judging import judge_sets
from lit_align.data.needs import require
from lit_align.data.rounds import COUNTED, Round, RoundMaker, Sample
from lit_align.records import CandidateSet
from lit_align.sampling import SamplingRequest
from lit_align.seeding import derive_seed

if TYPE_CHECKING:
    from lit_align.data.datamodule import AlignmentDataModule


class PolicyRounds:
    """Samples the policy for a data module, makes its on-policy rounds, and keeps their numbers.

    Args:
        data: whose rounds they are; its Trainer's module has the policy.
    """

    def __init__(self, data: AlignmentDataModule) -> None:
        self._data = data

    def sample(
        self,
        sets: Sequence[CandidateSet],
        *purpose: str | int,
        num_candidates: int | None = None,
        desc: str = "sampling",
    ) -> list[CandidateSet]:
        """See :meth:`AlignmentDataModule.sample`."""
        data, sampler = self._data, self._data.sampler
        require("sampling", sampler=sampler)
        assert sampler is not None
        if not sets:
            return []
        module = data.run.module
        if module is None:
            raise RuntimeError(
                "sampling takes the policy from the Trainer's module: attach this data module to a Trainer"
            )
        prompt_ids = [data.encoder.encode_prompt(one.prompt) for one in sets]
        with data.run.bar(len(sets) * (num_candidates or sampler.num_candidates), desc, " answers") as bar:
            sampled = sampler.sample(
                SamplingRequest(
                    model=module.policy,
                    tokenizer=data.encoder.tokenizer,
                    prompt_ids=prompt_ids,
                    # By what the policy reads: not by place or rank, so that any number of processes samples alike.
                    seeds=[derive_seed(data.seed, "sample", *purpose, "prompt", *ids) for ids in prompt_ids],
                    stop_ids=data.encoder.stop_ids,
                    pad_id=data.encoder.pad_id,
                    num_candidates=num_candidates,
                    progress=bar.update,
                )
            )
        as_in_data = data.encoder.as_in_data
        return [
            replace(one, candidates=tuple(map(as_in_data, drawn))) for one, drawn in zip(sets, sampled, strict=True)
        ]

    def fresh(self, indices: Sequence[int], index: int) -> Round:
        """A round of new samples for some of the training prompts.

        Args:
            indices: of the prompts.
            index: the number of the round.
        """
        data = self._data
        return self._make([data.train_sets[i] for i in indices], index, data.run.step, self.sample)

    def offered(self, index: int) -> Round | None:
        """A round of what a measurement sampled, filled up to the sampler's number; None where nothing is on offer."""
        held_out = self._data.held_out_prompts
        if not held_out.on_offer:
            return None
        sets = held_out.on_offer
        reused = sum(len(one.candidates) for one in sets)
        made = self._make(sets, index, held_out.offered_at, self._filled_up, reused)
        held_out.withdraw()  # not before: a judge may fail
        held_out.spend([sets[position] for position in made.paired])
        return made

    def _filled_up(self, sets: Sequence[CandidateSet], *purpose: str | int) -> list[CandidateSet]:
        """Sets with as many candidates as those of a sampled round: pairs of few candidates teach less."""
        sampler = self._data.sampler
        assert sampler is not None
        lacking = sampler.num_candidates - min((len(one.candidates) for one in sets), default=sampler.num_candidates)
        if lacking <= 0:
            return list(sets)
        more = self.sample(sets, *purpose, num_candidates=lacking)
        return [
            replace(one, candidates=one.candidates + added.candidates) for one, added in zip(sets, more, strict=True)
        ]

    def _make(self, sets: Sequence[CandidateSet], index: int, step: int, sample: Sample, reused: int = 0) -> Round:
        data = self._data
        require("an on-policy round", sampler=data.sampler, judge=data.judge)
        maker = RoundMaker(sample, self._judge, data.selector, data.encoder, data.reference_feed.for_round, data.seed)
        made = maker.make(sets, index, step)
        data.round_stats = {**made.stats, "reused": reused}
        data.new_rounds.append(data.round_stats)
        data.counts.update({f"on_policy/{key}": int(data.round_stats[key]) for key in (*COUNTED, "reused")})
        data.counts["on_policy/rounds"] += 1
        return made

    def _judge(self, sets: Sequence[CandidateSet]) -> list[CandidateSet]:
        data = self._data
        assert data.judge is not None
        with data.run.bar(sum(len(one.candidates) for one in sets), "judging", " answers") as bar:
            return judge_sets(data.judge, sets, bar.update)
