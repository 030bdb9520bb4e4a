"""The callback that measures the stage inside a running fit and swaps the source of data."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm import tqdm

from lit_align.boundary import record
from lit_align.boundary.data import BoundaryData
from lit_align.boundary.measure import measure_sets, merged_by_prompt
from lit_align.boundary.result import BoundaryResult, Decision
from lit_align.boundary.switch import Choice, Switch, Undecided, as_decision
from lit_align.judges.base import Judge
from lit_align.records import CandidateSet, Stage
from lit_align.refresh import require_refreshable
from lit_align.sampling.modes import in_eval_mode
from lit_align.seeding import derive_seed


class BoundaryCallback(Callback):
    """Measures the boundary score every N optimizer steps and trains on the source that the stage asks for.

    This is the paper's schedule (Algorithm 1 of arXiv 2508.10530): below 0.5 off-policy pairs, from 0.5 on
    pairs sampled from the policy. The first decision comes before the first batch; each takes effect at
    exactly the next micro-batch, and an interval around the score, patience and a hysteresis band keep
    noise from deciding (:class:`Switch` says precisely how).

    A schedule of one's own overrides one of these; the effect (swap, log, remember) stays as it is:

    - `on_policy_share(result, history)`: the share of on-policy pairs for a measured score;
    - `decide(step, result, history)`: the same with the step at hand, for schedules that need no score;
    - `should_measure(step)`, `should_decide(step)`: when;
    - `measure(trainer, pl_module)`: how.

    Args:
        every_n_steps: optimizer steps between measurements; None measures never, for schedules without a score.
        max_prompts: held-out prompts a measurement, drawn anew each time; 2,000 in the paper.
        num_candidates: answers sampled for each prompt; None takes the sampler's own number.
        judge: stands for the true preference; None takes the data module's.
        patience: measurements in a row that must ask for a change before it is made.
        hysteresis: a stage is left only if the score passes 0.5 by this much, in [0, 0.5).
        undecided: while 0.5 is inside the interval, "stay" or "follow" the score all the same.
        confidence: of the interval, in (0, 1).
        refresh_reference: make the current policy the reference when the stage switches.
        samples_to_keep: prompts whose answers and scores each measurement keeps in `samples.jsonl`.
    """

    def __init__(
        self,
        every_n_steps: int | None = 50,
        max_prompts: int = 2000,
        num_candidates: int | None = None,
        judge: Judge | None = None,
        patience: int = 1,
        hysteresis: float = 0.0,
        undecided: Undecided = "stay",
        confidence: float = 0.95,
        refresh_reference: bool = False,
        samples_to_keep: int = 8,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1 optimizer step, got {every_n_steps}")
        if every_n_steps is None and type(self).decide is BoundaryCallback.decide:
            raise ValueError(f"{type(self).__name__} goes by the score: set every_n_steps to at least 1")
        if max_prompts < 1:
            raise ValueError(f"max_prompts must be at least 1, got {max_prompts}")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), such as 0.95, got {confidence}")
        self.every_n_steps = every_n_steps
        self.max_prompts = max_prompts
        self.num_candidates = num_candidates
        self.judge = judge
        self.switch = Switch(patience, hysteresis, undecided)
        self.confidence = confidence
        self.refresh_reference = refresh_reference
        self.samples_to_keep = samples_to_keep
        self.history: list[Decision] = []
        self._seen: list[tuple[CandidateSet, CandidateSet]] = []
        self._resumed = False

    # -- what a schedule overrides

    def should_measure(self, step: int) -> bool:
        """Whether the score is measured after optimizer step `step` (0: before the first)."""
        return self.every_n_steps is not None and step % self.every_n_steps == 0

    def should_decide(self, step: int) -> bool:
        """Whether the share is decided after optimizer step `step`; without a measurement unless one is due."""
        return self.should_measure(step)

    def on_policy_share(self, result: BoundaryResult, history: Sequence[Decision]) -> float:
        """The share of on-policy pairs from here on, in [0, 1], after a measurement.

        Args:
            result: the measurement at hand.
            history: the decisions before it, oldest first.
        """
        return self.switch.choose(result, history).share

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        """The share from here on, with the reason in words.

        Args:
            step: the optimizer step after which it holds.
            result: the measurement at hand; None where none was due.
            history: the decisions before it, oldest first.
        """
        if result is None:
            raise ValueError(
                f"{type(self).__name__} decides on a score, but none was measured at step {step}: "
                "where should_decide is true, should_measure must be, too, or decide() must do without"
            )
        if type(self).on_policy_share is BoundaryCallback.on_policy_share:
            return self.switch.choose(result, history)
        return Choice(self.on_policy_share(result, history), f"{type(self).__name__} at score {result.score:.3f}")

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> BoundaryResult:
        """Samples the current policy on held-out prompts and judges its answers against the static ones.

        Under DDP each rank takes its share of the prompts; all return the same result.
        """
        data, step = _data(trainer), trainer.global_step
        static = self._drawn(data, step)[trainer.global_rank :: trainer.world_size]
        purpose = ("boundary", step, trainer.global_rank)
        fresh = (
            data.sample(static, *purpose, num_candidates=self.num_candidates, desc="sampling (boundary)")
            if static
            else []
        )
        self._seen = list(zip(fresh, static, strict=True))[: self.samples_to_keep]
        return measure_sets(
            fresh,
            static,
            self._judge(data),
            self.confidence,
            device=pl_module.device if trainer.world_size > 1 else None,
            progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
        )

    # -- what the last decision was, for progress bars and reports

    @property
    def stage(self) -> Stage | None:
        """The stage in force; None before the first decision."""
        return Stage(self.history[-1].stage) if self.history else None

    @property
    def share(self) -> float | None:
        """The share of on-policy pairs in force; None before the first decision."""
        return self.history[-1].on_policy_share if self.history else None

    # -- when: hooks of Lightning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts a fit; a state that is resumed is loaded after this."""
        if stage == "fit":
            self._resumed = False
            if self.refresh_reference:
                require_refreshable(pl_module, "refresh_reference")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides before the first batch; a resumed run has decided already at its step."""
        if trainer.ckpt_path is not None:
            self._require_resumed(_data(trainer))
        elif trainer.global_step == 0:
            self.history.clear()
        self._decide_if_due(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Decides after an optimizer step, once: inside an accumulation `global_step` stands still."""
        self._decide_if_due(trainer, pl_module)

    @property
    def state_key(self) -> str:
        """Fixed, so that a renamed schedule finds its state."""
        return "BoundaryCallback"

    def state_dict(self) -> dict[str, Any]:
        """The decisions, as plain types."""
        return {"history": [asdict(decision) for decision in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the decisions of the checkpoint."""
        self.history = [Decision(**decision) for decision in state_dict["history"]]
        self._resumed = True

    # -- the effect

    def _decide_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if not self.should_decide(step) or (self.history and self.history[-1].step == step):
            return
        result = self._measured(trainer, pl_module) if self.should_measure(step) else None
        decision = trainer.strategy.broadcast(as_decision(step, result, self.decide(step, result, self.history)))
        before = self.history[-1] if self.history else None
        self.history.append(decision)
        if trainer.is_global_zero:
            self._keep(trainer, decision)
        data = _data(trainer)
        data.set_on_policy_share(decision.on_policy_share)
        if decision.on_policy_share > 0 and (before is None or before.on_policy_share == 0):
            data.request_round()
        if self.refresh_reference and before is not None and before.stage != decision.stage:
            cast(Any, pl_module).refresh_reference()

    def _measured(self, trainer: Trainer, pl_module: LightningModule) -> BoundaryResult:
        """A measurement that leaves modes and random state as they were."""
        start = perf_counter()
        with isolate_rng(), in_eval_mode(pl_module):
            result = self.measure(trainer, pl_module)
        return replace(result, seconds=perf_counter() - start)

    def _keep(self, trainer: Trainer, decision: Decision) -> None:
        folder = Path(trainer.default_root_dir)
        record.write_decisions(folder, self.history)
        record.log_decision(trainer.loggers, decision)
        tqdm.write(record.readable(decision))  # leaves the progress bar whole
        if decision.measured and self._seen:
            with isolate_rng():
                rows = record.sample_rows(decision.step, self._seen, self._judge(_data(trainer)))
            record.write_samples(folder, rows, self.history)
            record.log_samples(trainer.loggers, rows, decision.step)
            self._seen = []

    def _drawn(self, data: BoundaryData, step: int) -> list[CandidateSet]:
        """At most `max_prompts` held-out prompts with static candidates, without replacement."""
        held_out = list(merged_by_prompt(data.held_out).values())
        if not held_out:
            raise ValueError(
                "the boundary is measured on held-out prompts with static candidates, and the data have none: "
                "set data.val, or data.val_fraction to split some off the training prompts"
            )
        count = min(self.max_prompts, len(held_out))
        return random.Random(derive_seed(data.seed, "boundary prompts", step)).sample(held_out, count)

    def _judge(self, data: BoundaryData) -> Judge:
        judge = self.judge or data.judge
        if judge is None:
            raise ValueError(
                "the boundary needs a judge of sampled answers: set `judge` of the data module or of the callback"
            )
        return judge

    def _require_resumed(self, data: BoundaryData) -> None:
        missing = [
            name
            for name, there in (("the boundary's decisions", self._resumed), ("the data's position", data.restored))
            if not there
        ]
        if missing:
            raise ValueError(
                f"the checkpoint lacks {' and '.join(missing)}, so the run cannot go on where it was: resume from a "
                "checkpoint of a run with this callback and this data module, or start a fresh run from its weights"
            )


def _data(trainer: Trainer) -> BoundaryData:
    data = getattr(trainer, "datamodule", None)
    if not hasattr(data, "set_on_policy_share"):
        raise TypeError(
            f"the boundary callback swaps the source inside an AlignmentDataModule, got {type(data).__name__}: "
            "call trainer.fit(module, datamodule=...)"
        )
    return cast(BoundaryData, data)
