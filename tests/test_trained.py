"""`open_run`: what a fit left is found by any path that a user would give, and loads with the start beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.cli import main
from lit_align.policy.reference import ModelReference
from lit_align.records import Message
from lit_align.sampling import TransformersSampler
from lit_align.trained import open_run
from tests.helpers.tiny import save_adapter

CONFIG = """
seed_everything: 5
model:
  class_path: lit_align.AlignmentModule
  init_args:
    policy: {model: MODEL, KIND, chat_template_kwargs: {title: x}}
    loss: {class_path: lit_align.losses.DPO}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
data:
  class_path: lit_align.AlignmentDataModule
  init_args: {train: pairs.jsonl, batch_size: 2}
trainer: {accelerator: cpu, max_steps: 3, default_root_dir: runs/one, logger: false, enable_progress_bar: false}
"""
PAIRS = "".join(f'{{"prompt": "tea {n}", "chosen": "hot {n}", "rejected": "cold"}}\n' for n in range(6))
IDS = torch.tensor([[3, 5, 7, 9, 11]])
PROMPT = (Message("user", "tea 1"),)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(PAIRS)
    return tmp_path


def fit(model: Path, kind: str) -> None:
    Path("c.yaml").write_text(CONFIG.replace("MODEL", str(model)).replace("KIND", kind))
    assert main(["fit", "--config", "c.yaml"]) == 0


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def bare(model: Path) -> Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(model))


@pytest.mark.parametrize("kind", ["lora: {r: 2}", "lora: null", "adapter: sft"], ids=["lora", "full", "adapter"])
def test_a_run_gives_its_policy_and_the_one_it_started_from(tiny_model: Path, folder: Path, kind: str) -> None:
    save_adapter(tiny_model, folder / "sft")
    fit(tiny_model, kind)
    policy = open_run("runs/one").load("cpu")
    trained = logits(policy.model)
    with policy.at_start() as model:
        start = logits(model)
    torch.testing.assert_close(logits(policy.model), trained)
    assert float((trained - start).abs().max()) > 1e-3
    state = torch.load("runs/one/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    parameters = dict(policy.model.named_parameters())
    own = {name.removeprefix("policy."): weight for name, weight in state.items() if name.startswith("policy.")}
    assert own and all(torch.equal(parameters[name], weight) for name, weight in own.items())
    as_sft = open_run("sft").load("cpu")
    expected = logits(as_sft.model) if kind == "adapter: sft" else bare(tiny_model)
    torch.testing.assert_close(start, expected)


def test_every_shape_of_a_run_is_the_same_run(tiny_model: Path, folder: Path) -> None:
    fit(tiny_model, "lora: {r: 2}")
    run = open_run("one")
    assert run.root == Path("runs/one") and run.seed == 5 and run.name == "one"
    assert run.data is not None and run.data["init_args"]["train"] == "pairs.jsonl"
    assert run.chat_template_kwargs == {"title": "x"}
    for path in ("runs/one", "runs/one/checkpoints", "runs/one/config.yaml", "runs/one/checkpoints/last.ckpt"):
        opened = open_run(path)
        assert (opened.weights, opened.root, opened.start) == (run.weights, run.root, run.start)
    shutil.copy(run.weights, "alone.ckpt")
    alone = open_run("alone.ckpt")
    assert alone.root is None and alone.start == run.start  # the checkpoint says what it is of
    torch.testing.assert_close(logits(alone.load("cpu").model), logits(run.load("cpu").model))


@pytest.mark.parametrize("kind", ["lora: {r: 2}", "lora: null", "adapter: sft"], ids=["lora", "full", "adapter"])
def test_a_model_folder_gives_the_same_as_the_checkpoint(tiny_model: Path, folder: Path, kind: str) -> None:
    save_adapter(tiny_model, folder / "sft")
    fit(tiny_model, kind)
    trained = open_run("runs/one").load("cpu")
    shutil.copytree("runs/one/model", "out")
    alone = open_run("out").load("cpu")
    torch.testing.assert_close(logits(alone.model), logits(trained.model))
    assert alone.tokenizer.chat_template == trained.tokenizer.chat_template
    if kind == "lora: null":
        with pytest.raises(ValueError, match="does not say what they were trained from"), alone.at_start():
            pass
    else:
        with alone.at_start() as model:
            torch.testing.assert_close(logits(model), bare(tiny_model))
    shutil.rmtree("runs/one/checkpoints")  # the run's own start is known by its config
    of_run = open_run("runs/one").load("cpu")
    torch.testing.assert_close(logits(of_run.model), logits(trained.model))
    with trained.at_start() as start, of_run.at_start() as other:
        torch.testing.assert_close(logits(start), logits(other))
    assert isinstance(of_run.reference, ModelReference) == (kind == "lora: null")


def test_a_moved_base_is_given_by_hand(tiny_model: Path, folder: Path) -> None:
    moved = folder / "moved"
    shutil.copytree(tiny_model, moved)
    fit(moved, "lora: {r: 2}")
    trained = logits(open_run("one").load("cpu").model)
    moved.rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="is not there"):
        open_run("one").load("cpu")
    torch.testing.assert_close(logits(open_run("one", base="elsewhere").load("cpu").model), trained)


def test_answers_are_those_of_the_policy_and_of_its_start(tiny_model: Path, folder: Path) -> None:
    fit(tiny_model, "lora: {r: 2}")
    policy = open_run("one").load("cpu")
    sampler = TransformersSampler(num_candidates=1, temperature=0, max_new_tokens=8)
    after = policy.answer([PROMPT], sampler)[0][0]
    before = policy.answer([PROMPT], sampler, start=True)[0][0]
    assert policy.answer([PROMPT], sampler)[0][0] == after != before
    ids: Any = AutoTokenizer.from_pretrained(tiny_model).apply_chat_template(
        [{"role": "user", "content": "tea 1"}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    start: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = start.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, min_new_tokens=1
    )
    assert before.token_ids == tuple(expected[0, ids.shape[1] :].tolist())


def test_what_is_no_run_is_a_sentence(tiny_model: Path, folder: Path) -> None:
    fit(tiny_model, "lora: {r: 2}")
    with pytest.raises(FileNotFoundError, match=r"there is no run 'other'.*The runs here are runs/one"):
        open_run("other")
    with pytest.raises(FileNotFoundError, match=r"expected a run folder, a checkpoint or a model folder, and \. is"):
        open_run(".")
    shutil.rmtree("runs/one/checkpoints")
    shutil.rmtree("runs/one/model", ignore_errors=True)
    with pytest.raises(FileNotFoundError, match="ended before it saved one, or it was to save none"):
        open_run("one")
    Path("runs/one/reward_model").mkdir()
    with pytest.raises(ValueError, match="of a reward model, which scores answers and writes none"):
        open_run("one")
    torch.save({"state_dict": {"model.score.weight": torch.zeros(1)}}, "reward.ckpt")
    with pytest.raises(ValueError, match="reward.ckpt is of a reward model"):
        open_run("reward.ckpt")
    Path("runs/one/config.yaml").write_text("model: {init_args: {policy: {model: x, rope: 3}}}")
    Path("runs/one/model").mkdir()
    Path("runs/one/model/adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="'rope' among them"):
        open_run("one")
