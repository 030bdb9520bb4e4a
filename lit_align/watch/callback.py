"""The callback that watches the numbers of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from math import isfinite
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_align.boundary.callback import BoundaryCallback
from lit_align.boundary.result import Decision
from lit_align.console import note
from lit_align.report.win_rate import WinRateCallback
from lit_align.run_parts import datamodule_of, find_callback
from lit_align.watch import answers, training
from lit_align.watch.alarm import Alarm
from lit_align.watch.answers import Compared
from lit_align.watch.training import Series

EVERY = 10
"""Optimizer steps between two looks: in between the host does not wait for the device."""
LOG_PROBS = ("logps/chosen", "logps/rejected")
METRICS = (*LOG_PROBS, "rewards/accuracies", "rewards/margins", "kl")
SAME_SOURCE = 0.25
"""Log-probs are compared as long as the on-policy share has not changed by more: other pairs have others."""


class RunWatch(Callback):
    """Looks at a run's metrics, measurements and win rates for what goes wrong without an error.

    An alarm is printed once a run with what to do, and is in the summary and the report. `docs/watch.md` lists them
    with their thresholds. Nothing is changed or stopped.

    Args:
        enabled: False watches nothing.
        max_kl: the largest distance from the reference in nats an answer that is not said; None for no limit.

    Attributes:
        alarms: those so far, each kind once.
    """

    def __init__(self, enabled: bool = True, max_kl: float | None = 100.0) -> None:
        if max_kl is not None and not max_kl > 0:
            raise ValueError(f"expected max_kl above 0, or None for no limit, got {max_kl}")
        self.enabled = enabled
        self.max_kl = max_kl
        self._reset()

    def _reset(self) -> None:
        self.alarms: list[Alarm] = []
        self._series: dict[str, Series] = {}
        self._held_out: dict[str, float] = {}
        self._pending: list[tuple[list[str], torch.Tensor]] = []
        self._share = 0.0
        self._step = 0
        self._results = 0

    @property
    def state_key(self) -> str:
        return "RunWatch"

    def state_dict(self) -> dict[str, Any]:
        self._read_pending()
        return {
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "series": {name: asdict(series) for name, series in self._series.items()},
            "held_out": dict(self._held_out),
            "share": self._share,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alarms = [Alarm(**alarm) for alarm in state_dict["alarms"]]
        self._series = {name: Series(**series) for name, series in state_dict["series"].items()}
        self._held_out = dict(state_dict["held_out"])
        self._share = state_dict["share"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts a fit; a state that is resumed is loaded after this."""
        if stage == "fit":
            self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._results = _count_results(trainer)
        self._follow_share(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keeps a step's metrics, and looks every few steps and after a measurement."""
        if not self.enabled or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._keep_metrics(trainer)
        results = _count_results(trainer)
        if self._step % EVERY == 0 or results > self._results:
            self._look(trainer)
        if results > self._results:
            self._results = results
            self._follow_share(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the log-probs of the held-out pairs with those of the first validation."""
        if not self.enabled or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        now = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/logps/")}
        first = self._held_out or now
        self._held_out = first
        if all(f"val/{name}" in values for name in LOG_PROBS for values in (first, now)):
            pairs = [[values[f"val/{name}"]] for name in LOG_PROBS for values in (first, now)]
            self._say(training.find_displacement(*pairs))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.enabled:
            self._look(trainer)

    def _keep_metrics(self, trainer: Trainer) -> None:
        logged = trainer.callback_metrics
        names = [name for name in METRICS if name in logged]
        if names:
            self._pending.append((names, torch.stack([logged[name].detach().float() for name in names])))

    def _read_pending(self) -> None:
        for names, values in self._pending:
            for name, value in zip(names, values.tolist(), strict=True):
                if isfinite(value):
                    self._series.setdefault(name, Series()).add(value)
        self._pending = []

    def _follow_share(self, trainer: Trainer) -> None:
        """Starts the comparison of log-probs anew where pairs come from another source."""
        history = _history(trainer)
        share = history[-1].on_policy_share if history else 0.0
        if abs(share - self._share) > SAME_SOURCE:
            self._share = share
            for name in METRICS:
                self._series.pop(name, None)

    def _look(self, trainer: Trainer) -> None:
        self._read_pending()
        for alarm in (*self._of_training(), *self._of_answers(trainer), *self._of_win_rates(trainer)):
            self._say(alarm)

    def _say(self, alarm: Alarm | None) -> None:
        """Says an alarm, if none of its kind was said before."""
        if alarm is None or any(earlier.name == alarm.name for earlier in self.alarms):
            return
        self.alarms.append(replace(alarm, step=self._step))
        note(f"watch: step {self._step} | {alarm.text}\n  {alarm.advice}")

    def _of_training(self) -> Iterator[Alarm | None]:
        chosen, rejected, accuracies, margins, kl = (self._series.get(name, Series()) for name in METRICS)
        if chosen.is_comparable and rejected.is_comparable:
            yield training.find_displacement(chosen.first, chosen.last, rejected.first, rejected.last)
        if accuracies.is_full and margins.is_full:
            yield training.find_saturation(accuracies.last, margins.last)
        if kl.is_full and self.max_kl is not None:
            yield training.find_drift(kl.last, self.max_kl)

    def _of_answers(self, trainer: Trainer) -> Iterator[Alarm | None]:
        measured = [decision for decision in _history(trainer) if decision.measured]
        if len(measured) < 2:
            return
        first, last = measured[0], measured[-1]
        before, now = (_figures(decision) for decision in (first, last))
        if "duplicates" in before and "duplicates" in now:
            yield answers.find_collapse(before["duplicates"], now["duplicates"], last.prompts)
        limit = getattr(getattr(datamodule_of(trainer), "sampler", None), "max_new_tokens", None)
        if limit and "length_tokens" in before and "length_tokens" in now:
            yield answers.find_growth(before["length_tokens"], now["length_tokens"], limit, first.score, last.score)

    def _of_win_rates(self, trainer: Trainer) -> Iterator[Alarm | None]:
        win_rate = find_callback(trainer, WinRateCallback)
        if win_rate is None or win_rate.result is None:
            return
        result = win_rate.result
        yield answers.find_wins_by_length(
            result.low, result.length_controlled, result.mean_length_before, result.mean_length_after
        )
        texts = [[row[moment] for row in win_rate.answers] for moment in ("before", "after")]
        yield answers.find_few_texts(*texts)
        second = [Compared(r.step, r.score, r.low, r.high) for r in win_rate.results if not r.own_judge]
        yield answers.find_over_optimisation(_own_scores(trainer), second, result.judge)


def _count_results(trainer: Trainer) -> int:
    win_rate = find_callback(trainer, WinRateCallback)
    return len(_history(trainer)) + (0 if win_rate is None else len(win_rate.results))


def _history(trainer: Trainer) -> list[Decision]:
    boundary = find_callback(trainer, BoundaryCallback)
    return [] if boundary is None else boundary.history


def _figures(decision: Decision) -> dict[str, float]:
    """Of the policy's own answers."""
    return dict((decision.characteristics or {}).get("on_policy", {}))


def _own_scores(trainer: Trainer) -> list[tuple[int, float]]:
    """The steps of measurements with the mean score of the policy's answers, or their share of votes."""
    measured = [decision for decision in _history(trainer) if decision.measured]
    if all("score_mean" in _figures(decision) for decision in measured):
        return [(decision.step, _figures(decision)["score_mean"]) for decision in measured]
    return [(decision.step, float(decision.score)) for decision in measured]
