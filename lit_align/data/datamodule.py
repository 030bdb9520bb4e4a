"""The data of a run: static pairs, on-policy rounds, and which of the two comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_align.batch import PairBatch, TokenizedPair
from lit_align.checks import require_at_least_1, require_shares
from lit_align.console import note
from lit_align.data.encoder import Encoder, TooLong
from lit_align.data.held_out import HeldOut
from lit_align.data.loader import TrainFeed, held_out_loader
from lit_align.data.needs import (
    judges_in,
    refuse_to_overfit,
    require,
    require_different_answers,
    require_held_out_pairs,
    require_known_tokens,
    require_pairs,
    require_positions,
    require_room_to_answer,
)
from lit_align.data.resume import parse_date
from lit_align.data.rounds import Stats
from lit_align.data.row_trace import RowTrace
from lit_align.data.selection import BestWorst, PairSelector
from lit_align.data.static import PairMaker, make_static
from lit_align.data.stream import PairStream
from lit_align.data.token_budget import demand_cuttable
from lit_align.data.trainer_view import TrainerView
from lit_align.judges import Judge
from lit_align.policy.template_values import fix_date, writes_date
from lit_align.records import CandidateSet
from lit_align.rows.loading import OnBadRow, Source
from lit_align.rows.reading import RowSource, demand_places, describe_source, require_splits
from lit_align.sampling import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(eq=False, repr=False)
class AlignmentDataModule(LightningDataModule):
    """Preference pairs from two sources, off-policy (files, hub) and on-policy (sampled, judged, paired).

    The same seed and the same state give the same batches. All state is in :meth:`state_dict`; no order and
    no draw depends on the global random state. Every rank draws the source of each slot of a micro-batch
    alike and takes its own pairs from it.

    Args:
        train: training rows: files (JSON, JSONL, CSV, Parquet, also .gz; globs), folders or hub ids; in Python also
            the rows themselves, as mappings or a `datasets.Dataset`.
        val: held-out rows, given in the same way. Training rows of the same prompts are dropped and counted; blanks,
            letter case and Unicode form make no other prompt.
        split: the split of a hub data set.
        val_split: the split of `val`, by default `split`. Without `val`, that split of `train` is held out.
        name: the configuration of a hub data set.
        val_fraction: share of the training prompts to hold out if there is no `val`, in [0, 1).
        batch_size: pairs a micro-batch and device.
        batch_tokens: the most tokens of a micro-batch. A step's pairs, `batch_size` x `accumulate_grad_batches`, are
            then cut into its micro-batches by tokens, of whole pairs, with the same loss; null cuts them by number.
        val_batch_size: the same as `batch_size` for the held-out pairs, by default `batch_size`.
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
        boundary_fraction: the share of the held-out prompts to measure the boundary on, in [0, 1), chosen by a hash of
            the prompt; prompts that are alike stay together. Answers sampled for a measurement may be trained on; the
            other prompts, those of the val pairs and the win rate, are only evaluated on. With 0, or no sampler, all
            held-out prompts serve both uses, and no answer to them is trained on.
        reference_cache: the folder where the reference's log-probs of static pairs are kept from run to run, at 4
            bytes a completion token and 20 a completion; "auto" is `reference` in the cache folder
            (`$LIT_ALIGN_CACHE` or `~/.cache/lit-align`). null keeps none, and the reference runs at each step.
        seed: seed of every draw.
        date: what a chat template writes for today, such as 2026-11-29 or 2026-11-29 08:00; null is the time at which
            the run began, which its checkpoints keep.

    Attributes:
        train_sets: the training prompts with their static candidates, one set for each prompt.
        held_out: the same of the held-out prompts.
        train_pairs: the tokenised static pairs.
        val_pairs: the same, held out.
        val_rows: the row that each of them came from, and the held-out rows that gave none.
        held_out_prompts: which of the held-out prompts are measured on, and which evaluated on.
        restored: whether the state comes from a checkpoint.
    """

    train: RowSource
    val: RowSource | None = None
    _: KW_ONLY
    split: str = "train"
    val_split: str | None = None
    name: str | None = None
    val_fraction: float = 0.0
    batch_size: int = 4
    batch_tokens: int | None = None
    val_batch_size: int | None = None
    max_prompt_tokens: int | None = 512
    max_completion_tokens: int | None = 512
    too_long: TooLong = "drop"
    on_bad_row: OnBadRow = "error"
    selector: PairSelector | None = None
    judge: Judge | None = None
    relabel: bool = False
    sampler: Sampler | None = None
    round_prompts: int = 64
    on_policy_share: float = 0.0
    boundary_fraction: float = 0.5
    reference_cache: str | None = "auto"
    seed: int = 0
    date: str | None = None

    encoder: Encoder = field(init=False)
    train_sets: list[CandidateSet] = field(init=False, default_factory=list)
    held_out: list[CandidateSet] = field(init=False, default_factory=list)
    train_pairs: list[TokenizedPair] = field(init=False, default_factory=list)
    val_pairs: list[TokenizedPair] = field(init=False, default_factory=list)
    val_rows: RowTrace = field(init=False, default_factory=RowTrace)
    held_out_prompts: HeldOut = field(init=False, default_factory=lambda: HeldOut([], frozenset()))
    restored: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        super().__init__()
        require_at_least_1(
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            val_batch_size=self.val_batch_size,
            round_prompts=self.round_prompts,
        )
        require_shares(val_fraction=self.val_fraction, boundary_fraction=self.boundary_fraction)
        if isinstance(self.train, Iterator):  # it can be read once, and a preview reads rows twice
            self.train = list(self.train)
        if self.val is None and self.val_split is not None:
            self.val = self.train
        self.start = None if self.date is None else parse_date(self.date)
        self.run = TrainerView(self._get_trainer)
        self._static_counts: Counter[str] = Counter()
        self._stream: PairStream | None = None
        self._pending_state: dict[str, Any] | None = None
        self.set_on_policy_share(self.on_policy_share)

    def _get_trainer(self) -> Any:
        return self.trainer

    # Loading

    def setup(self, stage: str) -> None:
        """Reads, judges, pairs and tokenises, once.

        Raises:
            ValueError: if a callback of a fit needs a sampler, a judge or held-out prompts that are not there, or the
                data have tokens that the model does not know.
        """
        module = self.run.module
        if module is None:
            raise RuntimeError(
                "setup() takes the tokenizer from the Trainer's module; without one call prepare(tokenizer)"
            )
        if self._stream is None:
            demand_places(self.train, self.val)
        judges = [*judges_in(getattr(self.trainer, "callbacks", ()))] if stage == "fit" else []
        for judge in [*([self.judge] if self.judge is not None else []), *judges]:
            judge.demand_model()
        if stage == "fit":
            self._ask_callbacks("check_data", self.trainer)
            if self.run.overfits and self.on_policy_share > 0:
                raise refuse_to_overfit(f"an on-policy share of {self.on_policy_share:g}")
        if self._stream is None:
            self.prepare(module.tokenizer)
            pairs = [*self.train_pairs, *self.val_pairs]
            require_known_tokens(self.run.vocabulary_size, self.encoder, pairs, [*self.train_sets, *self.held_out])
            require_positions(*self.run.position_limit, pairs)
            if stage == "fit":
                require_room_to_answer(*self.run.position_limit, self._prompt_lengths(), self.sampler)
        if stage == "fit":
            self._ask_callbacks("check_held_out")
        if self.run.takes_held_out(stage):
            require_held_out_pairs(self.val_pairs)

    def _prompt_lengths(self) -> Iterator[int]:
        """The tokens of each prompt that answers may be sampled to."""
        yield from (len(pair.prompt) for pair in (*self.train_pairs, *self.val_pairs))
        for candidates in (*self.train_sets, *self.held_out):
            if not candidates.candidates:
                yield len(self.encoder.encode_prompt(candidates.prompt))

    def _ask_callbacks(self, check: str, *args: Any) -> None:
        """Calls a check of each callback of the run that asks something of its data."""
        for callback in getattr(self.trainer, "callbacks", ()):
            if hasattr(callback, check):
                getattr(callback, check)(self, *args)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Does the same as :meth:`setup`, with a tokenizer and without a Trainer."""
        self.encoder = self.make_encoder(tokenizer)
        run = self.run
        maker = PairMaker(
            self.encoder, self.pair_selector, self.judge, self.relabel, self.on_bad_row, self.seed, run.bar,
            run.needs_target,
        )  # fmt: skip
        boundary_fraction = self.boundary_fraction if self.sampler is not None else 0.0
        static = make_static(
            *self.sources(), self.val_fraction, boundary_fraction, maker, self._static_counts, run.shows_bars
        )
        self.train_pairs = static.pairs
        self.train_sets = static.sets
        self.val_pairs = static.val_pairs
        self.held_out = static.held_out
        self.held_out_prompts = static.prompts
        self.val_rows = static.val_rows
        if self.sampler is None or not self.train_sets:
            require_pairs(self.train_pairs, describe_source(self.train), self.counts, self.pair_selector)
        if self.held_out_prompts.boundary_sets and run.rank == 0:
            note(str(self.held_out_prompts))
        self._stream = PairStream(
            static, self.encoder, self.pair_selector, self.judge, self.sampler, run, batch_size=self.batch_size,
            batch_tokens=self.batch_tokens, val_batch_size=self.val_batch_size or self.batch_size,
            micro_batches=self.micro_batches_per_epoch, round_prompts=self.round_prompts,
            reference_cache=self.reference_cache, seed=self.seed,
        )  # fmt: skip
        if run.overfits:
            self._static_counts["outside_overfit_batches"] = len(static.pairs) - len(self._stream.off.pairs)
        if self._pending_state is not None:
            self.load_state_dict(self._pending_state)

    def make_encoder(self, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """Makes the encoder of this run: a template that writes today's date writes the date of the run."""
        self.start = self.start or self.run.find_start(type(self).__qualname__, writes_date(tokenizer))
        limits = (self.max_prompt_tokens, self.max_completion_tokens, self.too_long)
        return Encoder(fix_date(tokenizer, self.start), *limits, self.run.stop_ids)

    @property
    def pair_selector(self) -> PairSelector:
        """The `selector`, or the default one."""
        return BestWorst() if self.selector is None else self.selector

    def sources(self) -> tuple[Source, Source | None]:
        """Where the training and the held-out rows come from; None if the latter are a share of the former.

        Raises:
            ValueError: if `split` or `val_split` is not there, or both are the same.
        """
        prompts_alone = self.sampler is not None and self.judge is not None
        require_splits(self.train, self.split, self.val_split or self.split if self.val is self.train else None)
        train = Source(self.train, self.split, self.name, self.on_bad_row, prompts_alone)
        return train, None if self.val is None else replace(train, rows=self.val, split=self.val_split or self.split)

    # Loaders

    @property
    def micro_batches_per_epoch(self) -> int:
        """Micro-batches that show each static pair at least once, in whole optimizer steps."""
        size = len(self.train_pairs) or len(self.train_sets)
        batches = -(-size // (self.batch_size * self.run.world))
        return -(-batches // self.run.accumulation) * self.run.accumulation

    def train_dataloader(self) -> TrainFeed:
        """The feed of training batches of :class:`~lit_align.batch.PairBatch`."""
        demand_cuttable(self.batch_tokens, self.run)
        return TrainFeed(self)

    def val_dataloader(self) -> list[DataLoader[PairBatch]]:
        """The held-out pairs in the order of the data; none: no loader.

        Under DDP every rank gets as many; the last may get one that does not count (:class:`PairBatch`).
        """
        if not self.val_pairs:
            return []
        shard = (self.run.rank, self.run.world)
        return [
            held_out_loader(
                self.val_pairs, self.val_batch_size or self.batch_size, *shard, self.stream.collate_held_out
            )
        ]

    def test_dataloader(self) -> list[DataLoader[PairBatch]]:
        """The held-out pairs."""
        require_held_out_pairs(self.val_pairs)
        return self.val_dataloader()

    predict_dataloader = test_dataloader

    # Numbers

    @property
    def counts(self) -> Counter[str]:
        """Rows and pairs that were read, dropped, cut and kept: `val/...` held out, `on_policy/...` in rounds."""
        return Counter({**self._static_counts, **(self._stream.rounds.counts if self._stream else {})})

    @property
    def round_stats(self) -> Stats:
        """The numbers of the last on-policy round, see :class:`~lit_align.data.rounds.Rounds`."""
        return self._stream.rounds.stats if self._stream else {}

    @property
    def new_rounds(self) -> list[Stats]:
        """The numbers of each round that was made for the micro-batch at hand."""
        return self._stream.rounds.new if self._stream else []

    # Which pair comes next

    @property
    def stream(self) -> PairStream:
        """The micro-batches of the run, once the data are read."""
        if self._stream is None:
            raise RuntimeError("the data are not read yet: call setup(), or prepare(tokenizer) without a Trainer")
        return self._stream

    @property
    def delivered(self) -> int:
        """Micro-batches delivered so far."""
        return self._stream.delivered if self._stream else 0

    def set_on_policy_share(self, share: float) -> None:
        """Acts on the very next micro-batch; amid the accumulation of a sorted optimizer step, on the next step.

        Raises:
            ValueError: if `share` is not in [0, 1], or above 0 without a sampler and a judge.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"expected an on-policy share in [0, 1], got {share}")
        if share > 0:
            require("on-policy pairs", sampler=self.sampler, judge=self.judge)
            require_different_answers(self.sampler)
        else:
            self.held_out_prompts.clear_queue()
        self.on_policy_share = float(share)

    @property
    def measured_on(self) -> Sequence[CandidateSet]:
        """The held-out prompts that the boundary may be measured on: set apart for it, and not trained on."""
        return self.held_out_prompts.measured_on

    @property
    def evaluated_on(self) -> Sequence[CandidateSet]:
        """The held-out prompts of the val pairs and the win rate, never measured on and never trained on."""
        return self.held_out_prompts.evaluated_on

    def queue_round(self, sets: Sequence[CandidateSet]) -> None:
        """Makes the next on-policy round of candidates that were sampled for a measurement.

        They are filled up to the sampler's number, the data's judge scores them, and they become pairs as sampled ones
        do. A later call takes the place of one that was not used, and so does a share of 0.

        Args:
            sets: fresh candidates for prompts of `measured_on`; under DDP the caller's share, and each rank calls it.
        """
        self.held_out_prompts.queue(sets, self.run.step)

    def request_round(self) -> None:
        """The next on-policy pair comes from a fresh round; what is left of the current one is dropped."""
        self.stream.on.request_round()

    def next_batch(self) -> PairBatch:
        """The next micro-batch of this rank. Makes an on-policy round if one is due.

        The pairs of an optimizer step are sorted by length if the loss allows it, see
        :class:`~lit_align.data.scheduler.BatchScheduler`.
        """
        if self.on_policy_share < 1:
            require_pairs(self.train_pairs, describe_source(self.train), self.counts, self.pair_selector)
        return self.stream.next_batch(self.on_policy_share)

    def sample(
        self,
        sets: Sequence[CandidateSet],
        *purpose: str | int,
        num_candidates: int | None = None,
        desc: str = "sampling",
    ) -> list[CandidateSet]:
        """Fresh candidates of the current policy for the prompts of `sets`, with a progress bar.

        Args:
            sets: the prompts, such as `measured_on`; under DDP the caller's share of them.
            purpose: what the samples are for: with the run's seed it makes the seed.
            num_candidates: candidates a prompt; None takes the sampler's number.
            desc: the bar's label.
        """
        return self.stream.rounds.sample(sets, *purpose, num_candidates=num_candidates, desc=desc)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, in plain types and tensors."""
        if self._stream is None:
            return self._pending_state or {}
        return {"start": str(self.start), "on_policy_share": self.on_policy_share, **self._stream.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from where `state_dict` was taken.

        Raises:
            ValueError: if it was taken with other training pairs.
        """
        if self._stream is None:
            self._pending_state = state_dict
            return
        self.go_back(state_dict)
        self.restored = True

    def go_back(self, state: dict[str, Any]) -> None:
        """Continues from where :meth:`state_dict` was taken in this run."""
        self.set_on_policy_share(state["on_policy_share"])
        self.stream.load_state_dict(state)
