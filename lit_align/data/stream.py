"""The endless micro-batches of a run: both sources, the scheduler between them, and the reference's log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.batch import PairBatch, TokenizedPair, collate
from lit_align.data.encoder import Encoder
from lit_align.data.packing import fingerprint
from lit_align.data.reference_feed import ReferenceFeed
from lit_align.data.resume import goes_on_alike
from lit_align.data.rounds import Rounds
from lit_align.data.scheduler import BatchScheduler, OffPolicySource, OnPolicySource
from lit_align.data.selection import PairSelector
from lit_align.data.static import Static
from lit_align.data.trainer_view import TrainerView
from lit_align.judges import Judge
from lit_align.sampling import Sampler


class PairStream:
    """Gives micro-batches, the same for the same seed and state.

    Args:
        static: the data as they were read.
        encoder: tokenises prompts and sampled answers.
        selector: makes pairs of sampled answers.
        judge: scores them.
        sampler: draws them.
        run: the Trainer as it is.
        batch_size: pairs a micro-batch and device.
        batch_tokens: the most tokens of a micro-batch, whose pairs then differ in number; None goes by pairs.
        val_batch_size: the same as `batch_size` for the held-out pairs.
        micro_batches: of an epoch.
        round_prompts: prompts an on-policy round.
        reference_cache: the folder of the reference's log-probs; None keeps none.
        seed: the run's seed.

    Attributes:
        rounds: samples the policy and makes on-policy rounds.
        reference: gives pairs their reference log-probs.
        off: the static pairs that are trained on: all of them, or those that `overfit_batches` takes.
        on: the pairs of on-policy rounds.
    """

    def __init__(
        self,
        static: Static,
        encoder: Encoder,
        selector: PairSelector,
        judge: Judge | None,
        sampler: Sampler | None,
        run: TrainerView,
        *,
        batch_size: int,
        batch_tokens: int | None,
        val_batch_size: int,
        micro_batches: int,
        round_prompts: int,
        reference_cache: str | None,
        seed: int,
    ) -> None:
        first = run.limit_overfit(micro_batches)
        pairs = static.pairs if first is None else static.pairs[: first * batch_size * run.world]
        self.off = OffPolicySource(pairs, seed, shuffled=first is None)
        self.reference = ReferenceFeed(
            run, reference_cache, self.off, static.pairs, static.val_pairs, batch_size, val_batch_size,
            encoder.pad_id, None if sampler is None else round_prompts,
        )  # fmt: skip
        self.rounds = Rounds(
            static.sets, static.prompts, sampler, judge, selector, encoder, self.reference.add_to_round, run, seed
        )
        self.on = OnPolicySource(
            len(static.sets), round_prompts, seed, self.rounds.make_sampled, self.rounds.make_measured
        )
        self._scheduler = BatchScheduler(
            self.off, self.on, batch_size, seed, run, self.reference.before_static, batch_tokens
        )
        self._held_out = static.prompts
        self._pad_id = encoder.pad_id
        self._fingerprint = fingerprint(pairs, static.sets)
        self._seed = seed
        self._run = run

    @property
    def delivered(self) -> int:
        """Micro-batches given so far."""
        return self._scheduler.delivered

    @property
    def settings(self) -> dict[str, int | None]:
        """What the pairs of a step depend on, beside the data."""
        run = self._run
        dealt = self._scheduler
        of_batches = {"batch_size": dealt.batch_size, "batch_tokens": dealt.batch_tokens}
        return {"seed": self._seed, "world_size": run.world, "accumulation": run.accumulation, **of_batches}

    def next_batch(self, on_policy_share: float) -> PairBatch:
        """The next micro-batch of this rank. Makes an on-policy round if one is due.

        Args:
            on_policy_share: share of on-policy pairs, in [0, 1].
        """
        self.rounds.begin_micro_batch()
        batch = self._collate(self._scheduler.next_pairs(on_policy_share))
        batch.weight = len(batch) / self._scheduler.batch_size
        return batch

    def collate_held_out(self, pairs: Sequence[TokenizedPair]) -> PairBatch:
        """A batch of held-out pairs."""
        self.reference.before_held_out()
        return self._collate(pairs)

    def _collate(self, pairs: Sequence[TokenizedPair]) -> PairBatch:
        return collate(pairs, self._pad_id, list(map(self.reference.logps_of, pairs)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides which pairs come next, in plain types and tensors."""
        return {
            "fingerprint": self._fingerprint,
            "settings": self.settings,
            "dealt": self._scheduler.state_dict(),
            "held_out": self._held_out.state_dict(),
            **self.rounds.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from where `state` was taken.

        Raises:
            ValueError: if it was taken with other training pairs.
        """
        alike = goes_on_alike(state, self._fingerprint, self.settings)
        self._scheduler.load_state_dict(state["dealt"], amid_step=alike)
        self._held_out.load_state_dict(state["held_out"])
        self.rounds.load_state_dict(state)
