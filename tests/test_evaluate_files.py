"""What an evaluation reads and writes: prompts that a run has not seen, and other programs' formats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from lit_align.data import AlignmentDataModule
from lit_align.evaluate import JudgedAnswers
from lit_align.evaluate.formats import alpaca_eval_files, mt_bench_files, write_prompts
from lit_align.evaluate.prompts import RunPrompts, choose_prompts, prompts_of_run
from lit_align.evaluate.reading import read_answers, read_prompts
from lit_align.records import Candidate, CandidateSet, Message, prompt_text
from lit_align.rows.alike import normal_form
from lit_align.rows.reading import BadRow
from lit_align.sampling import TransformersSampler
from tests.helpers.data_fakes import pair_rows, write

NAMES = ("run", "base")


def ask(text: str) -> CandidateSet:
    return CandidateSet((Message("user", text),), ())


def judged(prompt: str, share: float, **more: Any) -> JudgedAnswers:
    return JudgedAnswers((Message("user", prompt),), Candidate("mine"), Candidate("theirs"), share, **more)


def texts(sets: list[CandidateSet]) -> list[str]:
    return [prompt_text(candidates.prompt) for candidates in sets]


def test_prompts_of_other_programs(tmp_path: Path) -> None:
    rows = [
        {"prompt": "ours", "topic": "tea"},
        {"prompt": [{"role": "user", "content": "a chat"}]},
        {"instruction": "AlpacaEval's", "output": "x", "generator": "m", "dataset": "koala"},
        {"question_id": 81, "category": "writing", "turns": ["MT-Bench's", "and then?"]},
        {"prompt": "ours"},
    ]
    sets = read_prompts(write(tmp_path / "prompts.jsonl", rows))
    assert texts(sets) == ["ours", "a chat", "AlpacaEval's", "MT-Bench's"]
    assert [candidates.row.get("category") for candidates in sets] == [None, None, "koala", "writing"]
    assert sets[0].row["topic"] == "tea" and not any(candidates.candidates for candidates in sets)


def test_answers_of_other_programs(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "output": "1", "generator": "gpt"},
        {"prompt": "b", "output": "2", "opponent_output": "no"},
        {"prompt": "c", "chosen": "3", "rejected": "no"},
        {"prompt": "d", "candidates": [{"text": "4"}, {"text": "no"}]},
        {"prompt": "e", "response": "5"},
    ]
    answered = read_answers(write(tmp_path / "answers.jsonl", rows))
    assert [candidates.candidates for candidates in answered] == [
        (Candidate("1", model="gpt"),),
        (Candidate("2"),),
        (Candidate("3"),),
        (Candidate("4"),),
        (Candidate("5"),),
    ]


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an answer in .*p.jsonl"):
        read_answers(write(tmp_path / "p.jsonl", [{"prompt": "alone"}]))
    with pytest.raises(BadRow, match="expected `prompt`"):
        read_prompts(write(tmp_path / "q.jsonl", [{"question": "?"}]))


def run_data(folder: Path, **more: Any) -> AlignmentDataModule:
    rows = [{**row, "prompt": f"topic{n} asks word{n * 7}"} for n, row in enumerate(pair_rows(30))]
    train = write(folder / "train.jsonl", rows[:10])
    val = write(folder / "val.jsonl", rows[10:])
    return AlignmentDataModule(train, val, sampler=TransformersSampler(), **more)


def test_a_run_is_evaluated_on_prompts_that_it_has_not_seen(tmp_path: Path) -> None:
    of_run = prompts_of_run(run_data(tmp_path), measured=True)
    assert (len(of_run.held_out), len(of_run.measured_on), len(of_run.trained_on)) == (10, 10, 10)
    own = choose_prompts(of_run, None, "", None, 0)
    assert not set(texts(own.sets)) & (of_run.measured_on | of_run.trained_on)
    offered = [ask(form.upper()) for form in (*of_run.trained_on, *of_run.measured_on)]  # letter case hides nothing
    chosen = choose_prompts(of_run, [*offered, ask("a new one")], "FILE", None, 0)
    assert texts(chosen.sets) == ["a new one"]
    assert chosen.left_out == {"trained on": 10, "measured on": 10}
    with pytest.raises(ValueError, match="trained on 10 and measured its boundary on 10"):
        choose_prompts(of_run, offered, "FILE", None, 0)


def test_what_another_run_has_seen_is_left_out_as_well(tmp_path: Path) -> None:
    of_run = prompts_of_run(run_data(tmp_path), measured=True)
    form = sorted(normal_form(candidates.prompt) for candidates in of_run.held_out)
    other = RunPrompts(trained_on=frozenset(form[:3]), measured_on=frozenset(form[3:5]))
    chosen = choose_prompts(of_run.without(other), None, "", None, 0)
    assert sorted(texts(chosen.sets)) == form[5:]
    assert chosen.left_out == {"trained on": 3, "measured on": 2}


def test_held_out_prompts_that_served_both_uses_are_no_evaluation(tmp_path: Path) -> None:
    data = run_data(tmp_path, boundary_fraction=0.0)
    with pytest.raises(ValueError, match=r"all of its 20 held-out prompts.*--prompts FILE"):
        choose_prompts(prompts_of_run(data, measured=True), None, "", None, 0)
    unmeasured = choose_prompts(prompts_of_run(data, measured=False), None, "", None, 0)
    assert len(unmeasured.sets) == 20, "a run without a boundary has not seen them"


def test_without_held_out_prompts_the_error_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"--prompts FILE.*val_fraction"):
        choose_prompts(RunPrompts(), None, "", None, 0)


def test_the_draw_depends_on_the_seed_alone_and_takes_none_alike() -> None:
    sets = [ask(f"word{n} thing{n}") for n in range(20)]
    offered = [*sets, ask("WORD3  thing3")]
    chosen = choose_prompts(RunPrompts(), offered, "FILE", 5, 1)
    assert texts(chosen.sets) == texts(choose_prompts(RunPrompts(), offered, "FILE", 5, 1).sets)
    assert texts(chosen.sets) != texts(choose_prompts(RunPrompts(), offered, "FILE", 5, 2).sets)
    assert chosen.left_out == {"like another": 1, "beyond the limit": 15}


def test_rows_by_prompt_can_be_read_again(tmp_path: Path) -> None:
    chat = (Message("user", "b"), Message("assistant", "and?"), Message("user", "c"))
    pairs = [
        judged("a", 1.0, category="x", orders=(1.0, 0.0)),
        JudgedAnswers(chat, Candidate("mine"), Candidate("theirs"), math.nan),
    ]
    write_prompts(tmp_path, pairs)
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert parquet.read_table(tmp_path / "prompts.parquet").to_pylist() == rows
    assert (rows[0]["verdict"], rows[0]["shown_first"], rows[0]["length"]) == ("win", 1.0, 4)
    assert (rows[1]["verdict"], rows[1]["win_probability"], rows[1]["category"]) == ("abstained", None, None)
    for name in ("prompts.jsonl", "prompts.parquet"):
        answered = read_answers(str(tmp_path / name))
        assert [one.candidates[0].text for one in answered] == ["mine", "mine"]
        assert answered[1].prompt == chat


def test_alpaca_evals_format() -> None:
    pairs = [judged("a", 1.0), judged("b", 0.5, category="koala"), judged("c", math.nan)]
    files = alpaca_eval_files(pairs, NAMES, "judge")
    assert files["model_outputs.json"][0] == {
        "instruction": "a", "output": "mine", "generator": "run", "dataset": "lit_align",
    }  # fmt: skip
    assert files["reference_outputs.json"][1] == {
        "instruction": "b", "output": "theirs", "generator": "base", "dataset": "koala",
    }  # fmt: skip
    annotations = files["annotations.json"]
    assert [row["preference"] for row in annotations] == [2.0, 1.5, None]
    assert (annotations[0]["output_2"], annotations[0]["generator_1"]) == ("mine", "base")


def test_mt_benchs_format() -> None:
    pairs = [judged("a", 1.0, category="math"), judged("b", 0.5, orders=(1.0, 1.0)), judged("c", math.nan)]
    files = mt_bench_files(pairs, NAMES, "judge", 0.0)
    assert files["question.jsonl"][0] == {"question_id": 1, "category": "math", "turns": ["a"]}
    answer = files["model_answer/run.jsonl"][1]
    assert (answer["question_id"], answer["model_id"], answer["choices"]) == (
        2,
        "run",
        [{"index": 0, "turns": ["mine"]}],
    )
    verdicts = files["model_judgment/lit-align_pair.jsonl"]
    assert [(row["g1_winner"], row["g2_winner"]) for row in verdicts] == [
        ("model_1", "model_1"),
        ("model_1", "model_2"),  # whoever is shown first
        ("error", "error"),
    ]
