"""The data of a run: static pairs, on-policy rounds, and which of the two comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from lit_align.batch import PairBatch
from lit_align.data.encoder import Encoder, TokenizedPair, TooLong
from lit_align.data.judging import judge_sets
from lit_align.data.loader import TrainFeed, collate
from lit_align.data.loading import OnBadRow
from lit_align.data.reference_feed import ReferenceFeed
from lit_align.data.rounds import COUNTED, Round, RoundMaker
from lit_align.data.selection import BestWorst, PairSelector
from lit_align.data.sources import OffPolicySource, OnPolicySource, fingerprint
from lit_align.data.static import PairMaker, Source, load_parts
from lit_align.judges import Judge
from lit_align.records import CandidateSet
from lit_align.sampling import Sampler
from lit_align.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AlignmentDataModule(LightningDataModule):
    """Preference pairs from two sources, off-policy (files, hub) and on-policy (sampled, judged, paired).

    The same seed and the same state give the same batches. All state is in :meth:`state_dict`; no order and
    no draw depends on the global random state. Every rank draws the source of each slot of a micro-batch
    alike and takes its own pairs from it.

    Args:
        train: training rows: files (JSON, JSONL, CSV, Parquet, also .gz; globs), folders or hub ids.
        val: held-out rows, likewise. Training rows whose prompt is held out are dropped and counted.
        split: the split of a hub data set.
        val_split: the split of `val`, by default `split`. Without `val`, that split of `train` is held out.
        name: the configuration of a hub data set.
        val_fraction: share of the training prompts to hold out where no held-out rows are given, in [0, 1).
        batch_size: pairs a micro-batch and device.
        val_batch_size: the same for the held-out pairs, by default `batch_size`.
        max_prompt_tokens: the longest prompt in tokens, template included; null for no limit.
        max_completion_tokens: the longest completion in tokens; a pair with a longer one is dropped and counted.
        too_long: "drop" the pair of a longer prompt, or "cut_prompt" from the left; both are counted.
        on_bad_row: "error" names file and row; "skip" counts.
        selector: makes pairs of scored candidates, by default best against worst.
        judge: scores candidates without scores, and those that are sampled.
        relabel: score all static pairs and candidates with the judge before pairing, as the paper does.
        sampler: draws candidates from the policy.
        round_prompts: prompts an on-policy round (M).
        on_policy_share: share of on-policy pairs at the start, in [0, 1]; a callback may change it.
        reference_cache: the folder where the reference's log-probs of static pairs are kept from run to run, at 4
            bytes a completion token and 20 a completion; "auto" is `reference` in the cache folder
            (`$LIT_ALIGN_CACHE` or `~/.cache/lit-align`). null keeps none, and the reference runs at each step.
        seed: seed of every draw.

    Attributes:
        counts: what was read, dropped, cut and kept; keys of held-out data begin with `val/`, those of
            on-policy rounds with `on_policy/`.
        round_stats: what the last on-policy round took, see :class:`~lit_align.data.rounds.Round`.
        train_sets: the training prompts with their static candidates, one set for each prompt.
        held_out: the same of the held-out prompts.
        train_pairs: the tokenised static pairs.
        val_pairs: the same, held out.
        delivered: micro-batches delivered so far.
        restored: whether the state comes from a checkpoint.
    """

    encoder: Encoder

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        *,
        split: str = "train",
        val_split: str | None = None,
        name: str | None = None,
        val_fraction: float = 0.0,
        batch_size: int = 4,
        val_batch_size: int | None = None,
        max_prompt_tokens: int | None = 512,
        max_completion_tokens: int | None = 512,
        too_long: TooLong = "drop",
        on_bad_row: OnBadRow = "error",
        selector: PairSelector | None = None,
        judge: Judge | None = None,
        relabel: bool = False,
        sampler: Sampler | None = None,
        round_prompts: int = 64,
        on_policy_share: float = 0.0,
        reference_cache: str | None = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for key, number in (("batch_size", batch_size), ("round_prompts", round_prompts)):
            if number < 1:
                raise ValueError(f"expected {key} to be at least 1, got {number}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"expected val_fraction in [0, 1), got {val_fraction}")
        self.train, self.val = train, val if val is not None or val_split is None else train
        self.split, self.val_split, self.name = split, val_split or split, name
        self.val_fraction = val_fraction
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.max_prompt_tokens, self.max_completion_tokens = max_prompt_tokens, max_completion_tokens
        self.too_long: TooLong = too_long
        self.on_bad_row: OnBadRow = on_bad_row
        self.selector = selector if selector is not None else BestWorst()
        self.judge, self.relabel, self.sampler = judge, relabel, sampler
        self.round_prompts, self.seed = round_prompts, seed
        self.reference_cache = reference_cache
        self._reference = ReferenceFeed(self)
        self.counts: Counter[str] = Counter()
        self.round_stats: dict[str, int | float] = {}
        self.train_sets: list[CandidateSet] = []
        self.held_out: list[CandidateSet] = []
        self.train_pairs: list[TokenizedPair] = []
        self.val_pairs: list[TokenizedPair] = []
        self.delivered = 0
        self.restored = False
        self._share = 0.0
        self._prepared = False
        self._pending_state: dict[str, Any] | None = None
        self.set_on_policy_share(on_policy_share)

    # Loading

    def setup(self, stage: str) -> None:
        """Reads, judges, pairs and tokenises, once."""
        if self._prepared:
            return
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if module is None:
            raise RuntimeError(
                "setup() takes the tokenizer from the Trainer's module; without one call prepare(tokenizer)"
            )
        self.prepare(module.tokenizer)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """What :meth:`setup` does, with a tokenizer and without a Trainer."""
        self.encoder = Encoder(tokenizer, self.max_prompt_tokens, self.max_completion_tokens, self.too_long)
        val_counts: Counter[str] = Counter()
        train, val = load_parts(
            *self._sources(), self.val_fraction, self.seed, self.counts, val_counts, self._shows_bars()
        )
        maker = PairMaker(
            self.encoder, self.selector, self.judge, self.relabel, self.on_bad_row, self.seed, self.progress
        )
        self.train_pairs, self.train_sets = maker.make(train, self.counts)
        self.val_pairs, self.held_out = maker.make(val, val_counts)
        self.counts.update({f"val/{key}": count for key, count in val_counts.items()})
        if not self.train_pairs and (self.sampler is None or not self.train_sets):
            raise self._no_pairs()
        self._off = OffPolicySource(self.train_pairs, self.seed)
        self._on = OnPolicySource(len(self.train_sets), self.round_prompts, self.seed, self._make_round)
        self._fingerprint = fingerprint(self.train_pairs, self.train_sets)
        self._prepared = True
        if self._pending_state is not None:
            self.load_state_dict(self._pending_state)

    def _sources(self) -> tuple[Source, Source | None]:
        train = Source(self.train, self.split, self.name, self.on_bad_row)
        return train, None if self.val is None else Source(self.val, self.val_split, self.name, self.on_bad_row)

    def _no_pairs(self) -> ValueError:
        counted = ", ".join(f"{key}: {count}" for key, count in self.counts.items() if count)
        return ValueError(
            f"expected training pairs in {self.train}, none is left ({counted}): look at limits and judge"
        )

    # Loaders

    @property
    def micro_batches_per_epoch(self) -> int:
        """Micro-batches that show each static pair at least once, in whole optimizer steps."""
        size = len(self.train_pairs) or len(self.train_sets)
        batches = -(-size // (self.batch_size * self._world()))
        accumulation = int(getattr(self.trainer, "accumulate_grad_batches", 1) or 1)
        return -(-batches // accumulation) * accumulation

    def train_dataloader(self) -> TrainFeed:
        """The feed of training batches of :class:`~lit_align.batch.PairBatch`."""
        return TrainFeed(self)

    def val_dataloader(self) -> list[DataLoader[PairBatch]]:
        """The held-out pairs in the order of the data; none: no loader.

        Under DDP every rank gets as many pairs, for which the first few may come twice.
        """
        if not self.val_pairs:
            return []
        sampler: DistributedSampler[TokenizedPair] | None = None
        if self._world() > 1:
            sampler = DistributedSampler(self.val_pairs, self._world(), self._rank(), shuffle=False)  # type: ignore[arg-type]
        return [
            DataLoader(
                self.val_pairs,  # type: ignore[arg-type]
                batch_size=self.val_batch_size,
                sampler=sampler,
                collate_fn=self._collate_held_out,
            )
        ]

    def test_dataloader(self) -> list[DataLoader[PairBatch]]:
        """The held-out pairs."""
        return self._required_val("test")

    def predict_dataloader(self) -> list[DataLoader[PairBatch]]:
        """The held-out pairs."""
        return self._required_val("predict")

    def _required_val(self, what: str) -> list[DataLoader[PairBatch]]:
        if not self.val_pairs:
            raise ValueError(f"{what} needs held-out pairs, got none: set the data's `val` or `val_fraction`")
        return self.val_dataloader()

    def _collate(self, pairs: Sequence[TokenizedPair]) -> PairBatch:
        return collate(pairs, self.encoder.pad_id, [self._reference.of(pair) for pair in pairs])

    def _collate_held_out(self, pairs: Sequence[TokenizedPair]) -> PairBatch:
        self._reference.before_held_out()
        return self._collate(pairs)

    def fill_reference(self) -> dict[str, Any]:
        """Computes and keeps the reference's log-probs of all static pairs that lack them, held-out ones included.

        Returns:
            `pairs`, `found`, `computed`, `seconds` and `folder`; nothing where the loss has no reference, or its
            log-probs are not kept.
        """
        return self._reference.fill_all()

    # Which pair comes next

    @property
    def on_policy_share(self) -> float:
        """Share of on-policy pairs in the coming micro-batches, in [0, 1]."""
        return self._share

    def set_on_policy_share(self, share: float) -> None:
        """Acts on the very next micro-batch.

        Raises:
            ValueError: if `share` is not in [0, 1], or above 0 without a sampler and a judge.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"expected an on-policy share in [0, 1], got {share}")
        if share > 0:
            self._require("on-policy pairs", "sampler", "judge")
        self._share = float(share)

    def upcoming(self, count: int) -> Sequence[TokenizedPair]:
        """The next `count` static pairs of all ranks, or all pairs where that is fewer."""
        return self._off.upcoming(count)

    def request_round(self) -> None:
        """The next on-policy pair comes from a fresh round; what is left of the current one is dropped."""
        self._on.fresh = True

    def next_batch(self) -> PairBatch:
        """The next micro-batch of this rank. Makes an on-policy round where one is due."""
        rank, world = self._rank(), self._world()
        draws = np.random.default_rng(derive_seed(self.seed, "mixture", self.delivered)).random(self.batch_size)
        from_policy = draws < self._share
        on_count = int(from_policy.sum())
        if on_count < self.batch_size and not self.train_pairs:
            raise self._no_pairs()
        if on_count:
            self._on.ensure(on_count * world)
        if on_count < self.batch_size:
            self._reference.before_static((self.batch_size - on_count) * world)
        on, off = self._on.take(on_count, rank, world), self._off.take(self.batch_size - on_count, rank, world)
        self.delivered += 1
        return self._collate([on.pop(0) if is_on else off.pop(0) for is_on in from_policy])

    def _make_round(self, indices: Sequence[int], index: int) -> Round:
        self._require("an on-policy round", "sampler", "judge")
        step = int(getattr(self.trainer, "global_step", 0))
        add_reference = self._reference.for_round
        maker = RoundMaker(self.sample, self._judge_with_bar, self.selector, self.encoder, add_reference, self.seed)
        made = maker.make([self.train_sets[i] for i in indices], index, step)
        self.round_stats = made.stats
        self.counts.update({f"on_policy/{key}": int(made.stats[key]) for key in COUNTED})
        self.counts["on_policy/rounds"] += 1
        return made

    def sample(
        self,
        sets: Sequence[CandidateSet],
        *purpose: str | int,
        num_candidates: int | None = None,
        desc: str = "sampling",
    ) -> list[CandidateSet]:
        """Fresh candidates of the current policy for the prompts of `sets`, with a progress bar.

        Args:
            sets: the prompts, such as `held_out`; under DDP the caller's share of them.
            purpose: what the samples are for: with the run's seed it makes the seed.
            num_candidates: candidates a prompt; None takes the sampler's number.
            desc: the bar's label.
        """
        self._require("sampling", "sampler")
        assert self.sampler is not None
        if not sets:
            return []
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if module is None:
            raise RuntimeError(
                "sampling takes the policy from the Trainer's module: attach this data module to a Trainer"
            )
        with self.progress(len(sets) * (num_candidates or self.sampler.num_candidates), desc, " answers") as bar:
            sampled = self.sampler.sample(
                module.policy,
                self.encoder.tokenizer,
                [self.encoder.encode_prompt(one.prompt) for one in sets],
                stop_ids=self.encoder.stop_ids,
                pad_id=self.encoder.pad_id,
                seed=derive_seed(self.seed, "sample", *purpose),
                num_candidates=num_candidates,
                progress=bar.update,
            )
        return [replace(one, candidates=tuple(drawn)) for one, drawn in zip(sets, sampled, strict=True)]

    def _judge_with_bar(self, sets: Sequence[CandidateSet]) -> list[CandidateSet]:
        assert self.judge is not None
        with self.progress(sum(len(one.candidates) for one in sets), "judging", " answers") as bar:
            return judge_sets(self.judge, sets, bar.update)

    def _require(self, what: str, *keys: str) -> None:
        missing = [key for key in keys if getattr(self, key) is None]
        if missing:
            raise ValueError(
                f"{what} need{'s' if what[-1] != 's' else ''} a {' and a '.join(missing)}: set "
                + " and ".join(f"`data.{key}`" for key in missing)
            )

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, in plain types and tensors."""
        if not self._prepared:
            return self._pending_state or {}
        return {
            "fingerprint": self._fingerprint,
            "settings": self._settings(),
            "on_policy_share": self._share,
            "delivered": self.delivered,
            "off_policy_cursor": self._off.cursor,
            "on_policy": self._on.state_dict(),
            "round_stats": dict(self.round_stats),
            "counts": {key: count for key, count in self.counts.items() if key.startswith("on_policy/")},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            ValueError: if it was taken with other training pairs.
        """
        if not self._prepared:
            self._pending_state = state_dict
            return
        if state_dict["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"the checkpoint was made with other data: expected {state_dict['fingerprint']}, "
                f"got {self._fingerprint}. "
                "Give the same rows, tokenizer, limits, selector and judge, or start a fresh run"
            )
        for key, now in self._settings().items():
            if (before := state_dict["settings"][key]) != now:
                rank_zero_warn(
                    f"the checkpoint was made with {key} {before}, now {now}: the run goes on, but not as before"
                )
        self._share = state_dict["on_policy_share"]
        self.delivered = state_dict["delivered"]
        self._off.cursor = state_dict["off_policy_cursor"]
        self._on.load_state_dict(state_dict["on_policy"])
        self.round_stats = dict(state_dict["round_stats"])
        self.counts |= Counter(state_dict["counts"])
        self.restored = True

    def _settings(self) -> dict[str, int]:
        return {"seed": self.seed, "batch_size": self.batch_size, "world_size": self._world()}

    # The Trainer, if there is one

    def progress(self, total: int | None, desc: str, unit: str) -> tqdm:
        """A bar with a rate: on rank 0 only, and off where the Trainer's own bar is off."""
        off = not self._shows_bars()  # the delay: no bar for what takes no time
        return tqdm(total=total, desc=desc, unit=unit, leave=False, dynamic_ncols=True, delay=0.5, disable=off)

    def _shows_bars(self) -> bool:
        return self.trainer is None or (
            self._rank() == 0 and getattr(self.trainer, "progress_bar_callback", None) is not None
        )

    def _rank(self) -> int:
        return int(getattr(self.trainer, "global_rank", 0))

    def _world(self) -> int:
        return int(getattr(self.trainer, "world_size", 1))
