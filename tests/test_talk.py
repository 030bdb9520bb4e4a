"""Chat and sample: what the trained policy and the one it started from say, on a terminal and between pipes."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lit_align as la
from lit_align.cli import main
from lit_align.escape import escape
from lit_align.records import Message
from lit_align.talk import Chat, ChatSettings
from lit_align.talk.text import Wrapped
from lit_align.trained import TrainedPolicy, open_run

ROWS = [{"prompt": f"tea {n}", "chosen": f"hot {n}", "rejected": "cold"} for n in range(6)]
GREEDY = ["--temperature", "0", "--max_new_tokens", "12"]


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, `runs/tea`, whose answers differ from its start's."""
    folder = tmp_path_factory.mktemp("talk")
    spec = la.PolicySpec(str(tiny_model), lora=la.LoraSpec(r=2))
    module = la.AlignmentModule(spec, la.DPO(), optimizer=lambda params: torch.optim.AdamW(params, lr=0.05))
    trainer = la.AlignmentTrainer(
        max_steps=4, default_root_dir=folder / "runs/tea", logger=False, enable_progress_bar=False, accelerator="cpu"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trainer.fit(module, datamodule=la.AlignmentDataModule(train=ROWS, batch_size=2))
    return folder


@pytest.fixture
def policy(runs: Path, monkeypatch: pytest.MonkeyPatch) -> TrainedPolicy:
    """The trained policy; the working folder is that of the runs."""
    monkeypatch.chdir(runs)
    return open_run("tea").load("cpu")


def answer(policy: TrainedPolicy, *turns: str, start: bool = False, system: str | None = None) -> str:
    """The greedy answer to a chat of alternating turns."""
    chat = [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(turns)]
    prompt = (*([] if system is None else [Message("system", system)]), *chat)
    sampler = la.TransformersSampler(num_candidates=1, temperature=0, max_new_tokens=12)
    return policy.answer([prompt], sampler, start=start)[0][0].text


def greedy_chat(policy: TrainedPolicy, **settings: Any) -> Chat:
    return Chat(policy, ChatSettings(**{"temperature": 0, "max_new_tokens": 12, **settings}))


def test_a_chat_streams_what_the_policy_says_and_remembers(policy: TrainedPolicy) -> None:
    chat = greedy_chat(policy, system="Be brief.")
    pieces: list[str] = []
    first = chat.ask("tea?", pieces.append)
    assert first == answer(policy, "tea?", system="Be brief.")
    assert len(pieces) > 1 and "".join(pieces) == first.lstrip()
    second = chat.ask("sea?", pieces.append)
    assert second == answer(policy, "tea?", first, "sea?", system="Be brief.")
    assert [turn.role for turn in chat.turns] == ["system", "user", "assistant", "user", "assistant"]
    chat.reset()
    assert chat.ask("tea?", pieces.append) == first


def test_the_start_answers_where_it_is_asked_to(policy: TrainedPolicy) -> None:
    chat = greedy_chat(policy)
    assert chat.again(print) is None
    trained = chat.ask("tea?", lambda piece: None)
    assert chat.switch() == "start"
    before = chat.again(lambda piece: None)
    assert before == answer(policy, "tea?", start=True) != trained
    assert len(chat.turns) == 2
    assert chat.switch() == "trained"
    assert chat.again(lambda piece: None) == trained


def test_drawn_answers_depend_on_the_seed(policy: TrainedPolicy) -> None:
    def first(seed: int) -> str:
        return Chat(policy, ChatSettings(temperature=1.0, max_new_tokens=12, seed=seed)).ask("tea?", lambda piece: None)

    assert first(1) == first(1) != first(2)


def test_a_chat_that_is_too_long_is_said(policy: TrainedPolicy) -> None:
    with pytest.raises(ValueError, match="and the model takes 512: /reset begins anew"):
        greedy_chat(policy).ask("tea " * 600, print)


def chat_by_pipe(lines: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", "tea", *GREEDY, *options]) == 0


def test_between_pipes_there_are_answers_alone(
    policy: TrainedPolicy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    chat_by_pipe("tea?\n\n/base\n/again\n/reset\n/nothing\n/exit\nnever asked\n", monkeypatch)
    captured = capsys.readouterr()
    trained, before = answer(policy, "tea?").lstrip(), answer(policy, "tea?", start=True).lstrip()
    assert captured.out == f"{escape(trained)}\n{escape(before)}\n"
    assert "The model as the run started answers" in captured.err
    assert "There is no /nothing" in captured.err


def test_full_weights_alone_know_no_start(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/base\ntea?\n"))
    assert main(["chat", str(tiny_model), *GREEDY]) == 0
    captured = capsys.readouterr()
    assert "does not say what they were trained from" in captured.err and captured.out


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(runs: Path) -> None:
    screen, keyboard = pty.openpty()
    command = [sys.executable, "-c", "from lit_align.cli import main; raise SystemExit(main())", "chat", "runs/tea"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm", "NO_COLOR": "1"}
    child = subprocess.Popen(
        [*command, "--max_new_tokens", "480", "--temperature", "0"],
        stdin=keyboard, stdout=keyboard, stderr=subprocess.DEVNULL, cwd=runs, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        shown = read_until(screen, "you> ")
        assert "tea, trained from tiny-llama" in shown and "/base" in shown
        os.write(screen, b"tea?\n")
        read_until(screen, "trained> ")
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        read_until(screen, "you> ")
        os.write(screen, b"/base\n")
        assert "The model as the run started answers" in read_until(screen, "you> ")
        os.write(screen, b"\x04")
        assert child.wait(30) == 0
    finally:
        child.kill()
        os.close(screen)
        os.close(keyboard)


def read_until(screen: int, text: str) -> str:
    """What a pseudo-terminal shows, up to a text."""
    shown = ""
    while text not in shown:
        shown += os.read(screen, 4096).decode(errors="replace")
    return shown


def sample(*options: str) -> int:
    return main(["sample", "tea", *GREEDY, *options])


def test_answers_come_as_rows(policy: TrainedPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": 7, "prompt": "tea?"}, {"prompt": [{"role": "user", "content": "sea?"}], "category": "water"}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert sample("--prompts", str(prompts)) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["id"] == 7 and first["prompt"] == "tea?" and first["output"] == answer(policy, "tea?")
    assert first["generator"] == "tea" and first["finish_reason"] in ("stop", "length")
    assert second["category"] == "water" and second["output"] == answer(policy, "sea?")
    output = tmp_path / "answers.jsonl"
    assert sample("--prompts", str(prompts), "--compare", "--output", str(output)) == 0
    assert f"Answers to 2 prompts are in {output}" in capsys.readouterr().out
    both = [json.loads(line) for line in output.read_text().splitlines()]
    assert both[0]["before"] == answer(policy, "tea?", start=True) != both[0]["after"] == answer(policy, "tea?")
    assert sample("--prompts", str(prompts), "--output", str(output)) == 1
    assert "is there already: choose another --output" in capsys.readouterr().err


def test_prompts_come_from_a_pipe_or_lines(
    policy: TrainedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('tea?\n\n{"prompt": "sea?"}\n{not json\n'))
    capsys.readouterr()
    assert sample("--prompts", "-", "--num_candidates", "2", "--system", "Be brief.") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"][1]["content"] for row in rows] == ["tea?", "sea?", "{not json"]
    texts = [candidate["text"] for candidate in rows[0]["candidates"]]
    assert texts == [answer(policy, "tea?", system="Be brief.")] * 2
    (tmp_path / "p.txt").write_text("tea?\nsea?\n")
    assert sample("--prompts", str(tmp_path / "p.txt")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert sample("--prompts", "-") == 1
    assert sample("--prompts", "no.txt") == 1
    assert sample("--prompts", "no.jsonl") == 1
    errors = capsys.readouterr().err
    assert all(text in errors for text in ("on standard input", "no file 'no.txt'", "no data at 'no.jsonl'"))
    assert main(["sample", "no_run", "--prompts", "no.jsonl"]) == 1
    assert "there is no run 'no_run'" in capsys.readouterr().err


def test_a_base_that_has_moved_and_a_device_that_is_not_there(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    gone = str(tmp_path / "gone")
    assert main(["export", "tea", "--output", str(tmp_path / "out"), "--base", gone]) == 1
    assert "--base names" not in capsys.readouterr().err, "it was used"
    shutil.copytree("runs/tea", "runs/far")
    settings = {"model": {"init_args": {"policy": {"model": gone, "lora": {"r": 2}}}}}
    Path("runs/far/config.yaml").write_text(yaml.safe_dump(settings))
    for words in (["chat", "far"], ["export", "far", "--output", str(tmp_path / "out")]):
        assert main(words) == 1
        assert "--base names its place now" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["chat", "tea", "--device", "toaster"])
    assert "expected a device of this machine, such as cpu, got 'toaster'" in capsys.readouterr().err


def test_a_models_text_does_nothing_to_the_terminal() -> None:
    assert escape("a\x1b[2Jb\x07\r\nc\td\u202e") == "a\\x1b[2Jb\\x07\nc\td\\u202e"
    assert escape("می\u200cخواهم 👩\u200d🌾") == "می\u200cخواهم 👩\u200d🌾"


def test_words_are_not_broken_at_the_edge() -> None:
    written: list[str] = []
    lines = Wrapped(written.append, width=10, column=4)
    for piece in ("one t", "wo thr", "ee\nfour"):
        lines.add(piece)
    lines.end()
    assert "".join(written) == "one \ntwo three\nfour"
