"""`lit-align preview`: what it shows is what a run trains on, and no text of the data drives the terminal."""

from __future__ import annotations

import io
import json
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from lit_align.cli import main
from lit_align.data import AlignmentDataModule, BestRandom
from lit_align.data.encoder import Encoder
from lit_align.judges import CombinedJudge, JudgePart, RuleJudge
from lit_align.preview.rendering import compare, pieces, unwritten
from lit_align.preview.rows import PreviewRow, RowReader, is_free
from lit_align.preview.show import RowText
from lit_align.preview.terminal import Terminal, cells, plain
from lit_align.records import Candidate, Chat, Message
from tests.helpers.tiny import CHAT_TEMPLATE, tiny_tokenizer

STYLES = re.compile(r"\x1b\[[0-9;]*m")
CHAT = (Message("user", "Hi?"),)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n"
    "{% endif %}{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(data: AlignmentDataModule, held_out: bool = False, count: int = 99, **options: Any) -> list[PreviewRow]:
    encoder = data.make_encoder(tiny_tokenizer())
    return list(RowReader(data, encoder, needs_target=False, **options).rows(held_out, 1, count))


def shown(data: AlignmentDataModule, number: int = 1, width: int = 80, colour: bool = False, **tokenizer: Any) -> str:
    encoder = data.make_encoder(tiny_tokenizer(**tokenizer))
    (row,) = RowReader(data, encoder, needs_target=False).rows(False, number, 1)
    text = RowText(Terminal(colour, width), encoder, "BestWorst", None, samples=True, use="trained on")
    return "\n".join(text.lines(row))


def candidates(number: int) -> dict[str, Any]:
    scored = [{"text": f"{number} is {n}", "score": float(n)} for n in range(6)]
    return {"prompt": f"What is {number}?", "candidates": scored}


def test_what_is_shown_is_what_a_run_trains_on_and_evaluates(tmp_path: Path) -> None:
    rows = [candidates(n) for n in range(12)]
    broken = [
        *rows[:3],
        {"prompt": "no answers"},
        "{",
        *rows[3:],
        {"prompt": "x " * 99, "chosen": "a", "rejected": "b"},
    ]
    data = AlignmentDataModule(
        write(tmp_path / "rows.jsonl", broken), selector=BestRandom(), val_fraction=0.3, on_bad_row="skip",
        max_prompt_tokens=60, seed=5,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="skipped 2 bad rows"):
        training, held_out = read(data), read(data, held_out=True)
        data.prepare(tiny_tokenizer())
    for preview, pairs in ((training, data.train_pairs), (held_out, data.val_pairs)):
        tokens = [pair.tokens for row in preview for pair in row.pairs if not pair.dropped]
        assert len(tokens) == len(pairs) > 2
        for mine, theirs in zip(tokens, pairs, strict=True):
            assert mine is not None
            for part in ("prompt", "chosen", "rejected"):
                assert getattr(mine, part).tolist() == getattr(theirs, part).tolist()
    assert [Path(row.where).name for row in training] == [*[f"rows.jsonl, row {n}" for n in range(1, 16)]], (
        "every row of the file has its place"
    )
    assert "got prompt" in training[3].left_out and "expected one JSON object" in training[4].left_out
    assert {row.left_out for row in training[5:14] if not row.pairs} == {
        "its prompt is held out, so it is not trained on"
    }
    assert training[14].pairs[0].dropped == "prompt_too_long"


def test_prompts_of_a_held_out_file_are_left_out_of_the_training_rows(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [candidates(n) for n in range(3)])
    data = AlignmentDataModule(train, write(tmp_path / "val.jsonl", [candidates(1)]))
    assert [bool(row.pairs) for row in read(data)] == [True, False, True]
    assert [row.where for row in read(data, held_out=True)] == [f"{tmp_path / 'val.jsonl'}, row 1"]


def test_no_text_of_the_data_drives_the_terminal(tmp_path: Path) -> None:
    evil = "a\x1b[31mb\x07c\u202ed\u2066e\u200bf\x9bg\rh\x08i\u2028j\ufeffk\x00l"
    row = {"prompt": [{"role": "user", "content": evil}], "chosen": evil + "\n\x1b]0;t\x07", "rejected": "no"}
    data = AlignmentDataModule(write(tmp_path / "rows.jsonl", [row]))
    for colour in (False, True):
        text = STYLES.sub("", shown(data, colour=colour))
        drives = [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")]
        assert not drives
        assert r"a\x1b[31mb\x07c\u202ed\u2066e\u200bf\x9bg\rh\x08i\u2028j\ufeffk\x00l" in text.replace("\n  │ ", "")
    assert plain(evil) == evil.encode("unicode_escape").decode()


def test_colours_are_those_of_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Terminal.of(Screen()).colour and not Terminal.of(io.StringIO()).colour
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Terminal.of(io.StringIO()).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Terminal.of(Screen()).colour


def test_parts_and_special_tokens_are_told_apart_with_and_without_colours(tmp_path: Path) -> None:
    row = {"prompt": "Hi?", "chosen": " Yes. ", "rejected": "No <|im_start|> no"}
    data = AlignmentDataModule(write(tmp_path / "rows.jsonl", [row]))
    lines = shown(data).splitlines()
    assert "  │ ⟦<|im_start|>⟧user↵" in lines and "  │ ⟦<|im_start|>⟧assistant↵" in lines
    assert "  + ·Yes.·⟦<|im_end|>⟧" in lines and "  - No·⟦<|im_start|>⟧·no⟦<|im_end|>⟧" in lines
    coloured = shown(data, colour=True)
    assert "\x1b[32;7m<|im_end|>\x1b[0m" in coloured and "⟦" not in coloured
    assert [line for line in STYLES.sub("", coloured).splitlines() if line.startswith("  + ")] == [
        "  + ·Yes.·<|im_end|>"
    ]


@pytest.mark.parametrize("width", [40, 80, 140])
def test_no_line_is_wider_than_the_terminal_and_no_character_is_lost(width: int) -> None:
    text = "日本語の長い文章 " * 20 + "word " * 50 + "x" * 300
    lines = Terminal(False, width).lines(list(cells(text)), "  │ ")
    columns = [sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) for line in lines]
    assert max(columns) <= width and len(lines) < 1.5 * sum(columns) / width + 1
    assert "".join(line.removeprefix("  │ ") for line in lines) == text


def test_what_is_dropped_or_cut_is_said_with_its_numbers(tmp_path: Path) -> None:
    rows = [
        {"prompt": "w " * 50, "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Hi?", "chosen": "y " * 50, "rejected": "No."},
        {"prompt": "pick", "candidates": [{"text": "a", "score": 1}, {"text": "b", "score": 1}]},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    data = AlignmentDataModule(path, max_prompt_tokens=40, max_completion_tokens=30)
    whole = len(Encoder(tiny_tokenizer()).encode_prompt((Message("user", "w " * 50),)))
    assert f"Dropped: the prompt has {whole} tokens, and max_prompt_tokens is 40" in shown(data)
    assert re.search(r"Dropped: an answer has \d+ tokens, and max_completion_tokens is 30\.", shown(data, 2))
    assert ", trained on" not in shown(data, 2)
    assert "Of 2 candidates BestWorst makes 0 pairs (ties: 1):" in shown(data, 3)
    cut = AlignmentDataModule(path, max_prompt_tokens=40, too_long="cut_prompt")
    assert f"prompt: 40 tokens, and {whole - 40} more cut off its left end" in shown(cut)
    assert "The template writes the same text" in shown(cut)


def test_a_judge_that_costs_something_is_asked_on_request_alone(tmp_path: Path) -> None:
    class Model(RuleJudge):
        def score(self, sets: Any) -> list[list[float]]:
            asked.append(len(sets))
            return super().score(sets)

    asked: list[int] = []
    rule, dear = RuleJudge("tests.test_preview.by_length"), Model("tests.test_preview.by_length")
    path = write(tmp_path / "rows.jsonl", [{"prompt": "pick", "candidates": ["a", "ccc", "bb"]}])
    (row,) = read(AlignmentDataModule(path, judge=rule))
    assert row.scored and (row.pairs[0].pair.chosen.text, row.pairs[0].pair.rejected.text) == ("ccc", "a")
    (row,) = read(AlignmentDataModule(path, judge=dear), ask_judge=False)
    assert not row.scored and not asked and all(pair.tokens is not None for pair in row.pairs)
    text = shown(AlignmentDataModule(path))
    assert "Their scores come from a judge, and there is none" in text.replace("\n", " ")
    assert text.count("candidate: ") == 3 and "trained on" not in text
    (row,) = read(AlignmentDataModule(path, judge=dear), ask_judge=True)
    assert asked == [1] and row.scored
    assert is_free(CombinedJudge([JudgePart(rule)])) and not is_free(None)


def by_length(prompt: Any, candidates: list[str], row: Any) -> list[float]:
    return [float(len(text)) for text in candidates]


def test_the_template_s_own_text_is_held_against_the_tokens() -> None:
    for template, differs in ((None, False), (THINKS, True)):
        tokenizer = tiny_tokenizer() if template is None else tiny_tokenizer(template)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi?"}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(prompt + "Yes.<|im_end|>", add_special_tokens=False)["input_ids"]
        comparison = compare(Encoder(tokenizer), CHAT, Candidate("Yes."), ids)
        assert comparison.differs is differs
        assert comparison.template_rest == ("<think>\n\n</think>\nYes.<|im_end|>\n" if differs else "\n")
        assert comparison.ours == ("Yes.<|im_end|>" if differs else "")
    alone = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}"
    assert "one turn" in compare(Encoder(tiny_tokenizer(alone)), CHAT, Candidate("Yes."), [1]).refused


@pytest.mark.parametrize("blank", ["", "\n"])
def test_an_end_that_the_template_does_not_write_is_said_to_be_added(tmp_path: Path, blank: str) -> None:
    template = CHAT_TEMPLATE.replace("<|im_end|>\n{% endfor %}", blank + "{% endfor %}")
    row = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
    text = shown(AlignmentDataModule(write(tmp_path / "rows.jsonl", [row])), chat_template=template).replace("\n", " ")
    assert 'The template writes the same text, without the "<|im_end|>" that ends the answer' in text
    assert ('where the template has "↵"' in text) == bool(blank) and "other text" not in text


def test_parts_that_the_template_does_not_write_are_named(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    answer = [{"role": "assistant", "reasoning_content": "Hm.", "content": "Yes."}]
    row = {"prompt": "Hi?", "chosen": answer, "rejected": "No.", "tools": [tool]}
    text = shown(AlignmentDataModule(write(tmp_path / "rows.jsonl", [row]))).replace("\n", " ")
    assert "writes nothing of: `tools`, `reasoning_content` of the chosen answer." in text
    no_system = tiny_tokenizer("{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}")
    chat = (Message("system", "Be kind."), *CHAT)
    assert unwritten(Encoder(no_system), chat, Candidate("Yes."), "it") == ["`content` of turn 1"]


def test_a_setting_that_the_generation_prompt_alone_reads_is_written() -> None:
    thinks = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
    encoder = Encoder(tiny_tokenizer(CHAT_TEMPLATE.removesuffix("{% endif %}") + thinks))
    chat = Chat(CHAT, template_kwargs='{"enable_thinking": false, "nothing": 1}')
    assert unwritten(encoder, chat, Candidate("Yes."), "it") == ["`nothing`"]


def test_pieces_are_the_text_of_the_tokens() -> None:
    tokenizer = tiny_tokenizer()
    text = "<|im_start|>user\n  Hé 日本 <|im_end|> x<|im_end|><|im_end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(piece.text for piece in pieces(tokenizer, ids)) == text
    assert [piece.text for piece in pieces(tokenizer, ids) if piece.special] == ["<|im_start|>", *["<|im_end|>"] * 3]
    assert (
        "".join(piece.text for piece in pieces(tokenizer, ids[4:], ids[:4]))
        == tokenizer.decode(ids)[len(tokenizer.decode(ids[:4])) :]
    )


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Path:
    """A run whose model has a tokenizer and no weights."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").unlink()
    rows = write(
        tmp_path / "rows.jsonl", [{"prompt": f"Hi {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(9)]
    )
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {{policy: {{model: {model}}}}}\ndata: {{train: {rows}}}\ntrainer: {{accelerator: cpu}}\n")
    return path


def test_the_command_loads_no_weights(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "--config", str(config), "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"rows.jsonl, row (\d)", out) == ["1", "2"] and "stop at <|im_end|> (2)" in out.replace("\n", " ")
    assert "chosen: " in out and "tokens, trained on" in out and "\x1b" not in out
    assert main(["preview", "--config", str(config), "--row", "7"]) == 0
    assert re.findall(r"rows.jsonl, row (\d)", capsys.readouterr().out) == ["7"]
    assert main(["preview", "--config", str(config), "--data.val_fraction", "0.3", "--held_out", "true"]) == 0
    out = capsys.readouterr().out
    assert out.count("rows.jsonl, row") == 3 and "tokens, held out" in out and "trained on" not in out


def test_the_model_s_own_stops_are_those_of_the_preview(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "model/generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    assert main(["preview", "--config", str(config), "--rows", "1"]) == 0
    assert "stop at <|im_end|> (2), <|endoftext|> (0)" in capsys.readouterr().out.replace("\n", " ")


def test_an_answer_that_the_template_changes_is_said(tmp_path: Path) -> None:
    row = {"prompt": "Hi?", "chosen": "<think>Hm.</think>Yes.", "rejected": "No."}
    template = CHAT_TEMPLATE.replace("message['content'] }}", "message['content'].split('</think>')[-1] }}")
    text = shown(AlignmentDataModule(write(tmp_path / "rows.jsonl", [row])), chat_template=template)
    assert "The template writes the chosen answer otherwise than the row has it." in text
    assert "rejected answer otherwise" not in text and "  + Yes.⟦<|im_end|>⟧" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--row", "99"], "there is no row 99"), (["--rows", "0"], "expected rows to be at least 1, got 0")],
)
def test_rows_that_are_not_there(
    config: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["preview", "--config", str(config), *options]) == 1
    assert message in capsys.readouterr().err


def test_rows_of_a_reward_model(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward = str(Path(__file__).parents[1] / "configs/reward_model.yaml")
    model, rows = str(config.parent / "model"), str(config.parent / "rows.jsonl")
    options = ["--model.base.model", model, "--data.train", rows, "--trainer.accelerator", "cpu"]
    assert main(["preview", "--config", reward, *options]) == 0
    out = capsys.readouterr().out
    assert "The template writes the same text" in out and "Sampled answers" not in out
