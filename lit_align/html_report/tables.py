"""Tables of a report: decisions, cost, data, settings, environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_align.console import format_duration
from lit_align.html_report.headline import STAGES
from lit_align.html_report.record import RunRecord
from lit_align.report.text import KEPT, UNUSED, reason_in_words, unused_in_words

ACTIVITIES = {
    "training": "training",
    "on_policy_round": "on-policy rounds",
    "measuring": "measuring the boundary",
    "win_rate": "win rate",
    "validation": "validation",
    "loading": "loading model and data",
    "reference": "reference log-probs",
    "saving": "checkpoints",
    "judging": "judging the data",
    "report": "this report",
}
_RUN_ONLY = ("trainer.default_root_dir", "trainer.logger")
_ABSENT = "(not set)"
_ENDED_BY = {"decided": "decision", "budget": "budget", "pool": "no more prompts"}


@dataclass(frozen=True)
class Cost:
    """Time of an activity.

    Args:
        name: in words.
        time: in words.
        share: of the run's time, in [0, 1].
        parts: what it was spent on, the longest first, as (name, time, share).
    """

    name: str
    time: str
    share: float
    parts: tuple[tuple[str, str, float], ...] = ()


def costs(run: RunRecord) -> list[Cost]:
    """Where the time went, the longest first; of a run without a clock what its decisions say."""
    activities = run.summary.get("activities")
    if not isinstance(activities, Mapping):
        seconds = dict(run.summary.get("seconds") or {})
        seconds.pop("total", None)
        activities = seconds or {"measuring": sum(decision.seconds or 0.0 for decision in run.decisions)}
    groups: dict[str, dict[str, float]] = {}
    for path, seconds in activities.items():
        activity, _, part = path.partition("/")
        groups.setdefault(activity, {})[part.rpartition("/")[2]] = seconds
    total = sum(activities.values())
    ordered = sorted(groups.items(), key=lambda group: -sum(group[1].values()))
    return [_cost(_purpose(name), parts, total) for name, parts in ordered if sum(parts.values()) >= 0.05]


def _purpose(activity: str) -> str:
    return ACTIVITIES.get(activity, activity.replace("_", " "))


def _cost(named: str, parts: Mapping[str, float], total: float) -> Cost:
    spent = sum(parts.values())
    inside = sorted(((name or "other", seconds) for name, seconds in parts.items()), key=lambda part: -part[1])
    shown = [(name, _time(seconds), seconds / total) for name, seconds in inside if seconds >= 0.05]
    return Cost(named, _time(spent), spent / total, tuple(shown) if set(parts) != {""} else ())


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)


def by_kind(run: RunRecord) -> list[Cost]:
    """The same time by what was done, whatever it was for: sampling, judging and so on; empty without a clock."""
    activities = run.summary.get("activities")
    if not isinstance(activities, Mapping):
        return []
    kinds: dict[str, float] = {}
    for path, seconds in activities.items():
        kind = path.rpartition("/")[2]
        kinds[kind] = kinds.get(kind, 0.0) + seconds
    total = sum(kinds.values())
    ordered = sorted(kinds.items(), key=lambda kind: -kind[1])
    names = {
        **ACTIVITIES,
        "judging": "judging",
        "measuring": "the rest of measuring",
        "win_rate": "the rest of win rate",
    }
    return [_cost(names.get(kind, kind), {"": seconds}, total) for kind, seconds in ordered if seconds >= 0.05]


def decision_rows(run: RunRecord) -> list[dict[str, Any]]:
    """The decisions as rows of text."""
    return [
        {
            "step": f"{decision.step:,}",
            "stage": STAGES.get(decision.stage, decision.stage).removeprefix("preference "),
            "source": "on" if decision.on_policy_share >= 0.5 else "off",
            "share": f"{100 * decision.on_policy_share:.0f} %",
            "score": f"{decision.score:.3f}" if decision.measured else "",
            "interval": f"{decision.low:.2f} to {decision.high:.2f}" if decision.measured else "",
            "prompts": decision.prompts if decision.measured else "",
            "ties": decision.ties if decision.measured else "",
            "abstentions": decision.abstentions if decision.measured else "",
            "end": _ENDED_BY.get(str(decision.stopped), ""),
            "seconds": f"{decision.seconds:.0f} s" if decision.measured else "",
            "reason": decision.reason,
            "warning": decision.judge_warning or "",
        }
        for decision in run.decisions
    ]


@dataclass(frozen=True)
class DataRow:
    """A count of the data.

    Args:
        label: in words.
        counts: of training rows, of held-out rows and of on-policy rounds; None where there is none.
        kept: whether it counts what was used, and not what was dropped or changed.
    """

    label: str
    counts: tuple[int | None, int | None, int | None]
    kept: bool


def data_rows(run: RunRecord) -> list[DataRow]:
    """What was read, kept, dropped and cut."""
    counts: Mapping[str, int] = run.summary.get("rows") or {}
    names: dict[str, None] = {}
    for name in counts:
        plain = name.removeprefix("val/").removeprefix("on_policy/")
        if not plain.startswith(UNUSED):
            names[plain] = None
    rows = [
        DataRow(
            reason_in_words(name),
            (counts.get(name), counts.get(f"val/{name}"), counts.get(f"on_policy/{name}")),
            name in (*KEPT, "candidates", "rounds", "reused"),
        )
        for name in names
    ]
    return sorted((row for row in rows if any(row.counts)), key=lambda row: not row.kept)


def unused_columns(run: RunRecord) -> list[str]:
    """Columns and keys of the rows that nothing reads."""
    names = [name.removeprefix("val/") for name in run.summary.get("rows") or {}]
    return list(dict.fromkeys(unused_in_words(name) for name in names if name.startswith(UNUSED)))


def environment_rows(run: RunRecord) -> list[tuple[str, str]]:
    """What the run ran on."""
    environment = run.summary.get("environment") or {}
    rows = [(name.replace("_", " "), str(value)) for name, value in environment.items() if name != "versions"]
    return rows + [(name, str(number)) for name, number in (environment.get("versions") or {}).items()]


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """The settings and versions in which runs differ: the key, and the value of each run."""
    tables = [{**run.settings, **dict(_versions(run))} for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, [_value(table, key) for table in tables]) for key in keys if key not in _RUN_ONLY]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _versions(run: RunRecord) -> Iterator[tuple[str, str]]:
    for name, number in environment_rows(run):
        yield f"environment: {name}", number


def _value(table: Mapping[str, Any], key: str) -> str:
    return str(table[key]) if key in table else _ABSENT
