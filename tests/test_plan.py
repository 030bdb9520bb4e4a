"""`lit-align plan`: what it says of a run's memory, against what the run's tensors take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from lit_align.boundary import BoundaryCallback
from lit_align.cli import main
from lit_align.data import AlignmentDataModule
from lit_align.judges import CombinedJudge, Judge, JudgePart, RuleJudge
from lit_align.losses import DPO
from lit_align.plan import Memory, Setup, changes_to_fit, setup_of, simulate
from lit_align.plan.fit import CUDA_CONTEXT
from lit_align.plan.policy import nf4_bytes
from lit_align.plan.setup import not_counted
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.sampling import TransformersSampler
from lit_align.sampling.draw import Draw
from lit_align.training.module import AlignmentModule

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS = 8000, 256, 4, 8, 4
PROMPT, COMPLETION, PAIRS, SEQUENCES, NEW = 256, 128, 2, 8, 66
LORA = LoraSpec(r=8)
QUANTISED = {"quantization": "nf4", "gradient_checkpointing": True}


def config(**changes: Any) -> LlamaConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 688,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**sizes, **changes}, architectures=["LlamaForCausalLM"])


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model's config and nothing else: there are no weights to load."""
    folder = tmp_path_factory.mktemp("plan") / "small"
    config().save_pretrained(folder)
    return folder


def run_of(folder: Path, **changes: Any) -> Setup:
    policy = PolicySpec(str(folder), **{name: changes.pop(name) for name in list(changes) if name in POLICY})
    return Setup(policy, **{**dict(optimizer=adamw, batch_size=PAIRS, accumulate=1, prompt_tokens=PROMPT,
                                   completion_tokens=COMPLETION), **changes})  # fmt: skip


POLICY = ("lora", "adapter", "gradient_checkpointing", "quantization", "dtype")

# Candidates, new tokens and top_p. All rows begin together, and their cache grows to 1.25 of its columns, as much as
# it ever does, in the step before the last one.
SAMPLES = [[1, NEW, 1.0], [4, NEW, 1.0], [4, 146, 1.0], [8, 2, 0.9]]

# What torch's allocator has given out at most, from when a model is loaded on: in two steps, or while it samples.
MEASURE = """
import sys, json, time, torch, lightning
from torch.profiler import ProfilerActivity, profile
from lit_align.batch import Padded
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, load_model
from lit_align.sampling import SamplingRequest, TransformersSampler
from lit_align.plan.fit import _adamw_8bit

prompt, completion, pairs, sequences = map(int, sys.argv[1:5])
folder, samples = sys.argv[5], json.loads(sys.argv[6])

def note_loaded(model):
    # A model's own tensors are summed: what loaders free in other threads is not among the profiler's events.
    global loaded, own
    tensors = [*model.parameters(), *model.buffers()]
    for state in [one.quant_state for one in model.parameters() if getattr(one, "quant_state", None) is not None]:
        tensors += [state.absmax, state.state2.absmax]
    own = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    loaded = time.time_ns()

def rows(length):
    return Padded(torch.randint(5, 8000, (pairs, length)), torch.ones(pairs, length, dtype=torch.bool))

def step(forward, model, optimizer):
    logps = forward(model, rows(prompt), [rows(completion), rows(completion)])
    loss = sum(one.sum().sum() for one in logps)
    del logps
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

def train(settings):
    model = load_model(PolicySpec(folder, **settings))
    note_loaded(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    nf4 = "quantization" in settings
    optimizer = _adamw_8bit(trained) if nf4 else torch.optim.AdamW(trained, lr=1e-4)
    forward = CompletionForward()
    for _ in range(2):
        step(forward, model, optimizer)

def sample(settings):
    model = load_model(PolicySpec(folder)).requires_grad_(False)
    note_loaded(model)
    candidates, new, top_p = settings
    sampler = TransformersSampler(
        candidates, top_p=top_p, max_new_tokens=new, min_new_tokens=new, batch_size=sequences
    )
    class Tokenizer:
        def decode(self, *args, **kwargs):
            return ""
    prompts = [[7] * prompt] * (2 * sequences // candidates)  # the second batch comes where the first one was
    sampler.sample(SamplingRequest(model, Tokenizer(), prompts, range(len(prompts)), stop_ids=[], pad_id=0))

def measured(work, settings):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work(settings)
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    live, peak, started = 0, 0, False
    for event in sorted(events, key=lambda one: one.start_ns()):
        if event.start_ns() >= loaded and not started:
            live, started = own, True
        live += event.nbytes()
        peak = max(peak, live) if started else 0
    return peak

lora, again = {"lora": LoraSpec(r=8)}, {"gradient_checkpointing": True}
offload = {"gradient_checkpointing": "offload"}  # on a CPU, the host's memory is the same one
print(json.dumps({
    "full": measured(train, {}),
    "full, checkpoints": measured(train, again),
    "lora": measured(train, lora),
    "lora, checkpoints": measured(train, {**lora, **again}),
    "lora, bfloat16": measured(train, {**lora, "dtype": "bfloat16"}),
    "lora, offload": measured(train, {**lora, **offload}),
    "nf4, checkpoints": measured(train, {**lora, **again, "quantization": "nf4"}),
    "nf4, bfloat16": measured(train, {**lora, **again, "quantization": "nf4", "dtype": "bfloat16"}),
    **{f"sampling {one}": measured(sample, one) - own for one in samples},
}))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Peaks in bytes of real runs, in a process of their own."""
    folder = tmp_path_factory.mktemp("plan") / "loaded"
    AutoModelForCausalLM.from_config(config()).save_pretrained(folder)
    words = [str(number) for number in (PROMPT, COMPLETION, PAIRS, SEQUENCES)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words, str(folder), json.dumps(SAMPLES)],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _eight_bits(parameters: Iterable[nn.Parameter]) -> Any:
    from bitsandbytes.optim import PagedAdamW8bit

    return PagedAdamW8bit(parameters)


@pytest.mark.parametrize(
    ("run", "settings"),
    [
        ("full", {}),
        ("full, checkpoints", {"gradient_checkpointing": True}),
        ("lora", {"lora": LORA}),
        ("lora, checkpoints", {"lora": LORA, "gradient_checkpointing": True}),
        ("lora, bfloat16", {"lora": LORA, "dtype": "bfloat16"}),
        ("lora, offload", {"lora": LORA, "gradient_checkpointing": "offload"}),
        ("nf4, checkpoints", {"lora": LORA, "optimizer": _eight_bits, **QUANTISED}),
        ("nf4, bfloat16", {"lora": LORA, "optimizer": _eight_bits, "dtype": "bfloat16", **QUANTISED}),
    ],
)
def test_the_peak_of_training_is_the_measured_one(
    small_llama: Path,
    measured: dict[str, int],
    run: str,
    settings: dict[str, Any],
) -> None:
    told = simulate(run_of(small_llama, **settings)).peak
    print(f"{run}: told {told / 2**20:.2f} MiB, measured {measured[run] / 2**20:.2f} MiB, {told / measured[run]:.4f}")
    assert told == pytest.approx(measured[run], rel=0.03)


@pytest.mark.parametrize("samples", SAMPLES, ids=str)
def test_the_peak_of_sampling_is_the_measured_one(
    small_llama: Path, measured: dict[str, int], samples: tuple[int, int, float]
) -> None:
    candidates, new, top_p = samples
    setup = run_of(small_llama, sequences=SEQUENCES, candidates=candidates, new_tokens=new, draw=Draw(1.0, 0, top_p))
    moments, parts = simulate(setup).moments, ("KV cache", "activations", "head chunk")  # beside the weights
    told = max(sum(moments[part].get(item, 0) for item in parts) for part in ("prefill", "sampling"))
    real = measured[f"sampling {samples}"]
    print(f"sampling {samples}: told {told / 2**20:.2f} MiB, measured {real / 2**20:.2f} MiB, {told / real:.4f}")
    assert told == pytest.approx(real, rel=0.05)


def test_each_item_is_what_its_formula_says(small_llama: Path) -> None:
    memory = simulate(run_of(small_llama, accumulate=2, sequences=SEQUENCES, new_tokens=NEW))
    real = AutoModelForCausalLM.from_config(config())
    count = sum(parameter.numel() for parameter in real.parameters())
    assert (memory.trained, memory.frozen) == (count, 0)
    backward, sampling = memory.moments["backward"], memory.moments["sampling"]
    assert backward["weights"] == pytest.approx(4 * count, rel=1e-4)  # beside them, the rotary frequencies
    assert backward["gradients"] == 4 * count  # of the micro-batch before
    assert backward["optimizer"] == pytest.approx(8 * count, rel=1e-4)  # two moments, and step counts
    layer = 2 * KV_HEADS * HIDDEN // HEADS * 4 * SEQUENCES
    tokens = PROMPT + NEW - 1  # the last one drawn is never computed
    columns = tokens - 1 + (tokens - 1) // 4  # grown in the last step, one layer at a time
    assert layer * LAYERS * columns <= sampling["KV cache"] <= layer * (LAYERS * columns + tokens)


def test_prompts_are_computed_once_for_all_their_candidates_beside_a_full_cache(small_llama: Path) -> None:
    token = 2 * KV_HEADS * HIDDEN // HEADS * 4 * LAYERS  # bytes of a token's keys and values
    full = SEQUENCES * 400 * token
    for candidates, prompts in ((1, 8), (3, 2), (4, 2), (16, 1)):
        setup = run_of(small_llama, sequences=SEQUENCES, candidates=candidates, new_tokens=NEW)
        found = simulate(setup).moments["prefill"]
        both = full + prompts * PROMPT * token
        assert both <= found["KV cache"] <= both + full / LAYERS  # one layer may be on its way to the next cache


def test_models_that_share_nothing_compute_a_prompt_for_each_row(
    small_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_align.plan.sampling.can_share", lambda model: False)
    found = simulate(run_of(small_llama, sequences=SEQUENCES, candidates=4, new_tokens=NEW)).moments
    row = 2 * KV_HEADS * HIDDEN // HEADS * 4 * SEQUENCES
    assert found["prefill"]["KV cache"] == row * LAYERS * PROMPT
    tokens = PROMPT + NEW - 1
    assert row * LAYERS * tokens <= found["sampling"]["KV cache"] <= row * (LAYERS + 1) * tokens


def test_adapters_train_alone_and_tied_weights_count_once(small_llama: Path, tmp_path: Path) -> None:
    memory = simulate(run_of(small_llama, lora=LORA))
    # r (in + out) for q, k, v, o, gate, up and down of each layer
    inner = 688
    expected = 8 * LAYERS * (2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + HIDDEN // 2) + 3 * (HIDDEN + inner))
    assert memory.trained == expected
    assert memory.moments["backward"]["adapters"] == 4 * expected
    config(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    tied = simulate(run_of(tmp_path / "tied", lora=LORA))
    assert memory.frozen - tied.frozen == VOCABULARY * HIDDEN


def test_a_saved_adapter_takes_what_a_fresh_one_does(small_llama: Path, tmp_path: Path) -> None:
    saved = LoraConfig(r=LORA.r, target_modules="all-linear", lora_dropout=0.5, task_type="CAUSAL_LM")
    (tmp_path / "adapter_model.safetensors").touch()  # is not read
    saved.save_pretrained(str(tmp_path))  # is trained on without its dropout
    assert simulate(run_of(small_llama, adapter=str(tmp_path))) == simulate(run_of(small_llama, lora=LORA))


def test_nf4_takes_4_bits_and_scales_of_scales() -> None:
    assert nf4_bytes(64 * 256) == 64 * 128 + 256 + 4  # half a byte each, one of 64, four of 64 x 256


def test_eight_bit_state_is_a_byte_and_a_share_of_its_scale(small_llama: Path) -> None:
    memory = simulate(run_of(small_llama, lora=LoraSpec(r=64), optimizer=_eight_bits))
    # all matrices have 4,096 weights or more, so none keeps 32 bits
    assert memory.moments["backward"]["optimizer"] == memory.trained * 2 + memory.trained // 256 * 8


def test_offloaded_inputs_of_layers_are_not_on_the_gpu(tmp_path: Path) -> None:
    row = PAIRS * (PROMPT + 2 * COMPLETION) * HIDDEN * 4

    def on_gpu(layers: int, checkpointing: bool | str) -> dict[str, int]:
        config(num_hidden_layers=layers).save_pretrained(tmp_path)
        return simulate(run_of(tmp_path, lora=LORA, gradient_checkpointing=checkpointing, on_gpu=True)).totals

    saved = [on_gpu(layers, True)["forward"] - on_gpu(layers, "offload")["forward"] for layers in (3, 7)]
    assert saved == [2 * row, 6 * row]  # all but the one that is worked on


def test_a_second_model_is_counted_where_it_stays(small_llama: Path) -> None:
    second = PolicySpec(str(small_llama))
    passing = simulate(run_of(small_llama, reference_model=second))
    staying = simulate(run_of(small_llama, reference_model=second, reference_stays=True))
    weights = passing.moments["forward"]["weights"]
    assert "reference" not in passing.moments["forward"]
    assert passing.moments["reference pass"]["reference"] == weights
    assert staying.totals["forward"] - passing.totals["forward"] == weights


@pytest.mark.parametrize(
    "family", [LlamaConfig, Qwen2Config, Qwen3Config, MistralConfig, PhiConfig, GPTNeoXConfig, Gemma2Config]
)
def test_families(family: Callable[..., PretrainedConfig], tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    sizes = dict(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    more = {"head_dim": 8} if family is Gemma2Config else {}
    made = family(**sizes, **more, num_key_value_heads=2, max_position_embeddings=512)
    model = AutoModelForCausalLM.from_config(made)
    made.architectures = [type(model).__name__]
    made.save_pretrained(tmp_path)
    memory = simulate(run_of(tmp_path, sequences=2, new_tokens=8, gradient_checkpointing=True))
    assert memory.trained == sum(parameter.numel() for parameter in model.parameters())
    assert set(memory.totals) == {"forward", "backward", "optimizer step", "prefill", "sampling"}
    assert not [str(warning.message) for warning in recwarn if "shared" in str(warning.message)]


def test_changes_go_on_until_the_run_fits_and_leave_out_what_does_not_help(small_llama: Path) -> None:
    def simulated(setup: Setup) -> Memory:
        size = 100 * setup.batch_size  # checkpoints do not help here
        return Memory(0, 0, {"forward": {"activations": size}, "sampling": {"KV cache": 30 * setup.sequences}})

    setup = run_of(small_llama, sequences=8)
    setup = replace(setup, batch_size=4)
    found = changes_to_fit(setup, simulated(setup), CUDA_CONTEXT + 240, simulated)
    assert [(one.setting, one.peak) for one in found] == [
        ("data.batch_size: 2, trainer.accumulate_grad_batches: 2", 240),
    ]
    found = changes_to_fit(setup, simulated(setup), CUDA_CONTEXT + 130, simulated)
    assert [one.peak for one in found] == [240, 200, 120]
    assert [one.setting for one in found][1] == "data.sampler.batch_size: 4"


def test_offloading_comes_after_smaller_micro_batches_and_on_a_gpu_alone(small_llama: Path) -> None:
    def simulated(setup: Setup) -> Memory:
        size = 100 if setup.policy.gradient_checkpointing == "offload" else 100 + 100 * setup.batch_size
        return Memory(0, 0, {"backward": {"activations": size}})

    setup = run_of(small_llama, gradient_checkpointing=True, on_gpu=True)
    found = [one.setting for one in changes_to_fit(setup, simulated(setup), CUDA_CONTEXT + 150, simulated)]
    assert found == [
        "data.batch_size: 1, trainer.accumulate_grad_batches: 2",
        "model.policy.gradient_checkpointing: offload",
    ]
    compiled = replace(setup, policy=replace(setup.policy, compile=True))
    for other in (replace(setup, on_gpu=False), compiled):
        assert len(changes_to_fit(other, simulated(other), CUDA_CONTEXT + 150, simulated)) == 1


def test_where_nothing_fits_all_changes_at_once_are_told_after_one_simulation(small_llama: Path) -> None:
    simulated_setups: list[Setup] = []

    def simulated(setup: Setup) -> Memory:
        simulated_setups.append(setup)
        return Memory(0, 0, {"forward": {"weights": 1000, "activations": 100 * setup.batch_size}})

    setup = replace(run_of(small_llama), batch_size=64)
    (nearest,) = changes_to_fit(setup, Memory(0, 0, {"forward": {"weights": 7400}}), CUDA_CONTEXT + 500, simulated)
    assert nearest.peak == 1100 and len(simulated_setups) == 1
    assert "data.batch_size: 1, trainer.accumulate_grad_batches: 64" in nearest.setting


def test_without_bitsandbytes_its_optimizer_is_not_proposed(small_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = run_of(small_llama)
    heavy = Memory(0, 0, {"forward": {"weights": 7400}})
    for is_installed in (True, False):
        if not is_installed:
            monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        (nearest,) = changes_to_fit(setup, heavy, CUDA_CONTEXT, lambda _: Memory(0, 0, {"forward": {"weights": 1}}))
        assert ("PagedAdamW8bit" in nearest.setting) == is_installed


def test_no_change_is_tried_twice_for_a_part(small_llama: Path) -> None:
    settings: list[tuple[int, object]] = []

    def simulated(setup: Setup) -> Memory:  # checkpoints do not help
        settings.append((setup.batch_size, setup.policy.gradient_checkpointing))
        return Memory(0, 0, {"forward": {"activations": 100 * setup.batch_size}})

    setup = replace(run_of(small_llama), batch_size=8)
    found = changes_to_fit(setup, simulated(setup), CUDA_CONTEXT + 150, simulated)
    assert [change.peak for change in found] == [400, 200, 100]
    assert settings[2:] == [(8, True), (4, False), (2, False), (1, False)]


CONFIG = """
model: {class_path: AlignmentModule, init_args: {policy: {model: MODEL}}}
data:
  class_path: AlignmentDataModule
  init_args: {train: not_there.jsonl, max_prompt_tokens: 256, max_completion_tokens: 128, batch_size: 8}
trainer: {accelerator: cpu, default_root_dir: run}
"""


@pytest.fixture
def folder(tmp_path: Path, small_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "c.yaml").write_text(CONFIG.replace("MODEL", str(small_llama)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # Lightning sets it, and leaves it set
    return tmp_path


def test_plan_reads_neither_weights_nor_data_and_says_what_to_change(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", "c.yaml", "--card_gib", "0.7", "--output", "plan.json"]) == 0
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "6,998,272 parameters trained, 0 frozen" in text
    assert "does not fit a card of 0.70 GiB" in text
    written = json.loads((folder / "plan.json").read_text())
    assert written["fits"] is False and written["changes"][-1]["fits"] is True
    assert written["changes"][0]["setting"] == "model.policy.gradient_checkpointing: true"
    assert written["peak"] == max(sum(items.values()) for items in written["moments"].values())
    assert sorted(path.name for path in folder.iterdir()) == ["c.yaml", "plan.json"]  # no run folder


def test_plan_says_that_nothing_fits_and_what_comes_nearest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "c.yaml", "--card_gib", "0.3", "--output", "plan.json"]) == 0
    text = capsys.readouterr().out
    assert "No setting that is known here makes it fit" in text and "\n  data.batch_size: 1\n" in text
    (change,) = json.loads((folder / "plan.json").read_text())["changes"]
    assert change["fits"] is False


def test_what_it_advises_fits_when_planned_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", "c.yaml", "--card_gib", "0.6", "--output", "plan.json"]
    assert main(words) == 0, capsys.readouterr().err
    first = json.loads((folder / "plan.json").read_text())
    assert first["fits"] is False and first["changes"][-1]["fits"] is True
    settings = [setting for change in first["changes"] for setting in change["setting"].split(", ")]
    assert main([*words, *("--" + setting.replace(": ", "=") for setting in settings)]) == 0, capsys.readouterr().err
    again = json.loads((folder / "plan.json").read_text())
    assert again["fits"] is True
    assert again["peak"] == pytest.approx(first["changes"][-1]["peak"], rel=0.01)


@pytest.mark.parametrize(
    ("sampler", "boundary", "fewest"),
    [({}, 2, 2), ({}, None, 4), ({"temperature": 0.0}, None, 1), ({"top_p": 0.9}, 8, 4)],
)
def test_a_run_is_planned_for_its_fewest_candidates(
    small_llama: Path, tmp_path: Path, sampler: dict[str, Any], boundary: int | None, fewest: int
) -> None:
    data = AlignmentDataModule("x.jsonl", sampler=TransformersSampler(4, **sampler), max_prompt_tokens=8)
    callback = BoundaryCallback(num_candidates=boundary)
    trainer = Trainer(accelerator="cpu", callbacks=[callback], logger=False, default_root_dir=str(tmp_path))
    setup = setup_of(trainer, AlignmentModule(PolicySpec(str(small_llama)), DPO()), data)
    assert setup.candidates == fewest and (setup.draw is None) == ("temperature" in sampler)
    assert setup.draw is None or setup.draw.top_p == sampler.get("top_p", 1.0)


def test_a_target_is_a_third_completion(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = ["--model.loss", "SLiCHF", "--model.loss.target", "row"]
    assert main(["plan", "--config", "c.yaml", "--card_gib", "80", *loss]) == 0, capsys.readouterr().err
    assert "8 pairs of 256 + 3 x 128 tokens" in capsys.readouterr().out


def test_plan_takes_lengths_where_the_data_have_no_limit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", "c.yaml", "--data.max_prompt_tokens", "null"]
    assert main(words) == 1
    assert "give --prompt_tokens" in capsys.readouterr().err
    assert main([*words, "--prompt_tokens", "64", "--card_gib", "80"]) == 0
    shown = capsys.readouterr()
    assert "8 pairs of 64 + 2 x 128 tokens" in shown.out + shown.err
    assert "fits a card of 80.00 GiB" in shown.out + shown.err
    assert main([*words, "--prompt_tokens", "64", "--card_gib", "0"]) == 1


def test_the_model_of_any_judge_that_holds_one_is_named() -> None:
    class Own(RuleJudge):
        holds_model = True

    def length(prompt: str, answers: list[str], row: dict[str, Any]) -> list[float]:
        return [float(len(answer)) for answer in answers]

    def notes(judge: Judge) -> list[str]:
        run = SimpleNamespace(world_size=1, judge=judge, sampler=None, precision="32-true", sequences=0)
        return not_counted(run, run, run)  # type: ignore[arg-type]

    assert notes(CombinedJudge([JudgePart(Own(length)), JudgePart(RuleJudge(length))])) == ["the judge's model"]
    assert notes(RuleJudge(length)) == []
