"""Is the trained policy better than the one it started from? Its answers to held-out prompts, before and after."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from lit_align import run_folder
from lit_align.checks import require_at_least_1
from lit_align.clock import timed
from lit_align.console import note
from lit_align.data.needs import require
from lit_align.evaluate import JudgedAnswers, judge_answers, win_rate_of
from lit_align.judges.base import Judge
from lit_align.loggers import log_table
from lit_align.ranks import gather_in_turn, own_share
from lit_align.records import Candidate, CandidateSet, FinishReason, prompt_text
from lit_align.rows.alike import draw_unlike
from lit_align.run_parts import datamodule_of, is_trial
from lit_align.seeding import derive_seed


@dataclass(frozen=True)
class WinRateAtStep:
    """The policy at a step against the start, one vote a prompt, ties half a vote.

    Args:
        step: optimizer steps so far.
        score: share of the prompts on which the policy's answer wins, in [0, 1].
        low: lower end of the confidence interval.
        high: upper end.
        prompts: held-out prompts with a verdict.
        ties: prompts without a winner.
        mean_before: mean of the judge's scores of the start's answers; None where the judge gave none.
        mean_after: the same of the policy's answers.
        length_controlled: the score at equal lengths, see :func:`~lit_align.evaluate.control_length`.
        length_controlled_low: lower end of its interval.
        length_controlled_high: upper end.
        mean_length_before: of the start's answers, in characters.
        mean_length_after: of the policy's.
        judge: who compared.
        own_judge: whether that is the judge whose verdicts the run trains on.
        seconds: wall time of sampling and judging in this run so far, that of the start included.
    """

    step: int
    score: float
    low: float
    high: float
    prompts: int
    ties: int
    mean_before: float | None
    mean_after: float | None
    length_controlled: float
    length_controlled_low: float
    length_controlled_high: float
    mean_length_before: float
    mean_length_after: float
    judge: str
    own_judge: bool
    seconds: float

    def metrics(self) -> dict[str, float]:
        """What loggers get."""
        values = {name: value for name, value in asdict(self).items() if isinstance(value, int | float)}
        return {f"win_rate/{name}": value for name, value in values.items() if name not in ("step", "own_judge")}


class WinRateCallback(Callback):
    """Lets a judge compare answers that the policy gives at the end of a fit with those it gave at the start.

    One answer is sampled to each of some held-out prompts; with `every_n_steps` also in between, always on the same
    prompts. The results go to the loggers as `win_rate/*`, to the summary, and the last one with all answers to
    `answers.jsonl` in the run folder.

    The start's answers are in the checkpoints, so a resumed run is compared with the true start. Ranks share the
    prompts among them.

    Args:
        num_prompts: held-out prompts to answer, fewer where the data hold fewer.
        samples_to_show: answers that the summary on the terminal shows side by side.
        judge: who compares; None takes the data module's judge. It should not be one that a policy could have
            learned to please during the run, if you have another.
        confidence: of the interval, in (0, 1).
        every_n_steps: optimizer steps between two comparisons with the start; None compares at the end only.
    """

    def __init__(
        self,
        num_prompts: int = 64,
        samples_to_show: int = 3,
        judge: Judge | None = None,
        confidence: float = 0.95,
        every_n_steps: int | None = None,
    ) -> None:
        require_at_least_1(num_prompts=num_prompts, every_n_steps=every_n_steps)
        self.num_prompts = num_prompts
        self.samples_to_show = samples_to_show
        self.judge = judge
        self.confidence = confidence
        self.every_n_steps = every_n_steps
        self.results: list[WinRateAtStep] = []
        self.answers: list[dict[str, Any]] = []
        self._before: list[dict[str, Any]] = []
        self._seconds = 0.0

    @property
    def state_key(self) -> str:
        return "WinRateCallback"

    @property
    def seconds(self) -> float:
        """Wall time spent so far."""
        return self._seconds

    @property
    def result(self) -> WinRateAtStep | None:
        """The last comparison with the start; None before the first."""
        return self.results[-1] if self.results else None

    def seconds_to_come(self, step: int, last_step: int) -> float:
        """Estimates the wall time of the comparisons after `step`, for the progress bar."""
        if not self._before or step >= last_step:
            return 0.0
        every = self.every_n_steps or last_step
        to_come = last_step // every - step // every + (last_step % every > 0)
        return to_come * self._seconds / (1 + len(self.results))  # the start is one, too

    def state_dict(self) -> dict[str, Any]:
        return {
            "before": self._before,
            "seconds": self._seconds,
            "results": [asdict(result) for result in self.results],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["before"]
        self._seconds = state_dict["seconds"]
        self.results = [WinRateAtStep(**result) for result in state_dict.get("results", ())]

    def check_data(self, data: Any, trainer: Trainer) -> None:
        """Raises a ValueError where the data module has no sampler, or nobody judges."""
        require("a win rate", sampler=data.sampler, judge=self.judge or data.judge)

    @timed("win_rate")
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before:
            self._compare_if_due(trainer)  # what a run that was stopped had not come to
            return
        if trainer.global_step > 0:
            rank_zero_warn("This run goes on from a checkpoint without the start's answers: no win rate.")
            return
        prompts = self._prompts(trainer)
        if not prompts:
            rank_zero_warn(
                "WinRateCallback found no held-out prompts: no win rate. Give the data `val` rows or a `val_fraction`."
            )
            return
        answered = self._sample(trainer, own_share(prompts), "start", "answers at the start")
        self._before = gather_in_turn([_record(candidates) for candidates in answered])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._compare_if_due(trainer)

    def _compare_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if self.every_n_steps is None or step == 0 or step % self.every_n_steps or step == self._last_step:
            return
        self._compare(trainer)
        if trainer.is_global_zero and self._last_step == step and self.result is not None:
            note(f"step {step}: {describe(self.result)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._last_step or not self.answers:  # those of a resumed step are not in its state
            self._compare(trainer)

    def on_resume_at_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the last comparison, if the run was stopped before it."""
        self.on_train_end(trainer, pl_module)

    @property
    def _last_step(self) -> int | None:
        return None if self.result is None else self.result.step

    @timed("win_rate")
    def _compare(self, trainer: Trainer) -> None:
        """Compares the policy as it is with the start."""
        if not self._before:
            return
        prompts = self._prompts(trainer)
        before = [_with_answer(prompt, record) for prompt, record in zip(prompts, self._before, strict=True)]
        # At every step the same draws: then results differ by what was learned, not by luck.
        after = self._sample(trainer, own_share(prompts), "end", f"answers at step {trainer.global_step}")
        started = time.perf_counter()
        own_judge = datamodule_of(trainer).judge
        judge = self.judge or own_judge
        with timed("judging"):
            judged = gather_in_turn(judge_answers(judge, after, own_share(before)))
        self.answers = list(map(_row, judged))
        self._seconds += time.perf_counter() - started
        if all(pair.share is None for pair in judged):
            rank_zero_warn(f"{judge.identity} gave no verdict at step {trainer.global_step}: no win rate.")
            return
        result = self._result(trainer.global_step, judged, judge, judge is own_judge)
        self.results = [earlier for earlier in self.results if earlier.step != result.step] + [result]
        if trainer.is_global_zero:
            self._report(trainer, result)

    def _result(self, step: int, judged: list[JudgedAnswers], judge: Judge, own_judge: bool) -> WinRateAtStep:
        rate = win_rate_of(judged, self.confidence)
        at_equal_lengths = rate.length_controlled
        return WinRateAtStep(
            step,
            rate.score,
            rate.low,
            rate.high,
            rate.prompts,
            rate.ties,
            mean_before=rate.opponent_mean_score,
            mean_after=rate.mean_score,
            length_controlled=at_equal_lengths.score,
            length_controlled_low=at_equal_lengths.low,
            length_controlled_high=at_equal_lengths.high,
            mean_length_before=rate.opponent_mean_length,
            mean_length_after=rate.mean_length,
            judge=judge.identity,
            own_judge=own_judge,
            seconds=self._seconds,
        )

    def _prompts(self, trainer: Trainer) -> list[CandidateSet]:
        """The same prompts at each comparison and after a resume: chosen only by the run's seed, none like another."""
        data = datamodule_of(trainer)
        rng = random.Random(derive_seed(data.seed, "win_rate", "prompts"))
        return draw_unlike(data.evaluated_on, data.held_out_prompts.group_of, self.num_prompts, rng)

    def _sample(self, trainer: Trainer, prompts: Sequence[CandidateSet], moment: str, desc: str) -> list[CandidateSet]:
        started = time.perf_counter()
        with isolate_rng():
            answered = datamodule_of(trainer).sample(prompts, "win_rate", moment, num_candidates=1, desc=desc)
        self._seconds += time.perf_counter() - started
        return list(answered)

    def _report(self, trainer: Trainer, result: WinRateAtStep) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(result.metrics(), step=trainer.global_step)
        columns = list(self.answers[0])
        log_table(
            trainer.loggers, "win_rate/answers", columns, [list(row.values()) for row in self.answers], result.step
        )
        if not is_trial(trainer):
            run_folder.write_jsonl(Path(trainer.default_root_dir) / run_folder.ANSWERS, self.answers)


def describe(result: WinRateAtStep) -> str:
    """The result in a line of a terminal."""
    return (
        f"win rate against the start {100 * result.score:.0f} % ({100 * result.low:.0f} to {100 * result.high:.0f} %), "
        f"at equal lengths {100 * result.length_controlled:.0f} %"
    )


def _row(judged: JudgedAnswers) -> dict[str, Any]:
    """A row of `answers.jsonl`."""
    return {
        "prompt": prompt_text(judged.prompt),
        "before": judged.opponent.text,
        "after": judged.answer.text,
        "score_before": judged.opponent.score,
        "score_after": judged.answer.score,
    }


def _record(candidates: CandidateSet) -> dict[str, Any]:
    """The first answer as plain types, for a checkpoint."""
    answer = candidates.candidates[0]
    return {"prompt": prompt_text(candidates.prompt), "text": answer.text, "finish_reason": answer.finish_reason.value}


def _with_answer(candidates: CandidateSet, record: dict[str, Any]) -> CandidateSet:
    if record["prompt"] != prompt_text(candidates.prompt):
        raise ValueError(
            f"the checkpoint holds the start's answer to {record['prompt'][:60]!r}, but the data now give "
            f"{prompt_text(candidates.prompt)[:60]!r} in its place: go on with the data and the seed that the run "
            "began with"
        )
    answer = Candidate(record["text"], finish_reason=FinishReason(record["finish_reason"]))
    return replace(candidates, candidates=(answer,))
