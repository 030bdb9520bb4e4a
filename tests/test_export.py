"""`lit-align export`: what was trained comes out as a folder that transformers and peft load, with the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.cli import main
from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.training.module import AlignmentModule
from tests.helpers.tiny import save_tiny_model

CONFIG = """
model:
  class_path: lit_align.AlignmentModule
  init_args:
    policy: {model: MODEL, lora: LORA}
    loss: {class_path: lit_align.losses.DPO}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
data:
  class_path: lit_align.AlignmentDataModule
  init_args: {train: pairs.jsonl, batch_size: 2}
trainer: {accelerator: cpu, max_steps: 3, default_root_dir: run, logger: false, enable_progress_bar: false}
"""
PAIRS = "".join(f'{{"prompt": "tea {n}", "chosen": "hot {n}", "rejected": "cold"}}\n' for n in range(6))
IDS = torch.tensor([[3, 5, 7, 9, 11]])


@pytest.fixture(params=["{r: 2}", "null"], ids=["lora", "full"])
def run(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run in the working folder; gives its `lora`."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(PAIRS)
    Path("c.yaml").write_text(CONFIG.replace("MODEL", str(tiny_model)).replace("LORA", request.param))
    assert main(["fit", "--config", "c.yaml"]) == 0
    return str(request.param)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(IDS).logits


def trained(model: Path, lora: LoraSpec | None) -> nn.Module:
    """The policy with the weights of the checkpoint, by the way that validation takes."""
    module = AlignmentModule(PolicySpec(str(model), lora=lora), DPO())
    module.configure_model()
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not module.load_state_dict(state, strict=False).unexpected_keys
    assert module.policy is not None
    return module.policy


def test_what_comes_out_gives_the_numbers_of_what_was_trained(
    run: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--config", "run/config.yaml", "--output", "out"]) == 0
    printed = capsys.readouterr().out
    own = logits(trained(tiny_model, None if run == "null" else LoraSpec(r=2)))
    if run == "null":
        loaded = logits(AutoModelForCausalLM.from_pretrained("out"))
        assert 'AutoModelForCausalLM.from_pretrained("out"' in printed
    else:
        loaded = logits(AutoPeftModelForCausalLM.from_pretrained("out"))
        assert 'AutoPeftModelForCausalLM.from_pretrained("out")' in printed
    torch.testing.assert_close(loaded, own, rtol=0, atol=1e-6)
    start = logits(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert float((loaded - start).abs().max()) > 1e-3  # it was trained
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert not list(Path().glob("*.part"))


def test_nothing_is_overwritten(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    assert main(["export", "--config", "c.yaml", "--output", "out"]) == 1
    assert "out is there already, and export overwrites nothing" in capsys.readouterr().err
    assert not any(Path("out").iterdir())


def test_a_missing_checkpoint_and_another_base_are_sentences(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--config", "c.yaml", "--output", "out"]
    assert main([*command, "--trainer.default_root_dir", "elsewhere"]) == 1
    assert "there is no checkpoint to export" in capsys.readouterr().err
    cut = Path("cut.ckpt")
    cut.write_bytes(Path("run/checkpoints/last.ckpt").read_bytes()[:2000])
    assert main([*command, "--ckpt_path", str(cut)]) == 1
    assert "cut.ckpt is broken or cut short" in capsys.readouterr().err
    other = save_tiny_model(tmp_path / "other", seed=3)
    assert main([*command, "--model.policy.model", str(other)]) == 1
    assert "The checkpoint was made on" in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_next_run_starts_from_what_was_exported(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--config", "c.yaml", "--output", "out"]) == 0
    where = ["--model.policy.model", "out"]
    if run != "null":
        where = ["--model.policy.lora", "null", "--model.policy.adapter", "out"]
    again = ["fit", "--config", "c.yaml", "--trainer.default_root_dir", "next", "--trainer.max_steps", "1", *where]
    assert main([*again, "--trainer.logger", "true"]) == 0, capsys.readouterr().err
    rows = next(Path("next/csv").glob("*/metrics.csv")).read_text().splitlines()
    loss = float(rows[1].split(",")[rows[0].split(",").index("loss")])
    assert loss == pytest.approx(0.693147, abs=1e-5)
