"""What happened in a run, in a sentence; the numbers behind it; and what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lit_align.html_report.record import RunRecord
from lit_align.records import Stage
from lit_align.report.crossing import crossing, for_the_next_run

STAGES = {Stage.INJECTION.value: "preference injection", Stage.FINE_TUNING.value: "preference fine-tuning"}
_IN_BRACKETS = re.compile(r"\s\([^()]*\)")
_LAST_STEPS = 10
_BLANK = "\u00a0"
"""A blank at which no line ends."""


@dataclass(frozen=True)
class Number:
    """A number at the top of the page.

    Args:
        label: what it is.
        value: with its unit.
        detail: the interval, or what it is of.
        source: "on" or "off" colours it as that source.
    """

    label: str
    value: str
    detail: str = ""
    source: str = ""


@dataclass(frozen=True)
class Headline:
    """The top of a report.

    Args:
        sentence: what happened.
        evidence: the same in full, with what it rests on.
        numbers: the figures behind it.
        next_steps: what to do now, the most useful first.
    """

    sentence: str
    evidence: str
    numbers: list[Number]
    next_steps: list[str]


def headline(run: RunRecord) -> Headline:
    """The top of a run's report."""
    told = _crossing(run)
    parts = [_IN_BRACKETS.sub("", told).rstrip("."), _win_clause(run)]
    sentence = ", and ".join(part for part in parts if part)
    if run.is_reward_model:
        sentence = _reward_sentence(run)
    where = {"running": f"Under way, {_progress(run)}: ", "stopped": f"Stopped at {_progress(run)}. "}.get(
        run.state, ""
    )
    if run.state == "running" and sentence:
        sentence = sentence[:1].lower() + sentence[1:]
    return Headline(f"{where}{sentence}.", told, list(_numbers(run)), list(_next_steps(run)))


def _crossing(run: RunRecord) -> str:
    told = run.summary.get("crossing")
    fallback = crossing(run.decisions)["text"]
    if run.state != "running" and isinstance(told, Mapping) and told.get("text"):
        return str(told["text"])
    return str(fallback)


def _progress(run: RunRecord) -> str:
    return f"step {run.steps:,}" + (f" of {run.max_steps:,}" if run.max_steps else "")


def _win_clause(run: RunRecord) -> str:
    result = run.summary.get("win_rate")
    if not isinstance(result, Mapping):
        return ""
    rate = f"{_percent(result['score'])} of {result['prompts']} held-out prompts"
    interval = f"({_interval(result)})"
    if result["low"] > 0.5:
        return f"its answers beat the start's on {rate} {interval}"
    if result["high"] < 0.5:
        return f"its answers are worse than the start's: they win on {rate} {interval}"
    return f"whether its answers beat the start's is undecided: they win on {rate} {interval}"


def _reward_sentence(run: RunRecord) -> str:
    accuracy = run.reward_quality.get("accuracy")
    if isinstance(accuracy, Mapping) and accuracy.get("value") is not None:
        of = f"of {accuracy['count']} held-out pairs" if accuracy.get("count") else "of held-out pairs"
        return f"The reward model finds the better answer in {_percent(accuracy['value'])} {of} ({_interval(accuracy)})"
    held_out = run.metrics.get("val/rewards/accuracies")
    if held_out is not None:
        return f"The reward model finds the better answer in {_percent(held_out.last)} of held-out pairs"
    return "A reward model was trained; no held-out pairs say how good it is"


def _numbers(run: RunRecord) -> Iterator[Number]:
    result = run.summary.get("win_rate")
    if isinstance(result, Mapping):
        yield Number("Win rate", _percent(result["score"]), f"against the start, {_interval(result)}")
    last = next((decision for decision in reversed(run.decisions) if decision.measured), None)
    if last is not None:
        source = "on" if last.score >= last.threshold else "off"
        detail = f"{last.low:.2f} to {last.high:.2f}, step {last.step:,}" + ("" if last.decided else ", undecided")
        yield Number("Boundary score", f"{last.score:.2f}", detail, source)
    if run.decisions:
        decision = run.decisions[-1]
        source = "on" if decision.on_policy_share >= 0.5 else "off"
        stage = STAGES.get(decision.stage, decision.stage)
        yield Number("On-policy share", _percent(decision.on_policy_share), stage, source)
    yield from _metric_numbers(run)
    of_limit = f"of {run.max_steps:,}" if run.max_steps else "optimizer steps"
    yield Number("Steps", f"{run.steps:,}", of_limit)
    total = (run.summary.get("seconds") or {}).get("total")
    if total:
        yield Number("Time", _rough(total), _time_detail(run))


def _metric_numbers(run: RunRecord) -> Iterator[Number]:
    held_out = run.metrics.get("val/rewards/accuracies")
    trained = run.metrics.get("rewards/accuracies")
    if held_out is not None:
        yield Number("Held-out accuracy", _percent(held_out.last), "pairs ranked right")
    elif trained is not None:
        last = trained.values[-_LAST_STEPS:]
        yield Number("Reward accuracy", _percent(last.mean()), f"last {len(last)} steps, training pairs")


def _time_detail(run: RunRecord) -> str:
    activities = run.summary.get("activities") or {}
    total = sum(activities.values())
    measuring = sum(seconds for path, seconds in activities.items() if path.split("/")[0] == "measuring")
    return f"{_percent(measuring / total)} of it measuring" if total and measuring else ""


def _next_steps(run: RunRecord) -> Iterator[str]:
    error = run.summary.get("error")
    if run.state == "stopped":
        why = f" It was ended by {error}." if error else ""
        yield f"The same command with `--ckpt_path last` goes on from the last checkpoint.{why}"
    if run.state == "running":
        yield "Nothing yet: this page is made anew at each decision and at the end."
    warning = next((decision.judge_warning for decision in reversed(run.decisions) if decision.judge_warning), None)
    if warning:
        yield f"Look at the judge before you trust the score: {warning}"
    if not run.is_reward_model:
        yield str(run.summary.get("next") or for_the_next_run(run.decisions))
    result = run.summary.get("win_rate")
    if isinstance(result, Mapping) and result["low"] <= 0.5 <= result["high"]:
        yield f"More prompts would decide the win rate: set WinRateCallback's `num_prompts` above {result['prompts']}."
    left_out = run.summary.get("steps_left_out")
    if left_out:
        yield f"{left_out} steps were left out since they were NaN or infinite: try a lower learning rate."
    if run.answers:
        yield "Read the answers below, the worst changes first: a judge can be pleased without being right."
    if run.is_reward_model:
        yield "Use it as a run's judge: `RewardModelJudge` with the folder `reward_model/` of this run."


def _percent(value: float) -> str:
    return f"{100 * value:.0f}{_BLANK}%"


def _interval(result: Mapping[str, Any]) -> str:
    return f"{100 * result['low']:.0f} to {100 * result['high']:.0f}{_BLANK}%"


def _rough(seconds: float) -> str:
    """A time of two figures, for a place with little room."""
    if seconds < 100:
        return f"{seconds:.0f}{_BLANK}s"
    return f"{seconds / 60:.0f}{_BLANK}min" if seconds < 7200 else f"{seconds / 3600:.1f}{_BLANK}h"
