"""A run as its folder tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_align import run_folder
from lit_align.boundary.result import Decision
from lit_align.html_report.privacy import without_private
from lit_align.html_report.reading import Series, read_json, read_jsonl, read_metrics, read_yaml

State = Literal["running", "finished", "stopped"]
_MARKS = (run_folder.CONFIG, run_folder.SUMMARY, run_folder.DECISIONS, run_folder.CSV_LOGS, run_folder.CHECKPOINTS)


@dataclass(frozen=True)
class RunRecord:
    """All that a report says of a run.

    Args:
        name: of its folder.
        state: "running", "finished", or "stopped" before its end.
        decisions: oldest first.
        metrics: by the names that loggers get.
        samples: rows of `samples.jsonl`: `step`, `prompt`, `on_policy` and `off_policy`.
        answers: rows of `answers.jsonl`: `prompt`, `before`, `after`, `score_before` and `score_after`.
        summary: `summary.json`, empty without one.
        config: the run's settings, nested, without what is private.
        reward_quality: `reward_quality.json`, empty without one.
        gaps: what of the folder could not be read, in words.
    """

    name: str
    state: State
    decisions: Sequence[Decision] = ()
    metrics: Mapping[str, Series] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    answers: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    reward_quality: Mapping[str, Any] = field(default_factory=dict)
    gaps: Sequence[str] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        trained = self.metrics.get("loss")
        logged = 0 if trained is None else int(trained.steps[-1]) + 1
        decided = self.decisions[-1].step if self.decisions else 0
        return max(int(self.summary.get("steps") or 0), logged, decided)

    @property
    def max_steps(self) -> int | None:
        """The limit of optimizer steps; None without one."""
        limit = self.summary.get("max_steps") or self.setting("trainer.max_steps")
        return limit if isinstance(limit, int) and limit > 0 else None

    @property
    def swaps(self) -> list[Decision]:
        """The decisions that changed the on-policy share."""
        pairs = zip(self.decisions, self.decisions[1:], strict=False)
        return [later for earlier, later in pairs if later.on_policy_share != earlier.on_policy_share]

    @property
    def is_reward_model(self) -> bool:
        """Whether it trained a reward model."""
        kind = str(self.setting("model.class_path") or "")
        return bool(self.reward_quality) or kind.endswith("RewardModule")

    @property
    def config_text(self) -> str:
        """The settings as YAML."""
        return yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True) if self.config else ""

    @property
    def alarms(self) -> list[Mapping[str, Any]]:
        """What the watch said: each with `step`, `text` and `advice`."""
        rows = self.summary.get("alarms")
        keys = ("step", "text", "advice")
        return [row for row in rows if isinstance(row, Mapping) and all(key in row for key in keys)] if rows else []

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by dotted key."""
        return dict(_flatten(self.config))

    def setting(self, key: str) -> Any:
        """A setting by its dotted key; None without it."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder.

    Args:
        folder: of a run that ended, was cut off or is under way.

    Raises:
        FileNotFoundError: there is no run in it.
    """
    if not any((folder / mark).exists() for mark in _MARKS):
        what = "no run is in it" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(
            f"expected a run folder, such as runs/quickstart, got {folder}: {what}. A fit makes one "
            "(its --trainer.default_root_dir)"
        )
    gaps: list[str] = []
    summary = read_json(folder / run_folder.SUMMARY, gaps)
    return RunRecord(
        name=folder.resolve().name,
        state=_state(folder, summary),
        decisions=list(_decisions(folder, gaps)),
        metrics=read_metrics(folder / run_folder.CSV_LOGS),
        samples=[row for row in read_jsonl(folder / run_folder.SAMPLES, gaps) if _is_sample(row)],
        answers=[row for row in read_jsonl(folder / run_folder.ANSWERS, gaps) if _is_answer(row)],
        summary=without_private(summary),
        config=without_private(read_yaml(folder / run_folder.CONFIG, gaps)),
        reward_quality=read_json(folder / run_folder.REWARD_QUALITY, gaps),
        gaps=gaps,
    )


def _state(folder: Path, summary: Mapping[str, Any]) -> State:
    if summary and summary.get("state", "finished") != "running":
        return "stopped" if summary.get("state") == "stopped" else "finished"
    return "running" if run_folder.is_locked(folder) else "stopped"


def _decisions(folder: Path, gaps: list[str]) -> Iterator[Decision]:
    strange = 0
    for row in read_jsonl(folder / run_folder.DECISIONS, gaps):
        try:
            yield Decision.from_record(row)
        except (KeyError, TypeError, ValueError):
            strange += 1
    if strange:
        gaps.append(f"{strange} of the lines of {run_folder.DECISIONS} are no decisions as this version writes them")


def _is_sample(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("step"), int) and all(
        isinstance(row.get(side), list) and all(isinstance(answer, dict) and "text" in answer for answer in row[side])
        for side in ("on_policy", "off_policy")
    )


def _is_answer(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row.get(key), str) for key in ("prompt", "before", "after"))


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        key = f"{prefix}{name}"
        if isinstance(item, Mapping) and item:
            yield from _flatten(item, f"{key}.")
        else:
            yield key, item
