"""`lit-align measure` in both forms: sequential or not, and what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_align.boundary import BoundaryCallback, BoundaryResult
from lit_align.cli import main
from lit_align.cli.measure import measure_recorded
from lit_align.records import Candidate, CandidateSet, Message
from lit_align.report.measurement import readable, result_record
from lit_align.trainer import AlignmentTrainer
from tests.helpers.boundary_fakes import FakeData, FakeModule


def piles(prompts: int, wins: Sequence[bool]) -> tuple[list[CandidateSet], list[CandidateSet]]:
    """One answer a side; the on-policy one wins as `wins` says, in turn."""
    sides: tuple[list[CandidateSet], list[CandidateSet]] = ([], [])
    for n in range(prompts):
        for side, score in zip(sides, (float(wins[n % len(wins)]), 0.5), strict=True):
            side.append(CandidateSet((Message("user", f"prompt {n}"),), (Candidate("a b c", score=score),)))
    return sides


def test_it_stops_at_the_prompt_that_decides() -> None:
    found = measure_recorded(*piles(300, [True]))
    assert (found.prompts, found.stopped, found.decided) == (10, "decided", True)
    whole = measure_recorded(*piles(300, [True]), sequential=False)
    assert (whole.prompts, whole.stopped, whole.method) == (300, "pool", "student_t")


def test_margins_in_place_of_votes() -> None:
    on, off = piles(12, [True, False, False])  # 1 or 0 against 0.5: margins as wide either way
    assert measure_recorded(on, off, sequential=False, graded=True).score == pytest.approx(4 / 12)
    clear = [replace(one, candidates=(Candidate("a", score=9.0), Candidate("b", score=0.0))) for one in on]
    narrow = [replace(one, candidates=(Candidate("c", score=1.0), Candidate("d", score=2.0))) for one in off]
    assert measure_recorded(clear, narrow, sequential=False).score == 0.5
    assert measure_recorded(clear, narrow, sequential=False, graded=True).score == pytest.approx(0.5 + 3 / 18)


def test_the_prompts_come_in_random_order() -> None:
    """The first half of the file wins and the second loses: in its order the test would be fooled."""
    on, off = piles(200, [True] * 100 + [False] * 100)
    found = [measure_recorded(on, off, seed=seed) for seed in range(8)]
    assert sum(one.decided for one in found) <= 1
    assert {one.prompts for one in found if not one.decided} == {200}


def test_a_budget_chooses_by_the_seed() -> None:
    on, off = piles(200, [True, False, True, True])
    scores = {measure_recorded(on, off, sequential=False, max_prompts=20, seed=seed).score for seed in range(6)}
    assert len(scores) > 1
    found = measure_recorded(on, off, max_prompts=3)
    assert (found.prompts, found.stopped) == (3, "budget")
    with pytest.raises(ValueError, match="max_prompts to be at least 1, got 0"):
        measure_recorded(on, off, max_prompts=0)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    words = []
    for name, sets in zip(("on_policy", "off_policy"), piles(60, [True, True, True, False]), strict=True):
        rows = [
            {
                "prompt": one.prompt[0].content,
                "candidates": [{"text": c.text, "score": c.score} for c in one.candidates],
            }
            for one in sets
        ]
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words += [f"--{name}", str((tmp_path / name).with_suffix(".jsonl"))]
    return words


def test_the_files_form(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "o.json"
    assert main(["measure", *files, "--output", str(output), "--alpha", "0.1"]) == 0
    found = json.loads(output.read_text())
    assert found["stage"] == "fine_tuning" and found["stopped"] == "decided" and found["prompts"] < 60
    assert found["alpha"] == 0.1 and found["low"] > 0.5 and found["decided"] is True
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "decided, stopped there: 0.5 lies outside the interval" in " ".join(said.split())
    assert f"{found['score']:.2f}: the policy's own answers win " in said and found["meaning"] in " ".join(said.split())
    assert "1 a prompt         on-policy  off-policy" in said and "score, mean" in said

    assert main(["measure", *files, "--output", str(output), "--sequential", "false"]) == 0
    found = json.loads(output.read_text())
    assert (found["prompts"], found["score"]) == (60, 0.75)
    assert "all 60 prompts that there are were used" in " ".join(capsys.readouterr().out.split())
    assert main(["measure", *files, "--alpha", "1"]) == 1
    assert "alpha is the chance of error" in capsys.readouterr().err


def test_the_trainer_s_form_changes_what_it_is_told_and_the_callback_not(tmp_path: Path) -> None:
    boundary = BoundaryCallback(max_prompts=30, batch_prompts=5)
    trainer = AlignmentTrainer(
        default_root_dir=str(tmp_path), accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[boundary]
    )

    class Validated(FakeModule):
        def validation_step(self, batch: Any, index: int) -> None:
            pass

    class ValidatedData(FakeData):
        def val_dataloader(self) -> Any:
            return []

    def measured(**arguments: Any) -> tuple[dict[str, Any], list[str]]:
        data = ValidatedData([0.1], prompts=50)
        found = trainer.measure(Validated(), data, **arguments)
        return found, [prompt for _, batch in data.sampled for prompt in batch]

    found, prompts = measured()
    assert found["prompts"] == len(prompts) in (10, 15, 20) and found["stopped"] == "decided"
    assert measured(seed=3)[1] != prompts and measured(seed=3)[1] == measured(seed=3)[1]
    found, whole = measured(sequential=False, alpha=0.2)
    assert (found["prompts"], found["alpha"], whole[: len(prompts)]) == (30, 0.2, prompts)
    assert measured(max_prompts=7)[0]["prompts"] == 7
    assert measured(graded=True)[0]["graded"] is True and boundary.graded is False
    assert (boundary.max_prompts, boundary.sequential, boundary.alpha, boundary.draw_seed) == (30, True, 0.05, None)
    with pytest.raises(ValueError, match="max_prompts"):
        measured(max_prompts=0)


def test_a_judge_that_tells_nothing_apart_is_said_so() -> None:
    result = BoundaryResult(0.5, 0.45, 0.55, prompts=9, votes_on=0, votes_off=0, ties=9, stopped="pool")
    found = result_record(result, "measured")
    assert (found["stage"], found["on_policy_share"]) == ("injection", 0.0)
    said = " ".join(readable(found).split())
    assert "injection (undecided). Measured; undecided: the judge told no answers apart" in said
    assert "Undecided: all 9 votes are ties, so the score says nothing. Take a judge that grades" in said


def test_a_few_prompts_say_so_and_do_not_lead_astray() -> None:
    found = result_record(measure_recorded(*piles(4, [True, True, True, False])), "measured on recorded scores")
    assert (found["score"], found["decided"], found["stage"], found["on_policy_share"]) == (0.75, False, "injection", 0)
    said = " ".join(readable(found).split())
    assert "Stage: preference injection (undecided)." in said
    assert "0.75, undecided: the policy's own answers win 75 of 100 votes, but 4 prompts leave 0.5 inside" in said
    assert "no guess to follow: static pairs come first. To decide such a score takes about 23 prompts." in said


def user(text: str, score: float) -> CandidateSet:
    return CandidateSet((Message("user", text),), (Candidate("a b", score=score),), where=f"file, {text!r}")


def test_prompts_match_whatever_their_blanks_case_and_unicode_form(capsys: pytest.CaptureFixture[str]) -> None:
    scores = [1.0, 0.0, 1.0, 1.0]
    on = [user(f"Question {n}", score) for n, score in enumerate(scores)]
    off = [user(f" question\u00a0{n}\n", score) for n, score in enumerate([0.0, 1.0, 1.0, 0.0])]
    assert measure_recorded(on, off, sequential=False).score == 0.625
    with pytest.raises(ValueError, match=r"first on-policy prompt is 'Question 0' \(file.*off-policy prompt 'none'"):
        measure_recorded(on, [user("none", 0.0)])
    with pytest.raises(ValueError, match="got none that are off-policy"):
        measure_recorded(on, [CandidateSet(on[0].prompt, ())])
    assert capsys.readouterr().out == ""


def test_of_prompts_that_are_alike_one_is_measured_on(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"Which sea did {who} cross with the old red lantern?" for who in ("you", "we", "they")]
    others = [f"Name {thing}." for thing in ("a tree", "two rivers", "the moon", "one bird", "my town", "some tools")]
    on, off = [[user(text, score) for text in [*texts, *others]] for score in (1.0, 0.0)]
    assert measure_recorded(on, off, sequential=False).prompts == 7
    assert "9 prompts are 7 groups of prompts that are alike: one of each is measured on" in capsys.readouterr().out
