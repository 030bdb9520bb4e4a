"""Run folders as a fit leaves them, of any length, without a fit."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_align import run_folder
from lit_align.boundary.result import BoundaryResult, Decision
from lit_align.report.crossing import crossing, for_the_next_run

NASTY = "<script>document.title = 'taken'</script> \x1b[31mred\x1b[0m مرحبا \u202etxt.exe </script> `code` 😀"
"""A text that a page must show and not obey."""


def decision(step: int, score: float, **more: Any) -> Decision:
    """A decision on a measurement, by the paper's schedule."""
    figures = {"score_mean": score, "score_best": score + 0.2, "distinct_2": 0.9 - score / 5, "length_mean": 12.0}
    settings: dict[str, Any] = {
        "prompts": 64, "votes_on": round(128 * score), "votes_off": round(128 * (1 - score)), "ties": 3,
        "abstentions": 1, "seconds": 4.0, "method": "betting", "stopped": "decided",
        "characteristics": {"on_policy": figures, "off_policy": {**figures, "score_mean": 0.5}},
    }  # fmt: skip
    result = BoundaryResult(score, max(0.0, score - 0.12), min(1.0, score + 0.12), **{**settings, **more})
    share = float(score >= 0.5)
    return Decision(step, "fine_tuning" if share else "injection", share, "by the score", result)


def summary_of(decisions: Sequence[Decision], steps: int, **more: Any) -> dict[str, Any]:
    """What `summary.json` holds."""
    return {
        "state": "finished", "error": None, "steps": steps, "max_steps": steps, "steps_left_out": 0,
        "crossing": crossing(decisions), "next": for_the_next_run(decisions),
        "win_rate": {"score": 0.8, "low": 0.7, "high": 0.9, "prompts": 64, "ties": 2, "mean_before": 0.2,
                     "mean_after": 0.9, "seconds": 5.0},
        "rows": {"rows": 100, "pairs": 80, "ties": 7, "val/pairs": 12, "bad_row/empty prompt": 2,
                 "unused_column/source": 100, "on_policy/pairs": 30, "on_policy/candidates": 64},
        "rounds": [{"step": 20, "mean_score": 0.6, "yield": 0.5, "pairs": 30, "candidates": 64}],
        "judges": ["judge x: 12 comparisons, cost 3"], "metrics": {"loss": 0.5},
        "seconds": {"total": 100.0, "training": 60.0, "measuring": 40.0},
        "activities": {"training": 60.0, "measuring/sampling": 30.0, "measuring/judging": 8.0, "measuring": 2.0},
        "environment": {"python": "3.11.1", "versions": {"torch": "2.6.0"}}, "outputs": {},
        **more,
    }  # fmt: skip


def write_metrics(folder: Path, steps: range, version: int = 0) -> None:
    """A CSV logger's file, with a peak of the loss at its middle step."""
    path = folder / run_folder.CSV_LOGS / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    names = ["boundary/score", "kl", "lengths/chosen", "lengths/rejected", "logps/chosen", "logps/rejected", "loss",
             "loss/NLL", "lr", "on_policy_share", "rewards/accuracies", "rewards/chosen", "rewards/margins",
             "rewards/rejected", "step", "val/loss"]  # fmt: skip
    middle = steps[len(steps) // 2]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, names)
        rows.writeheader()
        for step in steps:
            wave = math.sin(step / 7) / 10
            row: dict[str, Any] = {
                "kl": "nan" if step < middle else 1 + wave, "lengths/chosen": 40 + 9 * wave, "lengths/rejected": 35,
                "logps/chosen": -30 + wave, "logps/rejected": -40 - step / len(steps), "loss": 0.69 + wave,
                "loss/NLL": 2 + wave, "lr": 1e-5, "on_policy_share": float(step >= middle),
                "rewards/accuracies": 0.5 + wave, "rewards/chosen": wave, "rewards/margins": 2 * wave,
                "rewards/rejected": -wave, "step": step,
            }  # fmt: skip
            rows.writerow({**row, "loss": 99.0} if step == middle else row)
            if step % max(1, len(steps) // 10) == 0:
                rows.writerow({"step": step, "val/loss": 0.6 + wave})


def sample(step: int, prompt: str, answer: str = "an answer", answers: int = 2) -> dict[str, Any]:
    """A row of `samples.jsonl`."""
    on = [{"text": f"{answer} {n}", "score": 0.5 + n} for n in range(answers)]
    return {"step": step, "prompt": prompt, "on_policy": on, "off_policy": [{"text": answer, "score": None}]}


def answer(prompt: str, before: str = "before", after: str = "after", change: float = 0.5) -> dict[str, Any]:
    """A row of `answers.jsonl`."""
    return {"prompt": prompt, "before": before, "after": after, "score_before": 0.25, "score_after": 0.25 + change}


def write_run(
    folder: Path,
    decisions: Sequence[Decision],
    steps: int,
    samples: Sequence[dict[str, Any]] = (),
    answers: Sequence[dict[str, Any]] = (),
    config: dict[str, Any] | None = None,
    **summary: Any,
) -> Path:
    """A whole run folder."""
    folder.mkdir(parents=True)
    run_folder.write_json(folder / run_folder.SUMMARY, summary_of(decisions, steps, **summary))
    run_folder.write_jsonl(folder / run_folder.DECISIONS, [decision.record() for decision in decisions])
    for name, rows in ((run_folder.SAMPLES, samples), (run_folder.ANSWERS, answers)):
        path = folder / name
        with path.open("w", encoding="utf-8") as file:
            file.writelines(_line(row) for row in rows)
    settings = config or {"trainer": {"max_steps": steps}, "model": {"class_path": "lit_align.AlignmentModule"}}
    (folder / run_folder.CONFIG).write_text(yaml.safe_dump(settings), encoding="utf-8")
    write_metrics(folder, range(steps))
    return folder


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
