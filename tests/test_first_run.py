"""Three commands take a newcomer from 40 pairs to a chat with the model that they aligned; a tiny model stands in."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from configs.first_run.likeness import likeness, rule
from lit_align.cli import main

THINGS = ("tea", "snow", "moss", "bees", "the sea", "a lamp", "rice", "gold", "salt", "music")
REQUESTS = ("What is {}?", "Tell me of {}.", "Give one fact about {}.", "Who likes {}?")
SMALL = ["--trainer.max_steps", "2", "--data.batch_size", "2", "--data.sampler.max_new_tokens", "4"]


def write_pairs(path: Path) -> None:
    prompts = [request.format(thing) for request in REQUESTS for thing in THINGS]
    rows = [{"prompt": prompt, "chosen": "Well, it is good.", "rejected": "So it is."} for prompt in prompts]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_init_fit_chat(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_pairs(tmp_path / "my_pairs.jsonl")
    assert main(["init"]) == 0
    fit = ["fit", "--config", "configs/first_run.yaml", "--data.train", "my_pairs.jsonl"]
    assert f"lit-align {' '.join(fit)}" in capsys.readouterr().out
    assert main([*fit, "--model.policy.model", str(tiny_model), *SMALL]) == 0
    answers = (tmp_path / "runs/first_run/answers.jsonl").read_text().splitlines()
    assert len(answers) == 10
    assert "30 pairs from 30 prompts to train on, 10 held out" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("What is tea?\n"))
    assert main(["chat", "runs/first_run", "--max_new_tokens", "4"]) == 0


@pytest.mark.parametrize("as_messages", [False, True])
def test_what_is_like_the_chosen_answer_wins(as_messages: bool) -> None:
    chosen, rejected = "Arr, nine minutes, matey!", "Boil it for nine minutes."
    row = {"chosen": chosen, "rejected": rejected}
    if as_messages:
        row = {key: [{"role": "assistant", "content": text}] for key, text in row.items()}  # type: ignore[misc]
    like, unlike, other = rule("How long?", ["Arr, eight minutes, matey!", "Boil it for eight minutes.", ""], row)
    assert like > 0 > unlike and other == 0
    apart = 1 - likeness(chosen, rejected)
    assert apart > 0 and rule("How long?", [chosen, rejected], row) == pytest.approx([apart, -apart])


def test_likeness_counts_each_piece_once() -> None:
    assert likeness("tea", "tea") == likeness("a cup of tea", "a cup of tea") == 1
    assert likeness("", "") == likeness("", "tea") == 0
    assert likeness("abcd", "efgh") == 0
    assert likeness("aaaa", "a") == pytest.approx(2 / 5 / 4)
