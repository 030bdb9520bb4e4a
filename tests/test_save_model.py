"""Every fit leaves its model in the run folder: at its end, after an interruption, and the best one."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import lit_align as la
from lit_align.export import SaveModel
from lit_align.report.summary import RunSummary
from lit_align.run_parts import find_callback
from lit_align.trained import open_run

ROWS = [{"prompt": f"tea {n}", "chosen": f"hot {n}", "rejected": "cold"} for n in range(8)]
IDS = torch.tensor([[3, 5, 7, 9, 11]])


def fit(model: Path, callbacks: Sequence[Callback] = (), lora: bool = True, **settings: Any) -> Trainer:
    """A fit in the folder `runs/tea`."""
    spec = la.PolicySpec(str(model), lora=la.LoraSpec(r=2) if lora else None)
    module = la.AlignmentModule(spec, la.DPO(beta=0.2), optimizer=lambda params: torch.optim.AdamW(params, lr=0.01))
    path = settings.pop("ckpt_path", None)
    trainer = la.AlignmentTrainer(
        **{"max_steps": 4, "default_root_dir": "runs/tea", "logger": False, "enable_progress_bar": False, **settings},
        accelerator="cpu",
        callbacks=list(callbacks),
    )
    data = la.AlignmentDataModule(train=ROWS[:6], val=ROWS[6:], batch_size=2)
    trainer.fit(module, datamodule=data, ckpt_path=path)
    return trainer


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    return tiny_model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(IDS).logits


class StopAt(Callback):
    """Ends a fit at a step, by Ctrl-C or by another error."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step = step
        self.error = error

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step != self.step:
            return
        if isinstance(self.error, KeyboardInterrupt):  # as a terminal does
            signal.raise_signal(signal.SIGINT)
        else:
            raise self.error


def test_peft_loads_what_a_fit_leaves(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(model)
    printed = capsys.readouterr().out
    own = logits(open_run("runs/tea").load("cpu").model)
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained("runs/tea/model")), own)
    base = AutoModelForCausalLM.from_pretrained(model)
    assert float((logits(base) - own).abs().max()) > 1e-3
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, "runs/tea/model")), own)
    lines = re.search(r"To load the model:\n((?:  .*\n?){3})", printed)
    assert lines is not None
    names: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in lines[1].splitlines()), names)
    torch.testing.assert_close(logits(names["model"]), own)
    assert names["tokenizer"].chat_template == AutoTokenizer.from_pretrained(model).chat_template


def test_transformers_loads_what_full_training_leaves(model: Path) -> None:
    fit(model, lora=False)
    own = logits(open_run("runs/tea").load("cpu").model)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained("runs/tea/model")), own)
    assert not Path("runs/tea/model/adapter_config.json").exists()
    assert {path.suffix for path in Path("runs/tea/model").glob("model*")} == {".safetensors"}


def test_the_layout_is_the_one_that_vllm_reads(model: Path) -> None:
    fit(model)
    settings = json.loads(Path("runs/tea/model/adapter_config.json").read_text())
    assert settings["r"] == 2 and settings["lora_alpha"] == 32 and settings["peft_type"] == "LORA"
    assert {name.rpartition(".")[2] for name in settings["target_modules"]} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert settings["bias"] == "none" and not settings["modules_to_save"]
    assert not settings["use_dora"] and not settings["use_rslora"]
    assert Path(settings["base_model_name_or_path"]).is_absolute()
    name = re.compile(r"base_model\.model\.model\.layers\.\d+\.(self_attn|mlp)\.(\w+_proj)\.lora_[AB]\.weight")
    tensors = load_file("runs/tea/model/adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 7  # two layers of seven modules, with A and B each
    for key, tensor in tensors.items():
        assert name.fullmatch(key), key
        assert tensor.shape[0 if "lora_A" in key else 1] == 2


def test_generation_ends_where_answers_end_in_training(model: Path) -> None:
    fit(model)
    settings = GenerationConfig.from_pretrained("runs/tea/model")
    tokenizer = AutoTokenizer.from_pretrained("runs/tea/model")
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    assert settings.pad_token_id is not None


def test_the_card_tells_what_was_done_and_no_path(model: Path, tmp_path: Path) -> None:
    fit(model)
    card = Path("runs/tea/model/README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "peft" and head["pipeline_tag"] == "text-generation"
    assert "base_model" not in head  # a path is no id of the hub
    assert {"lit-align", "dpo", "lora"} <= set(head["tags"])
    assert "| base | `tiny-llama`, weights with the hash `" in card
    assert "rank 2, alpha 32" in card and "| loss | DPO (beta 0.2" in card
    assert "6 pairs from 6 prompts" in card and "step 4" in card
    assert str(model.parent) not in card and str(tmp_path) not in card


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the judge has gone")], ids=["ctrl-c", "error"])
def test_an_interrupted_fit_leaves_its_last_step(
    model: Path, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, RuntimeError)):
        fit(model, [StopAt(2, error)])
    assert "The model as of step 2 is in runs/tea/model" in capsys.readouterr().out
    left = logits(AutoPeftModelForCausalLM.from_pretrained("runs/tea/model"))
    torch.testing.assert_close(left, logits(open_run("runs/tea/checkpoints/last.ckpt").load("cpu").model))
    assert "step 2, at which the run was stopped" in Path("runs/tea/model/README.md").read_text()
    fit(model, ckpt_path="last")  # the resumed run replaces it
    assert "the end of the run, step 4" in Path("runs/tea/model/README.md").read_text()
    assert float((logits(AutoPeftModelForCausalLM.from_pretrained("runs/tea/model")) - left).abs().max()) > 1e-4
    assert not list(Path("runs/tea").glob("*.part"))


def test_the_best_checkpoint_has_a_folder_of_its_own(model: Path) -> None:
    best = la.AlignmentCheckpoint(monitor="val/loss", mode="max", every_n_train_steps=1, filename="{step}")
    trainer = fit(model, [best], val_check_interval=1)
    path = best.best_model_path
    assert torch.load(path, weights_only=True)["global_step"] < 4  # the highest loss is an early one
    expected = logits(open_run(path).load("cpu").model)
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained("runs/tea/best_model")), expected)
    last = logits(AutoPeftModelForCausalLM.from_pretrained("runs/tea/model"))
    assert float((last - expected).abs().max()) > 1e-4
    torch.testing.assert_close(last, logits(open_run("runs/tea/checkpoints/last.ckpt").load("cpu").model))
    card = Path("runs/tea/best_model/README.md").read_text()
    assert "the best by val/loss" in card
    summary = find_callback(trainer, RunSummary)
    assert summary is not None
    outputs = summary.summary["outputs"]
    assert outputs["best model"] == "runs/tea/best_model"


def test_it_can_be_switched_off(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(model, [SaveModel(at_end=False, best=False)])
    assert not Path("runs/tea/model").exists()
    assert "To load the model" not in capsys.readouterr().out
    fit(model, enable_checkpointing=False)
    assert not Path("runs/tea/model").exists()


def test_weights_that_are_not_finite_replace_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Spoil(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            with torch.no_grad():
                next(p for p in pl_module.parameters() if p.requires_grad).fill_(torch.nan)

    fit(model)
    before = Path("runs/tea/model/README.md").stat().st_mtime_ns
    fit(model, [Spoil()], max_steps=6, ckpt_path="last")
    assert Path("runs/tea/model/README.md").stat().st_mtime_ns == before
    assert "could not be written: At step 6 the weight" in capsys.readouterr().out
