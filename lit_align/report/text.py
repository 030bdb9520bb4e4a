"""The summary of a run as text for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lit_align.console import format_duration

WIDTH = 80
KEPT = ("rows", "pairs", "prompts", "prompts_measured", "prompts_evaluated")
UNUSED = ("unused_column/", "unused_key/")
STAGES = {"injection": "injection", "fine_tuning": "fine-tuning"}


def render(summary: Mapping[str, Any], answers: Sequence[Mapping[str, Any]] = ()) -> str:
    """Lays a summary out.

    Args:
        summary: what `summary.json` holds.
        answers: rows of `answers.jsonl` to show.
    """
    blocks = [
        _decisions(summary["decisions"]),
        fill(summary["crossing"]["text"]) if summary["crossing"] is not None else "",
        fill(summary["next"]) if summary["next"] is not None else "",
        _judge(summary["decisions"]),
        _alarms(summary.get("alarms", ())),
        _win_rate(summary["win_rate"]),
        _win_rates(summary.get("win_rates", ())),
        _before_and_after(answers),
        _rows(summary["rows"]),
        _rounds(summary["rounds"]),
        *[fill(f"{line[:1].upper()}{line[1:]}.") for line in summary["judges"]],
        _metrics(summary["metrics"]),
        _left_out(summary.get("steps_left_out", 0), summary["steps"]),
        _time(summary["steps"], summary["seconds"]),
        _outputs(summary["outputs"]),
        _load(summary.get("load", ())),
    ]
    return "\n".join(["", *[block for block in blocks if block]])


def fill(text: str, indent: str = "  ") -> str:
    """Wraps a paragraph, of which all lines but the first are indented."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> str:
    if not decisions:
        return ""
    lines = [f"{'step':>6}  {'stage':<11}  {'on-policy':>9}  {'score':>5}  {'interval':<12}  {'prompts':>7}  {'s':>5}"]
    for decision in decisions:
        measured = decision["score"] is not None
        stage = STAGES.get(decision["stage"], decision["stage"])
        score = f"{decision['score']:.2f}" if measured else "-"
        interval = f"{decision['low']:.2f} - {decision['high']:.2f}" if measured else ""
        lines.append(
            f"{decision['step']:>6}  {stage:<11}  {100 * decision['on_policy_share']:>7.0f} %  {score:>5}  "
            f"{interval:<12}  {decision['prompts'] or 0:>7}  {decision['seconds'] or 0:>5.0f}"
        )
        lines.append(fill(f"        {decision['reason']}", indent=" " * 8))
    return "\n".join(lines)


def _judge(decisions: Sequence[Mapping[str, Any]]) -> str:
    """The doubt about the judge that the last measurement raised."""
    last = next((decision for decision in reversed(decisions) if decision["score"] is not None), None)
    return fill(f"The judge: {last['judge_warning']}") if last is not None and last["judge_warning"] else ""


def _alarms(alarms: Sequence[Mapping[str, Any]]) -> str:
    """What the watch said on the way."""
    return "\n".join(fill(f"Watch, step {alarm['step']}: {alarm['text']} {alarm['advice']}") for alarm in alarms)


def _win_rate(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    text = (
        f"Win rate against the start: {100 * result['score']:.0f} % "
        f"({100 * result['low']:.0f} to {100 * result['high']:.0f} %) on {result['prompts']} held-out prompts"
    )
    if result["low"] <= 0.5 <= result["high"]:
        text += ", undecided"
    if result["mean_before"] is not None:
        text += f", mean score {result['mean_before']:.2f} -> {result['mean_after']:.2f}"
    return fill(text + ".")


def _win_rates(results: Sequence[Mapping[str, Any]]) -> str:
    """The win rate at equal lengths, who judged, and how it went there."""
    if not results:
        return ""
    last = results[-1]
    lengths = f"{last['mean_length_before']:.0f} -> {last['mean_length_after']:.0f} characters"
    judge = (
        "the judge that the run trains on" if last["own_judge"] else f"{last['judge']}, which the run does not train on"
    )
    text = f"At equal lengths: {100 * last['length_controlled']:.0f} % ({lengths}). Judged by {judge}."
    if len(results) > 1:
        steps = ", ".join(f"{100 * result['score']:.0f} % at {result['step']}" for result in results)
        text += f" By steps: {steps}."
    return fill(text)


def _before_and_after(answers: Sequence[Mapping[str, Any]]) -> str:
    lines: list[str] = []
    for row in answers:
        lines += [f"  {name:<7} {_one_line(row[name])}" for name in ("prompt", "before", "after")]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return textwrap.shorten(" ".join(text.split()) or "(empty)", WIDTH - 10, placeholder=" ...")


def _rows(counts: Mapping[str, int]) -> str:
    """The rows that were read and, of training and held-out rows alike, those that were left out, with the reason."""
    dropped: dict[str, int] = {}
    unused: dict[str, None] = {}
    for name, count in counts.items():
        reason = name.removeprefix("val/")
        if reason.startswith(UNUSED):
            unused[unused_in_words(reason)] = None
        elif count and not name.startswith("on_policy/") and reason not in KEPT:
            dropped[reason] = dropped.get(reason, 0) + count
    read = (
        f"Data: {counts.get('pairs', 0)} pairs from {counts.get('prompts', 0)} prompts to train on, "
        f"{counts.get('val/pairs', 0)} held out"
    )
    if measured := counts.get("val/prompts_measured"):
        read += f", {measured} prompts kept for measuring"
    reasons = ", ".join([f"{count} {reason_in_words(name)}" for name, count in dropped.items()])
    text = f"{read}; left out or changed: {reasons or 'nothing'}."
    if unused:
        text = f"{text} Not read, unless by a judge's rule: {', '.join(unused)}."
    return fill(text) if counts else ""


def unused_in_words(name: str) -> str:
    """A column of rows, or a key of messages, that nothing here reads."""
    kind, _, key = name.partition("/")
    return f"{kind.removeprefix('unused_')} `{key}`"


def reason_in_words(name: str) -> str:
    """The reason, a key of the data's counts, for which rows or pairs were left out."""
    return name.replace("bad_row/", "bad row: ").replace("_", " ")


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> str:
    if not rounds:
        return ""
    pairs = _total(rounds, "pairs")
    candidates = _total(rounds, "candidates")
    ties = _total(rounds, "ties")
    text = f"On-policy rounds: {len(rounds)}, {candidates} sampled answers gave {pairs} pairs ({ties} ties)."
    reused = _total(rounds, "reused")
    return fill(f"{text} {reused} of the answers came from measurements." if reused else text)


def _total(rounds: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(int(stats.get(key, 0)) for stats in rounds)


def _metrics(metrics: Mapping[str, float]) -> str:
    names = {
        "loss": "loss",
        "rewards/accuracies": "reward accuracy",
        "rewards/margins": "margin",
        "val/loss": "validation loss",
        "val/rewards/accuracies": "validation accuracy",
    }
    shown = [f"{label} {metrics[name]:.3g}" for name, label in names.items() if name in metrics]
    return fill(f"Last metrics: {', '.join(shown)}.") if shown else ""


def _left_out(left_out: int, steps: int) -> str:
    if not left_out:
        return ""
    return fill(f"{left_out} of {steps} steps were left out: their loss or gradients were NaN or infinite.")


def _time(steps: int, seconds: Mapping[str, float]) -> str:
    parts = [
        f"{name.replace('_', ' ')} {format_duration(spent)}"
        for name, spent in seconds.items()
        if name != "total" and spent >= 0.5
    ]
    detail = f": {', '.join(parts)}" if parts else ""
    return fill(f"Time: {format_duration(seconds['total'])} for {steps} steps{detail}.")


def _outputs(outputs: Mapping[str, str]) -> str:
    width = max((len(name) for name in outputs), default=0)
    return "\n".join(["Outputs:", *[f"  {name:<{width}}  {path}" for name, path in outputs.items()]])


def _load(lines: Sequence[str]) -> str:
    """How to load the model; the lines are not wrapped, since they are copied."""
    return "\n".join(["To load the model:", *[f"  {line}" for line in lines]]) if lines else ""
