"""Out of memory in a step, simulated: a run that goes through it has the numbers of one that does not."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lit_align.batch import Padded, PairBatch
from lit_align.cli import main
from lit_align.losses import AOT, BCO, DPO, WPO, PreferenceLoss, SLiCHF
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.training.module import AlignmentModule
from tests.helpers.modules import loader_of
from tests.helpers.processes import DDP, on_two_ranks

PAIRS = 5
LORA = LoraSpec(r=4)


class Card(Callback):
    """Stands for a card on which only so many pairs can be computed at once, from some optimizer step on.

    Forward passes without gradients always fit.
    """

    def __init__(self, pairs: int, in_backward: bool = False, from_step: int = 0) -> None:
        self.pairs, self.in_backward, self.from_step = pairs, in_backward, from_step
        self.refused: list[int] = []
        self.taken: list[int] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        def check(_: nn.Module, args: Any, kwargs: Any) -> None:
            if torch.is_grad_enabled() and not self.in_backward and trainer.global_step >= self.from_step:
                self.count(pairs_in(kwargs))

        def check_in_backward(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            if self.in_backward and output.requires_grad and trainer.global_step >= self.from_step:
                return _Heavy.apply(output, self, pairs_in(kwargs))
            return output

        modules = dict(pl_module.policy.named_modules())
        first, second = (next(modules[name] for name in modules if name.endswith(f"layers.{n}")) for n in range(2))
        second.register_forward_pre_hook(check, with_kwargs=True)  # by then, the first layer has drawn its dropout
        # by its forward hook, the gradients of the second layer are there
        first.register_forward_hook(check_in_backward, with_kwargs=True)

    def count(self, pairs: int) -> None:
        (self.taken if pairs <= self.pairs else self.refused).append(pairs)
        if pairs > self.pairs:
            raise torch.OutOfMemoryError(f"simulated: {pairs} pairs")


class Once(Card):
    """Refuses the first time alone."""

    def count(self, pairs: int) -> None:
        if not self.refused:
            super().count(pairs)


def pairs_in(kwargs: dict[str, Any]) -> int:
    """The pairs that a pass computes at once: the prompts in its shared row."""
    return sum(span.prompt is None for span in kwargs["layout"].spans) if "layout" in kwargs else 0


class _Heavy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, card: Card, pairs: int) -> Tensor:
        ctx.card, ctx.pairs = card, pairs
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        ctx.card.count(ctx.pairs)
        return upstream[0], None, None


class Recorder(Callback):
    """Keeps the loss of every micro-batch and, of every optimizer step, gradients and what was logged."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.logged.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def padded(rows: list[list[int]]) -> Padded:
    return Padded.from_sequences(rows, pad_id=0)


def batch(seed: int, longest: int = 9) -> PairBatch:
    """Pairs of different lengths, with targets."""
    generator = torch.Generator().manual_seed(seed)

    def some() -> Padded:
        lengths = torch.randint(2, longest, (PAIRS,), generator=generator).tolist()
        return padded([torch.randint(3, 320, (n,), generator=generator).tolist() for n in lengths])

    return PairBatch(some(), some(), some(), torch.zeros(PAIRS, dtype=torch.bool), torch.ones(PAIRS), target=some())


def module(model: Path, loss: PreferenceLoss | None = None, lora: LoraSpec | None = LORA, **more: Any) -> Any:
    torch.manual_seed(0)
    spec = PolicySpec(str(model), lora=lora, **more)
    optimizer: Callable[..., Any] = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    made = AlignmentModule(spec, loss or DPO(beta=0.5), optimizer=optimizer)
    made.configure_model()
    with torch.no_grad():
        for name, parameter in made.named_parameters():  # so that A gets a gradient too
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return made


def fit(made: Any, folder: Path, *callbacks: Callback, steps: int = 2, **options: Any) -> Recorder:
    recorder = Recorder()
    settings: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05, **options}
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    data = loader_of([batch(seed) for seed in range(4)])
    trainer = Trainer(
        max_steps=steps, logger=False, accelerator="cpu", log_every_n_steps=1, default_root_dir=folder,
        callbacks=[*callbacks, recorder], **settings, **quiet,
    )  # fmt: skip
    trainer.fit(made, data)
    return recorder


def assert_same(found: Recorder, expected: Recorder, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=rtol, abs=atol)
    assert len(found.gradients) == len(expected.gradients)
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, msg=name)
    for logged, as_expected in zip(found.logged, expected.logged, strict=True):
        assert logged == pytest.approx(as_expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_the_numbers_are_those_of_a_run_that_never_failed(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lora: LoraSpec | None
) -> None:
    whole = module(tiny_model, lora=lora)
    expected = fit(whole, tmp_path)
    cards = [Card(2, from_step=1), Card(2, in_backward=True, from_step=1)]
    for card in [*cards, Card(2), Card(2, in_backward=True)] if lora else cards:
        capsys.readouterr()
        halved = module(tiny_model, lora=lora)
        assert_same(fit(halved, tmp_path, card), expected)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(halved.state_dict()[name], value, rtol=1e-5, atol=1e-7, msg=name)
        assert card.refused and max(card.taken) <= 2
        said = [line for line in capsys.readouterr().out.splitlines() if "Out of memory" in line]
        assert len(said) == len(card.refused) and "5 pairs" in said[0] and "repeated 3 at a time" in said[0]


@pytest.mark.parametrize("loss", [BCO(), AOT(), WPO(), SLiCHF(target="row")], ids=lambda loss: type(loss).__name__)
def test_any_loss_keeps_its_numbers(tiny_model: Path, tmp_path: Path, loss: PreferenceLoss) -> None:
    """Also those of whole micro-batches (AOT), with a running mean (BCO), with collisions (WPO), with targets."""
    start = {name: value.clone() for name, value in loss.state_dict().items()}
    expected = fit(module(tiny_model, loss), tmp_path)
    after = {name: value.clone() for name, value in loss.state_dict().items()}
    for in_backward in (False, True):
        loss.load_state_dict(start)
        assert_same(fit(module(tiny_model, loss), tmp_path, Card(1, in_backward)), expected)
        for name, value in loss.state_dict().items():
            torch.testing.assert_close(value, after[name])


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"attn_implementation": "eager"}], ids=str)
def test_with_checkpoints_and_other_attention(tiny_model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    expected = fit(module(tiny_model, **options), tmp_path)
    for in_backward in (False, True):
        assert_same(fit(module(tiny_model, **options), tmp_path, Card(2, in_backward)), expected)


def test_under_autocast_the_second_forward_is_the_first(tiny_model: Path, tmp_path: Path) -> None:
    """In bfloat16 a forward outside autocast would differ by far more than rounding between kernels."""
    runs = [fit(module(tiny_model), tmp_path, *cards, steps=1, precision="bf16-mixed") for cards in ([], [Card(1)])]
    for ours, theirs in zip(runs[1].gradients, runs[0].gradients, strict=True):
        off = sorted(float((ours[name] - value).norm() / value.norm()) for name, value in theirs.items())
        assert off[len(off) // 2] < 0.02, off  # 0.013 here; 0.028 outside autocast


def test_a_scaler_of_gradients_goes_with_it(tiny_model: Path, tmp_path: Path) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    def run(*callbacks: Callback) -> Recorder:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        return fit(module(tiny_model), tmp_path, *callbacks, plugins=[_Float32Scaled("16-mixed", "cpu", scaler)])

    class _Float32Scaled(MixedPrecision):
        def autocast_context_manager(self) -> Any:
            return torch.autocast("cpu", enabled=False)

    assert_same(run(Card(2, in_backward=True)), run())


def test_dropout_is_drawn_once_for_forward_and_backward(tiny_model: Path, tmp_path: Path) -> None:
    """From the failure on, the run is the one that computed such parts from its start, to rounding."""
    noisy = LoraSpec(r=4, dropout=0.5)

    def run(*callbacks: Callback, tokens: int | None = None) -> Recorder:
        made = module(tiny_model, lora=noisy)
        made._split.tokens = tokens
        recorder = fit(made, tmp_path, *callbacks)
        limits.append(made._split.tokens)
        return recorder

    limits: list[int | None] = []
    halved = run(Once(3))
    expected = run(tokens=limits[0])
    assert halved.losses == pytest.approx(expected.losses, rel=1e-5)
    for ours, theirs in zip(halved.gradients, expected.gradients, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


def test_the_gradient_under_dropout_is_that_of_the_value(tiny_model: Path) -> None:
    """By a finite difference: the loss under the same draws, a little further along the gradient."""
    made = module(tiny_model, lora=LoraSpec(r=4, dropout=0.5)).double()
    made._split.tokens = 1  # one pair at a time
    parameter = next(p for n, p in made.named_parameters() if "lora_A" in n)
    trained = [p for p in made.parameters() if p.requires_grad]

    def value() -> Tensor:
        torch.manual_seed(3)
        return sum(one.sum().sum() for one in made._split.logps(made._policy_logps, batch(0), trained))

    value().backward()
    direction = parameter.grad / parameter.grad.norm()
    with torch.no_grad():
        parameter += 1e-4 * direction
    ahead = float(value())
    with torch.no_grad():
        parameter -= 2e-4 * direction
    assert (ahead - float(value())) / 2e-4 == pytest.approx(float(parameter.grad.norm()), rel=1e-3)


def test_parts_are_kept_and_short_micro_batches_stay_whole(tiny_model: Path, tmp_path: Path) -> None:
    made, card = module(tiny_model), Card(2)
    fit(made, tmp_path, card)
    assert len(card.refused) <= 3 and made._split.tokens is not None  # 5 and 3 at first, not at every micro-batch
    short = batch(0, longest=3)
    seen: list[int] = []
    made.policy.register_forward_pre_hook(lambda _, args, kwargs: seen.append(pairs_in(kwargs)), with_kwargs=True)
    made._split.logps(made._policy_logps, short)
    assert seen == [PAIRS]


def test_evaluation_and_the_reference_are_computed_in_parts_too(tiny_model: Path, tmp_path: Path) -> None:
    made = module(tiny_model)
    expected = [one.sum() for one in made.run_reference(batch(0))]

    def check(_: nn.Module, args: Any, kwargs: Any) -> None:
        if pairs_in(kwargs) > 2:
            raise torch.OutOfMemoryError("simulated")

    data = loader_of([batch(0)])
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False)
    before = trainer.validate(made, data, verbose=False)[0]
    handle = made.policy.register_forward_pre_hook(check, with_kwargs=True)
    assert trainer.validate(made, data, verbose=False)[0] == pytest.approx(before, rel=1e-5, abs=1e-5)
    handle.remove()
    made._split.tokens = 1
    for ours, value in zip(made.run_reference(batch(0)), expected, strict=True):
        torch.testing.assert_close(ours.sum(), value)


def test_the_size_is_in_the_checkpoint_for_the_same_card(tiny_model: Path, tmp_path: Path) -> None:
    made = module(tiny_model)
    fit(made, tmp_path, Card(2))
    checkpoint: dict[str, Any] = {"state_dict": made.state_dict()}
    made.on_save_checkpoint(checkpoint)
    resumed = module(tiny_model)
    resumed.on_load_checkpoint(checkpoint)
    assert resumed._split.tokens == made._split.tokens
    resumed.on_load_checkpoint({**checkpoint, "computed_in_parts": {"tokens": 4, "card": "another"}})
    assert resumed._split.tokens is None
    del checkpoint["computed_in_parts"]  # of a version without
    resumed.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_pair_that_does_not_fit_says_its_lengths_and_what_to_change(
    tiny_model: Path, tmp_path: Path, in_backward: bool
) -> None:
    with pytest.raises(torch.OutOfMemoryError) as raised:
        fit(module(tiny_model), tmp_path, Card(0, in_backward))
    said = str(raised.value)
    pair = -1 if in_backward else 4  # the last part is the one with a graph, and the first in the backward
    lengths = [int(one.lengths[pair]) for one in (batch(0).prompt, batch(0).chosen, batch(0).rejected)]
    assert (
        f"a prompt of {lengths[0]} tokens, a chosen completion of {lengths[1]} and a rejected one of {lengths[2]}"
        in said
    )
    for setting in ("gradient_checkpointing: true", "max_completion_tokens", "quantization: nf4", "lit-align plan"):
        assert setting in said


def test_other_errors_pass(tiny_model: Path, tmp_path: Path) -> None:
    """A host without memory raises a RuntimeError: nothing is tried again."""

    class Broken(Card):
        def count(self, pairs: int) -> None:
            self.taken.append(pairs)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    card = Broken(1)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        fit(module(tiny_model), tmp_path, card)
    assert card.taken == [PAIRS]


def refused_on_a_rank(model: Path, folder: Path) -> str:
    with pytest.raises(RuntimeError) as error:
        fit(module(model), folder, Card(2), **DDP)
    return str(error.value)


def test_several_devices_get_an_error_and_do_not_wait_for_each_other(tiny_model: Path, tmp_path: Path) -> None:
    for message in on_two_ranks(tmp_path, refused_on_a_rank, tiny_model, tmp_path):
        assert "trainer.accumulate_grad_batches: 4" in message and "several devices" in message


CONFIG = """
seed_everything: 0
model:
  class_path: AlignmentModule
  init_args: {policy: {model: MODEL, lora: {r: 4}}, optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}}
data: {class_path: AlignmentDataModule, init_args: {train: rows.jsonl, batch_size: 5, reference_cache: null}}
trainer: {accelerator: cpu, max_steps: 3, accumulate_grad_batches: 2, enable_progress_bar: false}
boundary: null
"""


def test_from_the_command_line(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Give fact {n}.", "chosen": "Tea is " * (1 + n % 4), "rejected": "No!" * (n % 3 + 1)}
        for n in range(30)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.yaml").write_text(CONFIG.replace("MODEL", str(tiny_model)))
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", "c.yaml", "--trainer.default_root_dir"]

    def card(pairs: int) -> list[str]:
        class_path = "tests.test_out_of_memory.Card"
        return ["--trainer.callbacks", json.dumps([{"class_path": class_path, "init_args": {"pairs": pairs}}])]

    assert main([*words, "whole"]) == 0, capsys.readouterr().err
    assert main([*words, "halved", *card(2)]) == 0, capsys.readouterr().err
    assert "Out of memory: 5 pairs" in capsys.readouterr().out
    whole, halved = (
        list(csv.DictReader(next((tmp_path / run).rglob("metrics.csv")).open())) for run in ("whole", "halved")
    )
    assert [row["step"] for row in whole] == [row["step"] for row in halved]
    for ours, theirs in zip(halved, whole, strict=True):
        for name, value in theirs.items():
            assert ours[name] == value == "" or float(ours[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), (
                name
            )
    assert main([*words, "none", *card(0)]) == 1
    said = capsys.readouterr().err
    assert "error: Out of memory with a single pair" in said and "Traceback" not in said
