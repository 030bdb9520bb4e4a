"""`lit-align export`: what was trained comes out as a folder that transformers and peft load, with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.cli import main
from lit_align.export.hub import push
from lit_align.trained import open_run
from lit_align.trained.loading import short_name
from tests.helpers.tiny import save_adapter, save_tiny_model

CONFIG = """
model:
  class_path: lit_align.AlignmentModule
  init_args:
    policy: {model: MODEL, KIND}
    loss: {class_path: lit_align.losses.DPO}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
data:
  class_path: lit_align.AlignmentDataModule
  init_args: {train: pairs.jsonl, batch_size: 2}
trainer: {accelerator: cpu, max_steps: 3, default_root_dir: run, logger: false, enable_progress_bar: false}
"""
PAIRS = "".join(f'{{"prompt": "tea {n}", "chosen": "hot {n}", "rejected": "cold"}}\n' for n in range(6))
IDS = torch.tensor([[3, 5, 7, 9, 11]])


def fit(model: Path, kind: str = "lora: {r: 2}") -> None:
    """Leaves a finished run in the working folder."""
    Path("pairs.jsonl").write_text(PAIRS)
    Path("c.yaml").write_text(CONFIG.replace("MODEL", str(model)).replace("KIND", kind))
    assert main(["fit", "--config", "c.yaml"]) == 0


@pytest.fixture(params=["{r: 2}", "null"], ids=["lora", "full"])
def run(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run in the working folder; gives its `lora`."""
    monkeypatch.chdir(tmp_path)
    fit(tiny_model, f"lora: {request.param}")
    return str(request.param)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(IDS).logits.float()


def trained() -> Tensor:
    return logits(open_run("run/checkpoints/last.ckpt").load("cpu").model)


def test_what_comes_out_gives_the_numbers_of_what_was_trained(
    run: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "run", "--output", "out"]) == 0
    printed = capsys.readouterr().out
    if run == "null":
        loaded = logits(AutoModelForCausalLM.from_pretrained("out"))
        assert 'AutoModelForCausalLM.from_pretrained("out"' in printed
    else:
        loaded = logits(AutoPeftModelForCausalLM.from_pretrained("out"))
        assert 'AutoPeftModelForCausalLM.from_pretrained("out"' in printed
    assert "the limit is 1e-05" in printed
    torch.testing.assert_close(loaded, trained(), rtol=0, atol=1e-6)
    start = logits(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert float((loaded - start).abs().max()) > 1e-3  # it was trained
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert not list(Path().glob("*.part"))


def test_a_merged_adapter_is_a_plain_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tiny_model)
    assert main(["export", "run", "--merge", "--output", "merged", "--max_shard_size", "30KB"]) == 0
    merged = AutoModelForCausalLM.from_pretrained("merged")
    torch.testing.assert_close(logits(merged), trained(), rtol=0, atol=1e-5)
    assert len(list(Path("merged").glob("*.safetensors"))) > 1
    assert not Path("merged/adapter_config.json").exists()
    assert merged.state_dict().keys() == AutoModelForCausalLM.from_pretrained(tiny_model).state_dict().keys()
    assert main(["export", "run", "--merge", "--dtype", "bfloat16", "--output", "half"]) == 0
    printed = capsys.readouterr().out
    assert "as it was trained, in another precision, it differs by" in printed
    half = AutoModelForCausalLM.from_pretrained("half")
    assert half.dtype == torch.bfloat16
    assert 0 < float((logits(half) - trained()).abs().max()) < 0.1


def test_a_run_in_4_bits_is_merged_into_the_weights_before_that(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    fit(tiny_model, "lora: {r: 2}, quantization: nf4, dtype: float32")
    assert main(["export", "run", "--output", "adapter"]) == 0
    assert main(["export", "run", "--merge", "--output", "merged"]) == 0
    printed = capsys.readouterr().out
    assert "as it was trained, in another precision, it differs by" in printed
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    whole = PeftModel.from_pretrained(base, "adapter")
    merged = logits(AutoModelForCausalLM.from_pretrained("merged"))
    torch.testing.assert_close(merged, logits(whole), rtol=0, atol=1e-5)
    assert 1e-4 < float((merged - trained()).abs().max()) < 0.5


def test_an_adapter_that_was_trained_further_is_merged_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_adapter(tiny_model, tmp_path / "sft")
    fit(tiny_model, "adapter: sft")
    assert main(["export", "run", "--merge", "--output", "merged"]) == 0
    merged = AutoModelForCausalLM.from_pretrained("merged")
    torch.testing.assert_close(logits(merged), trained(), rtol=0, atol=1e-5)


def test_all_weights_have_nothing_to_merge(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tiny_model, "lora: null")
    assert main(["export", "run", "--merge", "--output", "out"]) == 1
    assert "run has no adapter to merge" in capsys.readouterr().err
    assert main(["export", "run", "--dtype", "float16", "--output", "out"]) == 0
    assert AutoModelForCausalLM.from_pretrained("out").dtype == torch.float16


def test_a_folder_that_holds_another_model_is_not_left(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_align.export import folder

    file = "model.safetensors" if run == "null" else "adapter_model.safetensors"
    write = folder.generation_settings

    def spoil(*arguments: object) -> object:
        (path,) = Path().rglob(f"*.part/{file}")
        save_file({name: 2 * weight for name, weight in load_file(path).items()}, path, {"format": "pt"})
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(folder, "generation_settings", spoil)
    assert main(["export", "run", "--output", "out"]) == 1
    assert "the exported model differs from the trained one by" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main(["export", "run", "--output", "out", "--no-check"]) == 0
    assert Path("out").is_dir()


def test_nothing_is_overwritten(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    assert main(["export", "run", "--output", "out"]) == 1
    assert "out is there already, and export overwrites nothing" in capsys.readouterr().err
    assert not any(Path("out").iterdir())


def test_a_missing_checkpoint_and_another_base_are_sentences(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "elsewhere", "--output", "out"]) == 1
    assert "there is no run 'elsewhere'" in capsys.readouterr().err
    assert main(["export", "--config", "run/config.yaml", "--output", "out"]) == 2
    assert "export takes the run itself" in capsys.readouterr().err
    cut = Path("cut.ckpt")
    cut.write_bytes(Path("run/checkpoints/last.ckpt").read_bytes()[:2000])
    assert main(["export", "cut.ckpt", "--output", "out"]) == 1
    assert "cut.ckpt is broken or cut short" in capsys.readouterr().err
    other = save_tiny_model(tmp_path / "other", seed=3)
    assert main(["export", "run", "--output", "out", "--base", str(other)]) == 1
    assert "The checkpoint was made on" in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_next_run_starts_from_what_was_exported(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--model.policy.model", "run/model"]
    if run != "null":
        where = ["--model.policy.lora", "null", "--model.policy.adapter", "run/model"]
    again = ["fit", "--config", "c.yaml", "--trainer.default_root_dir", "next", "--trainer.max_steps", "1", *where]
    assert main([*again, "--trainer.logger", "true"]) == 0, capsys.readouterr().err
    rows = next(Path("next/csv").glob("*/metrics.csv")).read_text().splitlines()
    loss = float(rows[1].split(",")[rows[0].split(",").index("loss")])
    assert loss == pytest.approx(0.693147, abs=1e-5)


class FakeHub:
    """Records what is uploaded, by name."""

    files: dict[str, str]

    def __init__(self, token: str) -> None:
        assert token == "secret"

    def repo_exists(self, repo: str) -> bool:
        return repo == "me/there"

    def create_repo(self, repo: str, private: bool) -> str:
        FakeHub.files = {"private": str(private)}
        return f"https://hub/{repo}"

    def upload_folder(self, folder_path: Path, repo_id: str, ignore_patterns: list[str]) -> None:
        names = [path.name for path in Path(folder_path).iterdir() if path.name not in ignore_patterns]
        FakeHub.files |= dict.fromkeys(names, "")

    def upload_file(self, path_or_fileobj: Path, path_in_repo: str, repo_id: str) -> None:
        FakeHub.files[path_in_repo] = Path(path_or_fileobj).read_text()


def test_the_hub_gets_the_folder_without_paths(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tiny_model)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["export", "run", "--output", "out", "--push", "me/new"]) == 1
    assert "set the environment variable HF_TOKEN" in capsys.readouterr().err
    assert not Path("out").exists()
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    with pytest.raises(FileExistsError, match="me/there is on the hub already"):
        push(Path("run/model"), "me/there")
    assert main(["export", "run", "--output", "out", "--push", "me/new"]) == 0
    assert "https://hub/me/new" in capsys.readouterr().out
    assert FakeHub.files.keys() == {path.name for path in Path("out").iterdir()} | {"private"}
    assert FakeHub.files["private"] == "True"
    assert json.loads(FakeHub.files["adapter_config.json"])["base_model_name_or_path"] == tiny_model.name
    assert json.loads(Path("out/adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)
    assert str(tmp_path) not in Path("out/README.md").read_text()


def test_a_short_name_hides_a_path() -> None:
    assert short_name("org/model") == "org/model"
    assert short_name("/home/me/models/model") == "model"
    assert short_name("package://pkg/m.gguf") == "m.gguf"
