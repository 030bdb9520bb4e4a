"""The callback that measures the stage inside a running fit and swaps the source of data."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, ClassVar, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lit_align.boundary import record
from lit_align.boundary.budget import MeasuringBudget, expected_seconds
from lit_align.boundary.data import data_of, draw, follow, judge_of, require_restored
from lit_align.boundary.meaning import SIDES
from lit_align.boundary.measurement import Measurement, MeasurementOutcome, Sides
from lit_align.boundary.needs import may_ask_for_samples, require_decisions, require_held_out, require_parts
from lit_align.boundary.result import BOUNDARY, BoundaryResult, Decision
from lit_align.boundary.sequential import require_alpha, require_threshold
from lit_align.boundary.shortage import shortage
from lit_align.boundary.switch import Choice, ReasonedShare, Switch, Undecided, as_decision, without_information
from lit_align.checks import require_at_least_1, require_not_negative
from lit_align.clock import timed
from lit_align.console import note
from lit_align.data.datamodule import AlignmentDataModule
from lit_align.data.needs import refuse_to_overfit
from lit_align.judges.base import Judge
from lit_align.policy.modes import in_eval_mode
from lit_align.ranks import own_share
from lit_align.records import CandidateSet
from lit_align.training.refresh import require_refreshable


@dataclass(eq=False, repr=False)
class BoundaryCallback(Callback):
    """Measures the boundary score every N optimizer steps and trains on the source that the stage asks for.

    This is the paper's schedule (Algorithm 1 of arXiv 2508.10530): below 0.5 off-policy pairs, from 0.5 on
    pairs sampled from the policy. The first decision comes before the first batch; each takes effect at
    exactly the next micro-batch, and an interval around the score, patience and a hysteresis band keep
    noise from deciding (:class:`Switch` says precisely how).

    A measurement samples and judges held-out prompts batch by batch and stops as soon as 0.5 is outside an
    interval that is valid at any time (:class:`SequentialTest`), or at `max_prompts`: then the stage is the
    better guess, undecided. Its samples become the next on-policy round, so that they are
    not sampled for nothing where the decision is for on-policy pairs.

    A schedule of one's own overrides one of these; the effect (swap, log, remember) stays as it is:

    - `on_policy_share(result, history)`: the share of on-policy pairs for a measured score;
    - `decide(step, result, history)`: the same with the step at hand, for schedules that need no score;
    - `should_measure(step)`, `should_decide(step)`: when; `self.history` has the decisions so far;
    - `measure(trainer, pl_module)`, `both_sides(...)`: how.

    Its constructor takes what is its own and hands `**kwargs` on: all of these remain arguments of it.

    Args:
        every_n_steps: optimizer steps between measurements; None measures never, for schedules without a score.
        max_prompts: held-out prompts a measurement at most, drawn anew each time; 2,000 in the paper.
        num_candidates: answers sampled for each prompt; None takes the sampler's own number.
        judge: stands for the true preference; None takes the data module's.
        patience: measurements in a row that must ask for a change before it is made.
        hysteresis: a stage is left only if the score passes the threshold by this much, in [0, 0.5).
        undecided: while the threshold is inside the interval, "follow" the score all the same, or "stay": steadier, and
            late where `max_prompts` is small (docs/evidence.md). On fewer than 32 prompts it is not followed: a first
            measurement then takes static pairs, a later one changes nothing.
        alpha: the chance of error, in (0, 1): that an interval misses the true score.
        sequential: stop a measurement once it is decided; false takes `max_prompts` prompts in any case, with
            an interval for a fixed number of prompts.
        graded: the score goes by how much better an answer is, in units of the range of its prompt's scores, and not
            only by votes (docs/measurement.md).
        threshold: the score from which pairs are on-policy, in (0, 1); 0.5 is the paper's (docs/evidence.md).
        batch_prompts: prompts that are sampled and judged, by all processes together, before the test is asked again;
            several times the number of processes keeps each of them busy.
        max_share_of_training: time of measuring over time of training, such as 0.02: a due measurement waits
            for the next due step rather than exceed it, the first one excepted; None is no limit.
        refresh_reference: make the current policy the reference when the stage switches.
        samples_to_keep: prompts whose answers and scores each measurement keeps in `samples.jsonl`.
    """

    sides: ClassVar[tuple[str, str]] = SIDES
    """Who is compared, in words."""

    every_n_steps: int | None = 50
    max_prompts: int = 2000
    num_candidates: int | None = None
    judge: Judge | None = None
    patience: int = 1
    hysteresis: float = 0.0
    undecided: Undecided = "follow"
    alpha: float = 0.05
    sequential: bool = True
    graded: bool = False
    threshold: float = BOUNDARY
    batch_prompts: int = 32
    max_share_of_training: float | None = None
    refresh_reference: bool = False
    samples_to_keep: int = 8

    def __post_init__(self) -> None:
        self.switch = Switch(self.patience, self.hysteresis, self.undecided)
        self.budget = MeasuringBudget(self.max_share_of_training)
        self.draw_seed: int | None = None  # set by `lit-align measure --seed`; None: only the data's seed
        self.history: list[Decision] = []
        self._resumed = False
        self._has_static_pairs = True
        self._considered: int | None = None
        self._require_in_range()

    # -- what a schedule overrides

    def should_measure(self, step: int) -> bool:
        """Whether the score is measured after optimizer step `step` (0: before the first)."""
        return self.every_n_steps is not None and step % self.every_n_steps == 0

    def should_decide(self, step: int) -> bool:
        """Whether the share is decided after optimizer step `step`; without a measurement unless one is due."""
        return self.should_measure(step)

    def on_policy_share(self, result: BoundaryResult, history: Sequence[Decision]) -> float:
        """The share of on-policy pairs from here on, in [0, 1], after a measurement that told answers apart.

        Args:
            result: the measurement at hand.
            history: the decisions before it, oldest first.
        """
        return ReasonedShare(self.switch.choose(result, history))

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice | None:
        """The share from here on, with the reason in words; None leaves things as they are.

        Args:
            step: the optimizer step after which it holds.
            result: the measurement at hand; None if none was due, or if it has to wait for the time it may take.
            history: the decisions before it, oldest first.
        """
        if result is None and self.should_measure(step):
            return None  # it waits
        if result is None:
            raise ValueError(
                f"{type(self).__name__} decides on a score, but none was measured at step {step}: "
                "where should_decide is true, should_measure must be, too, or decide() must do without"
            )
        if not result.informative:
            return without_information(history, self._has_static_pairs)
        if not history and not result.tells and not self._has_static_pairs:
            return without_information(history, False, f"on {result.prompts} prompts, without static pairs")
        share = self.on_policy_share(result, history)
        if isinstance(share, ReasonedShare):
            return share.choice
        return Choice(share, f"{type(self).__name__} at score {result.score:.3f}")

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> MeasurementOutcome:
        """Samples the current policy on held-out prompts and judges its answers against the static ones.

        Under DDP each rank takes its share of each batch; all stop at the same one with the same result, which
        is that of one process up to rounding.
        """
        data = data_of(trainer)
        step = trainer.global_step
        seed = () if self.draw_seed is None else ("seed", self.draw_seed)
        purpose: tuple[str | int, ...] = ("boundary", step, *seed)
        prompts = draw(data, self.max_prompts, "prompts", *purpose)
        measurement = Measurement(
            judge_of(self.judge, data), self.alpha, self.sequential, self.graded, data.held_out_prompts.labels,
            self.threshold,
        )  # fmt: skip
        fresh: list[CandidateSet] = []
        for start in range(0, len(prompts), self.batch_prompts):
            end = min(start + self.batch_prompts, len(prompts))
            static = own_share(prompts[start:end])
            desc = f"boundary: prompts {start + 1} to {end} of {len(prompts)}"
            sides = Sides(*self.both_sides(trainer, static, *purpose, desc=desc))
            measurement.add(sides.on, sides.off)
            fresh += sides.fresh
            if measurement.done:
                break
        result = measurement.result("budget" if len(prompts) == self.max_prompts else "pool")
        return MeasurementOutcome(result, fresh, measurement.judged)

    @timed("measuring")
    def measure_isolated(self, trainer: Trainer, pl_module: LightningModule) -> MeasurementOutcome:
        """Measures, leaves the random state as it was, and says how long it took.

        Raises:
            TypeError: :meth:`measure` returns something else than a `MeasurementOutcome`.
        """
        began = perf_counter()
        with isolate_rng():
            outcome = self.measure(trainer, pl_module)
        if not isinstance(outcome, MeasurementOutcome):
            raise TypeError(
                f"{type(self).__name__}.measure() must return a MeasurementOutcome, got {type(outcome).__name__}: "
                "return what super().measure() returns, or MeasurementOutcome(result)"
            )
        return replace(outcome, result=replace(outcome.result, seconds=perf_counter() - began))

    def both_sides(self, trainer: Trainer, static: Sequence[CandidateSet], *purpose: str | int, desc: str) -> Sides:
        """The candidates that a measurement compares on one batch of prompts: the policy's own, and the static ones.

        Args:
            trainer: of the run.
            static: this rank's prompts of the batch with their static candidates; none on some ranks at the end.
            purpose: what the samples are for: with the run's seed it makes the seed.
            desc: label of the progress bar.
        """
        fresh = self.sample(trainer, static, *purpose, desc=desc)
        return Sides(fresh, static, fresh)

    def sample(
        self, trainer: Trainer, sets: Sequence[CandidateSet], *purpose: str | int, desc: str
    ) -> list[CandidateSet]:
        """Fresh candidates of the policy as it is, `num_candidates` for each prompt. All ranks call it."""
        with in_eval_mode(trainer.lightning_module):
            return data_of(trainer).sample(sets, *purpose, num_candidates=self.num_candidates, desc=desc)

    def say_what_is_short(self, trainer: Trainer) -> None:
        """Prints a line where the prompts to measure on are too few to decide a usual score."""
        if not trainer.is_global_zero:
            return
        short = shortage(data_of(trainer), self.max_prompts, self.alpha, self.sequential, self.threshold)
        if short is not None:
            note(f"boundary: {short}")

    def with_settings(self, **settings: object) -> BoundaryCallback:
        """A copy that measures by other settings, such as `alpha=0.1` or `draw_seed=1`; None keeps this one's.

        Raises:
            ValueError: a setting is out of range.
        """
        callback = copy(self)
        for name, value in settings.items():
            setattr(callback, name, getattr(self, name) if value is None else value)
        callback._require_in_range()
        return callback

    def _require_in_range(self) -> None:
        require_at_least_1(
            every_n_steps=self.every_n_steps,
            max_prompts=self.max_prompts,
            batch_prompts=self.batch_prompts,
            num_candidates=self.num_candidates,
        )
        require_not_negative(samples_to_keep=self.samples_to_keep)
        require_alpha(self.alpha)
        require_threshold(self.threshold)

    def seconds_to_come(self, step: int, last_step: int) -> float:
        """Estimates the wall time of the measurements after `step`, for the progress bar."""
        return expected_seconds(self.history, self.should_measure, range(step + 1, last_step + 1))

    # -- what it asks of the data, which call this before a model is loaded

    def check_data(self, data: AlignmentDataModule, trainer: Trainer) -> None:
        """Raises a ValueError if the data module was not given what a fit with this schedule takes."""
        schedule = type(self).__name__
        measures = self.every_n_steps is not None
        require_decisions(self.should_decide, trainer.max_steps, schedule)
        if measures or may_ask_for_samples(self.should_decide, self.decide, trainer.max_steps):
            require_parts(data, schedule, measures)
        if data.run.overfits:
            raise refuse_to_overfit(f"the boundary ({schedule})")

    def check_held_out(self, data: AlignmentDataModule) -> None:
        """Raises a ValueError if the data, once they are read, leave nothing to measure on."""
        if self.every_n_steps is not None:
            require_held_out(data, type(self).__name__)

    # -- when: hooks of Lightning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts a fit; a state that is resumed is loaded after this."""
        if stage == "fit":
            self._resumed = False
            self._considered = None
            if self.refresh_reference:
                require_refreshable(pl_module, "refresh_reference")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides before the first batch; a resumed run has decided already at its step."""
        data = data_of(trainer)
        if trainer.ckpt_path is not None:
            require_restored(data, self._resumed)
        elif trainer.global_step == 0:
            self.history.clear()
            self.budget.reset()
            if self.every_n_steps is not None:
                self.say_what_is_short(trainer)
        self.budget.start()
        self._has_static_pairs = bool(data.train_pairs)
        self._decide_if_due(trainer, pl_module)

    def on_resume_at_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the last decision, if the run was stopped before it."""
        self.on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Decides after an optimizer step, once: inside an accumulation `global_step` stands still."""
        self._decide_if_due(trainer, pl_module)

    @property
    def state_key(self) -> str:
        """Fixed, so that a renamed schedule finds its state."""
        return "BoundaryCallback"

    def state_dict(self) -> dict[str, Any]:
        """The decisions and the time spent, as plain types."""
        return {"history": [decision.record() for decision in self.history], "budget": self.budget.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the decisions of the checkpoint."""
        self.history = [Decision.from_record(record) for record in state_dict["history"]]
        self.budget.load_state_dict(state_dict["budget"])
        self._resumed = True

    # -- the effect

    def _decide_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == self._considered or (self.history and self.history[-1].step == step):
            return
        self._considered = step
        if not self.should_decide(step):
            return
        measuring = self.should_measure(step) and self.budget.affords_on_all_ranks(trainer)
        outcome = self.measure_isolated(trainer, pl_module) if measuring else None
        result = None if outcome is None else outcome.result
        if result is not None:
            self.budget.spend(result.seconds)
        share = self.budget.share if step else None  # at the start there is no training to set it against
        choice = self.decide(step, result, self.history)
        if choice is None:
            return
        decision = trainer.strategy.broadcast(as_decision(step, result, choice, share))
        before = self.history[-1] if self.history else None
        self.history.append(decision)
        if trainer.is_global_zero:
            judged = () if outcome is None else outcome.judged
            record.keep(trainer, self.history, judged, self.samples_to_keep)
        follow(data_of(trainer), before, decision, None if outcome is None else outcome.candidates)
        if self.refresh_reference and before is not None and before.stage != decision.stage:
            cast(Any, pl_module).refresh_reference()
