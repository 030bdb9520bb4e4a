"""An evaluation as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_align.escape import escape_line
from lit_align.evaluate.run import BASE, Evaluation
from lit_align.evaluate.tasks import TaskChange
from lit_align.evaluate.win_rate import WinRate
from lit_align.report.text import fill

_NAME = 22
_CATEGORY = 24


def readable(evaluation: Evaluation) -> str:
    """Lays an evaluation out."""
    rate = evaluation.win_rate
    against = "its start" if evaluation.against == BASE else evaluation.against
    return "\n".join(
        [
            fill(f"{escape_line(evaluation.run)} against {escape_line(against)}, on {rate.prompts} prompts", indent=""),
            "",
            *_rates(rate),
            *_categories(evaluation.categories),
            "",
            fill(_prompts(evaluation)),
            fill(_judge(evaluation)),
            *[fill(doubt) for doubt in _doubts(evaluation)],
        ]
    )


def readable_tasks(changes: Sequence[TaskChange]) -> str:
    """Lays out tasks before and after."""
    if not changes:
        return "The tasks gave no numbers."
    lines = [f"{'task':<24} {'metric':<14} {'questions':>9} {'before':>7} {'after':>7} {'change':>7} {'error':>6}"]
    for change in changes:
        error = "-" if change.standard_error is None else f"{change.standard_error:.3f}"
        lines.append(
            f"{_short(change.task):<24} {_short(change.metric, 14):<14} {change.questions:>9} {change.before:>7.3f} "
            f"{change.after:>7.3f} {change.difference:>+7.3f} {error:>6}"
        )
    worse = [f"{escape_line(change.task)} ({escape_line(change.metric)})" for change in changes if change.is_worse]
    text = f"Worse by more than two standard errors: {', '.join(worse)}." if worse else ""
    unpaired = [escape_line(change.task) for change in changes if not change.paired]
    kind = "from the differences question by question"
    if unpaired:
        kind += f" (not of {', '.join(dict.fromkeys(unpaired))}: there from both sides' errors)"
    about = fill(f"Before is the start of the fit. The error is the standard error of the change, {kind}.")
    return "\n".join(["", *lines, about, *([fill(text)] if text else [])])


def percent(share: float) -> str:
    """A share as 97.5 %."""
    return f"{100 * share:.1f} %"


def interval(low: float, high: float) -> str:
    """An interval of shares as 92.1 to 100.0 %."""
    return f"{100 * low:.1f} to {percent(high)}"


def _rates(rate: WinRate) -> list[str]:
    equal = rate.length_controlled
    verdicts = f"{_count(rate.wins, 'win')}, {_count(rate.ties, 'tie')}, {_count(rate.losses, 'loss')}"
    rows = [
        ("win rate", f"{percent(rate.score):>7}  ({interval(rate.low, rate.high)})"),
        ("at equal lengths", f"{percent(equal.score):>7}  ({interval(equal.low, equal.high)})"),
        ("verdicts", verdicts + (f", {_count(rate.abstentions, 'abstention')}" if rate.abstentions else "")),
        ("mean length", f"{rate.mean_length:.0f} characters, against {rate.opponent_mean_length:.0f}"),
    ]
    if rate.mean_score is not None:
        rows.append(("mean score", f"{rate.mean_score:.3g}, against {rate.opponent_mean_score:.3g}"))
    if rate.cut or rate.opponent_cut:
        rows.append(("cut at the limit", f"{percent(rate.cut)}, against {percent(rate.opponent_cut)}"))
    if rate.same_in_both_orders is not None:
        rows.append(("same in both orders", f"{percent(rate.same_in_both_orders)} of the verdicts"))
    return [f"  {name:<{_NAME}}{value}" for name, value in rows]


def _count(number: int, noun: str) -> str:
    plural = noun if number == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {plural}"


def _categories(categories: Mapping[str, WinRate]) -> list[str]:
    if not categories:
        return []
    lines = ["", f"  {'category':<{_CATEGORY}}{'prompts':>7}  {'win rate':>8}  {'interval':<15}  at equal lengths"]
    for name, rate in categories.items():
        lines.append(
            f"  {_short(name):<{_CATEGORY}}{rate.prompts:>7}  {percent(rate.score):>8}  "
            f"{interval(rate.low, rate.high):<15}  {percent(rate.length_controlled.score):>8}"
        )
    return lines


def _prompts(evaluation: Evaluation) -> str:
    count = evaluation.win_rate.prompts + evaluation.win_rate.abstentions
    text = f"Prompts: {count}, {escape_line(evaluation.prompts)}"
    reasons = [f"{count} {reason}" for reason, count in evaluation.left_out.items()]
    return f"{text}; left out: {', '.join(reasons)}." if reasons else f"{text}."


def _judge(evaluation: Evaluation) -> str:
    text = f"Judge: {escape_line(evaluation.judge)}"
    if not evaluation.own_judge:
        return f"{text}."
    return (
        f"{text}, the run's own: it trained on its verdicts and may have learned to please it. --judge takes another "
        "one."
    )


def _doubts(evaluation: Evaluation) -> list[str]:
    rate = evaluation.win_rate
    doubts = []
    if all(pair.answer.text == pair.opponent.text for pair in evaluation.judged):
        doubts.append("Both sides gave the same answers.")
    elif rate.ties == rate.prompts:
        doubts.append("All verdicts are ties: the judge told no answers apart.")
    if rate.same_in_both_orders is not None and rate.same_in_both_orders < 0.6:
        doubts.append("On many prompts the order of the answers decides, not the answers: take a better judge.")
    if max(rate.cut, rate.opponent_cut) > 0.2:
        doubts.append(
            "Many answers end at the sampler's limit, so that the judge saw only their beginnings: raise its "
            "max_new_tokens (--data.sampler.max_new_tokens, or with a --sampler of its own)."
        )
    return doubts


def _short(name: str, width: int = _CATEGORY) -> str:
    cleaned = escape_line(name)
    return cleaned if len(cleaned) < width else cleaned[: width - 4] + "..."
