"""Is the trained policy better than the one it started from? Its answers to held-out prompts, before and after."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from lit_align import run_folder
from lit_align.boundary.score import measure_sets
from lit_align.clock import timed
from lit_align.judges.base import Judge
from lit_align.ranks import gather_in_turn, own_share
from lit_align.records import Candidate, CandidateSet, FinishReason, prompt_text
from lit_align.rows.alike import draw_unlike
from lit_align.run_parts import datamodule_of, is_trial
from lit_align.seeding import derive_seed


@dataclass(frozen=True)
class WinRate:
    """The end of a run against its start, one vote a prompt, ties half a vote.

    Args:
        score: share of the prompts on which the end's answer wins, in [0, 1].
        low: lower end of the confidence interval.
        high: upper end.
        prompts: held-out prompts with a verdict.
        ties: prompts without a winner.
        mean_before: mean of the judge's scores of the start's answers; None where the judge gave none.
        mean_after: the same of the end's answers.
        seconds: wall time of sampling and judging, both ends.
    """

    score: float
    low: float
    high: float
    prompts: int
    ties: int
    mean_before: float | None
    mean_after: float | None
    seconds: float


class WinRateCallback(Callback):
    """Lets the judge compare answers that the policy gave at the end of a fit with those it gave at the start.

    One answer is sampled to each of some held-out prompts. The result goes to the loggers as `win_rate/*`, to the
    summary, and with all answers to `answers.jsonl` in the run folder.

    The start's answers are in the checkpoints, so a resumed run is compared with the true start. Ranks share the
    prompts among them.

    Args:
        num_prompts: held-out prompts to answer, fewer where the data hold fewer.
        samples_to_show: answers that the summary on the terminal shows side by side.
        judge: who compares; None takes the data module's judge. It should not be one that a policy could have
            learned to please during the run, if you have another.
        confidence: of the interval, in (0, 1).
    """

    def __init__(
        self, num_prompts: int = 64, samples_to_show: int = 3, judge: Judge | None = None, confidence: float = 0.95
    ) -> None:
        if num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {num_prompts}")
        self.num_prompts = num_prompts
        self.samples_to_show = samples_to_show
        self.judge = judge
        self.confidence = confidence
        self.result: WinRate | None = None
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

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["before"]
        self._seconds = state_dict["seconds"]

    @timed("win_rate")
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before:
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
        answered = self._sample(trainer, own_share(prompts), "start")
        self._before = gather_in_turn([_record(candidates) for candidates in answered])

    @timed("win_rate")
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._before:
            return
        prompts = self._prompts(trainer)
        before = [_with_answer(prompt, record) for prompt, record in zip(prompts, self._before, strict=True)]
        after = self._sample(trainer, own_share(prompts), "end")
        started = time.perf_counter()
        judge = self.judge or datamodule_of(trainer).judge
        votes = measure_sets(after, own_share(before), judge, self.confidence, device=pl_module.device)
        self.answers = gather_in_turn(_judged(own_share(before), after, judge))
        self._seconds += time.perf_counter() - started
        before_mean, after_mean = _means(self.answers)
        self.result = WinRate(
            votes.score, votes.low, votes.high, votes.prompts, votes.ties, before_mean, after_mean, self._seconds
        )
        if trainer.is_global_zero:
            self._report(trainer, self.result)

    def _prompts(self, trainer: Trainer) -> list[CandidateSet]:
        """The same prompts at both ends and after a resume: chosen only by the run's seed, none like another."""
        data = datamodule_of(trainer)
        rng = random.Random(derive_seed(data.seed, "win_rate", "prompts"))
        return draw_unlike(data.evaluated_on, data.group_of, self.num_prompts, rng)

    def _sample(self, trainer: Trainer, prompts: Sequence[CandidateSet], moment: str) -> list[CandidateSet]:
        started = time.perf_counter()
        with isolate_rng():
            answered = datamodule_of(trainer).sample(
                prompts, "win_rate", moment, num_candidates=1, desc=f"answers at the {moment}"
            )
        self._seconds += time.perf_counter() - started
        return list(answered)

    def _report(self, trainer: Trainer, result: WinRate) -> None:
        values = {f"win_rate/{name}": value for name, value in asdict(result).items() if value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if not is_trial(trainer):
            run_folder.write_jsonl(Path(trainer.default_root_dir) / run_folder.ANSWERS, self.answers)


@timed("judging")
def _judged(before: list[CandidateSet], after: list[CandidateSet], judge: Judge) -> list[dict[str, Any]]:
    """The rows of `answers.jsonl`."""
    pairs = [replace(b, candidates=b.candidates + a.candidates) for b, a in zip(before, after, strict=True)]
    return [
        {
            "prompt": prompt_text(pair.prompt),
            "before": pair.candidates[0].text,
            "after": pair.candidates[1].text,
            "score_before": float(scores[0]),
            "score_after": float(scores[1]),
        }
        for pair, scores in zip(pairs, judge.score(pairs), strict=True)
    ]


def _means(answers: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    scores = [(row["score_before"], row["score_after"]) for row in answers]
    finite = [pair for pair in scores if math.isfinite(sum(pair))]
    if not finite:
        return None, None
    return fmean(before for before, _ in finite), fmean(after for _, after in finite)


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
