"""Steps that are not finite: never taken, named, and the last good checkpoint stays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lit_align import AlignmentTrainer
from lit_align.losses import BCO, LossOutput, PairLogps
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.module import AlignmentModule
from lit_align.training.step_watch import NonFiniteStep, StepWatch
from tests.helpers.modules import batch, loader
from tests.helpers.processes import DDP, on_two_ranks


class Spoilt(BCO):
    """BCO, which keeps a mean of rewards, with the loss of one pair of one micro-batch replaced."""

    def __init__(self, at: int | None, value: float = float("nan"), only_gradient: bool = False) -> None:
        super().__init__(beta=0.5)
        self.at, self.value, self.only_gradient, self.calls = at, value, only_gradient, 0

    def forward(self, pairs: PairLogps) -> LossOutput:
        output = super().forward(pairs)
        self.calls += 1
        if self.training and self.calls == self.at:
            self.reward_mean.fill_(float("nan"))
            if self.only_gradient:  # sqrt has an infinite slope at 0
                zero = (output.losses - output.losses.detach()).sqrt()
                return LossOutput(output.losses.detach() + zero, output.chosen_rewards, output.rejected_rewards)
            factor = torch.tensor([1.0, self.value])
            return LossOutput(output.losses * factor, output.chosen_rewards, output.rejected_rewards)
        return output


class Trained(Callback):
    """The trained weights after each step."""

    def __init__(self) -> None:
        self.after: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.after.append(torch.cat([p.detach().flatten() for p in pl_module.parameters() if p.requires_grad]))


def module(tiny_model: Path, loss: BCO, **options: Any) -> AlignmentModule:
    torch.manual_seed(0)
    options.setdefault("optimizer", lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1))
    return AlignmentModule(PolicySpec(str(tiny_model), lora=LoraSpec(r=2)), loss, **options)


def fit(
    module: AlignmentModule, folder: Path, steps: int = 5, accumulate: int = 1, more: Sequence[Callback] = ()
) -> tuple[AlignmentTrainer, Trained]:
    trained = Trained()
    trainer = AlignmentTrainer(
        default_root_dir=str(folder), max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        accumulate_grad_batches=accumulate,
        callbacks=[trained, *more, AlignmentCheckpoint(every_n_train_steps=1)],
    )  # fmt: skip
    trainer.fit(module, loader(8))
    return trainer, trained


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_ends_the_fit_before_its_step(
    value: float, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NonFiniteStep, match=r"Step 3 is not finite.*for 1 of its 4 pairs: '.*' with the chosen answer"):
        fit(module(tiny_model, Spoilt(at=6, value=value)), tmp_path, accumulate=2)
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 and all(bool(v.isfinite().all()) for v in saved["state_dict"].values())
    said = capsys.readouterr().out
    assert "Stopped at step 2. The last checkpoint of step 2 is" in said and "--ckpt_path last" in said


def test_a_gradient_that_is_not_finite_ends_the_fit_too(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteStep, match=r"Step 2 is not finite.*: gradients are NaN or infinite, though .* 2 pairs"
    ):
        fit(module(tiny_model, Spoilt(at=2, only_gradient=True)), tmp_path)


@pytest.mark.parametrize("only_gradient", [False, True])
def test_a_step_that_is_skipped_leaves_no_trace_but_in_the_count(
    only_gradient: bool, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = module(tiny_model, Spoilt(at=3, only_gradient=only_gradient), on_nonfinite="skip")
    trainer, trained = fit(policy, tmp_path, accumulate=2)
    changed = [bool((a != b).any()) for a, b in zip(trained.after[1::2], trained.after[3::2], strict=False)]
    assert changed == [False, True, True, True], "step 2 alone changes nothing, weight decay included"
    assert policy.step_watch.skipped == 1 and trainer.global_step == 5
    assert bool(policy.loss.state_dict()["reward_mean"].isfinite()), "nor does the mean that the loss keeps"
    said = capsys.readouterr().out
    assert said.count("left out (on_nonfinite: skip)") == 1 and "1 of 5 steps were left out" in said
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["steps_skipped"] == 1


def test_weights_that_are_spoilt_are_named_and_no_skip_helps(tiny_model: Path, tmp_path: Path) -> None:
    policy = module(tiny_model, BCO(), on_nonfinite="skip")
    policy.configure_model()
    with torch.no_grad():
        next(p for name, p in policy.named_parameters() if "norm" in name)[0] = float("nan")
    with pytest.raises(NonFiniteStep, match=r"Step 1.*the weight 'policy.*norm.*' is NaN or infinite from the start"):
        fit(policy, tmp_path)


class Overflow(Callback):
    """An optimizer's step that goes out of range, from finite gradients."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            with torch.no_grad():
                next(p for p in pl_module.parameters() if p.requires_grad).fill_(float("inf"))


def test_weights_out_of_range_are_never_saved_over_good_ones(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteStep, match=r"At step 3 the weight '.*lora.*' is NaN or infinite: no checkpoint"):
        fit(module(tiny_model, BCO()), tmp_path, more=[Overflow()])
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 and all(bool(v.isfinite().all()) for v in saved["state_dict"].values())


def _on_a_rank(model: Path, folder: Path) -> str:
    """Only the second rank's loss is spoilt, and for one pair."""
    rank = int(os.environ["LOCAL_RANK"])
    policy = module(model, Spoilt(at=6 if rank == 1 else None))
    task = Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=2, enable_checkpointing=False, default_root_dir=folder, **DDP,
    )  # fmt: skip
    with pytest.raises(NonFiniteStep) as error:
        task.fit(policy, loader(8))
    return str(error.value)


def test_all_processes_stop_at_the_same_step_and_name_the_same_pair(tiny_model: Path, tmp_path: Path) -> None:
    said = on_two_ranks(tmp_path, _on_a_rank, tiny_model, tmp_path)
    assert said[0] == said[1]
    assert said[0].startswith("Step 3 is not finite") and "for 1 of its 8 pairs: '" in said[0]


def watched(watch: StepWatch, gradient: float, loss: float, scale: float) -> None:
    """One step under a scaler, as 16-mixed has one."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([0.0, gradient])
    scaler = SimpleNamespace(get_scale=lambda: scale)
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler), world_size=1, global_step=4, is_global_zero=True,
        precision="16-mixed",
    )  # fmt: skip
    made: Any = SimpleNamespace(trainer=trainer, named_parameters=lambda: [("w", parameter)], parameters=lambda: [])
    watch.begin([])
    watch.add(batch(), torch.tensor([1.0, loss]))
    watch.check(made, torch.optim.SGD([parameter], lr=1.0), lambda pairs, place: f"pair {place}")


def test_a_scaler_may_meet_infinite_gradients_but_not_for_ever() -> None:
    watch = StepWatch("stop")
    watched(watch, gradient=float("inf"), loss=1.0, scale=65536.0)
    with pytest.raises(NonFiniteStep, match=r"1 of its 2 pairs: pair 1\. What may help: bfloat16 or float32 in place"):
        watched(watch, gradient=0.0, loss=float("nan"), scale=65536.0)
    with pytest.raises(NonFiniteStep, match="gradients are NaN or infinite"):
        watched(watch, gradient=float("inf"), loss=1.0, scale=0.5)


def test_only_known_answers_are_taken() -> None:
    with pytest.raises(ValueError, match='"stop" or "skip", got \'go on\''):
        StepWatch("go on")  # type: ignore[arg-type]
