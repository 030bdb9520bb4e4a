"""AlignmentModule in real fits on tiny models: training, logging, step 0, checkpoints, optimizers."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_align.batch import PairBatch
from lit_align.losses import BCO, DPO, LDDPO, WPO, LossOutput, PairLogps, PreferenceLoss, RSOHinge, SLiCHF
from lit_align.policy import AdapterCopy, AdapterOff, LoraSpec, ModelReference, PolicySpec, Reference
from lit_align.policy.load import load_model
from lit_align.training import pair_module
from lit_align.training.module import AlignmentModule
from lit_align.training.refresh import ReferenceRefresh
from tests.helpers.modules import Recorder, adamw, batch, full_module, loader, loader_of, lora_module, padded, trainer
from tests.helpers.tiny import save_tiny_model

FIELD_NAMES = {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"} | {
    "logps/chosen",
    "logps/rejected",
    "lengths/chosen",
    "lengths/rejected",
}


def start_warnings(
    module: AlignmentModule, tmp_path: Path, data: DataLoader[PairBatch] | None = None, precision: Any = None
) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=1, precision=precision).fit(module, data or loader())
    return [text for w in caught if "Before the first step" in (text := str(w.message))]


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("loss", "neutral"), [(DPO(), math.log(2)), (DPO(label_smoothing=0.2), math.log(2)), (RSOHinge(), 1.0)]
)
def test_starts_neutral_and_learns(loss: PreferenceLoss, neutral: float, tiny_model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    module = lora_module(tiny_model, loss)
    trainer(tmp_path, recorder, max_steps=12).fit(module, loader(1))
    assert recorder.losses[0] == pytest.approx(neutral, abs=1e-6)
    assert recorder.losses[-1] < neutral - 0.02


def test_full_fine_tuning_learns_against_a_copy_of_its_start(tiny_model: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    module = full_module(tiny_model)
    trainer(tmp_path, recorder, max_steps=6).fit(module, loader(1))
    assert recorder.losses[0] == pytest.approx(math.log(2), abs=1e-6) and recorder.losses[-1] < 0.5
    start = dict(load_model(PolicySpec(str(tiny_model))).named_parameters())
    assert isinstance(module.reference, ModelReference) and module.reference.model is not None
    for name, parameter in module.reference.model.named_parameters():
        torch.testing.assert_close(parameter, start[name], rtol=0, atol=0)


def test_slic_hf_runs_without_a_reference(tiny_model: Path, tmp_path: Path) -> None:
    module = lora_module(tiny_model, SLiCHF(target="row"), reference=AdapterOff())
    assert module.reference is None  # not attached where the loss needs none
    rows = [batch(0, target=padded([5, 6], [7]))]
    task = trainer(tmp_path)
    task.fit(module, loader_of(rows))
    assert {"slic/hinge", "slic/regulariser"} < set(task.logged_metrics)
    with pytest.raises(RuntimeError, match="no reference to refresh"):
        module.refresh_reference()


def test_logs_the_fields_names_in_training_and_validation(tiny_model: Path, tmp_path: Path) -> None:
    module, task = lora_module(tiny_model), trainer(tmp_path, max_steps=2, val_check_interval=1)
    task.fit(module, loader(1), loader(2))
    expected = FIELD_NAMES | {"on_policy_share", "lr"} | {f"val/{name}" for name in FIELD_NAMES}
    assert set(task.logged_metrics) == expected
    assert task.logged_metrics["on_policy_share"] == 0.5
    shown = {name for name in task.progress_bar_metrics if not name.startswith("val/")}
    assert shown == {"loss", "rewards/accuracies", "rewards/margins"}
    task.test(module, loader(2))
    assert set(task.logged_metrics) == {f"test/{name}" for name in FIELD_NAMES}


class HalfOnPolicy(LightningDataModule):
    """One batch, of whose pairs the first is on-policy."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.on_policy_share = share

    def train_dataloader(self) -> Any:
        return loader(1)


def test_the_drift_from_the_reference_is_that_of_on_policy_pairs(tiny_model: Path, tmp_path: Path) -> None:
    module = full_module(tiny_model)
    module.configure_model()
    shake(module)
    with torch.no_grad():
        pairs = module.pair_logps(batch(0))
    reference_chosen, reference_rejected = pairs.references()
    drift = (pairs.policy_chosen_logps - reference_chosen + pairs.policy_rejected_logps - reference_rejected) / 2
    task = trainer(tmp_path, max_steps=1)
    task.fit(module, datamodule=HalfOnPolicy(0.5))
    assert float(task.logged_metrics["kl"]) == pytest.approx(float(drift[0]), rel=1e-4)
    assert abs(float(drift[0] - drift[1])) > 1e-3, "the pairs are told apart"
    other = trainer(tmp_path, max_steps=1)
    other.fit(lora_module(tiny_model), datamodule=HalfOnPolicy(0.0))
    assert "kl" not in other.logged_metrics


def test_validation_is_the_mean_over_pairs_by_hand(tiny_model: Path, tmp_path: Path) -> None:
    module = full_module(tiny_model)
    module.configure_model()
    shake(module)
    found = trainer(tmp_path).validate(module, loader(2), verbose=False)[0]
    with torch.no_grad():
        parts = [module.pair_logps(batch(seed)) for seed in range(2)]
    h = torch.cat(
        [
            0.1 * ((p.policy_chosen_logps - p.references()[0]) - (p.policy_rejected_logps - p.references()[1]))
            for p in parts
        ]
    )
    assert found["val/loss"] == pytest.approx(float(torch.log(1 + torch.exp(-h)).mean()), abs=1e-5)
    assert found["val/rewards/margins"] == pytest.approx(float(h.mean()), abs=1e-5)
    assert found["val/rewards/accuracies"] == pytest.approx(float((h > 0).float().mean()))


def test_predict_gives_the_rewards_of_each_pair(tiny_model: Path, tmp_path: Path) -> None:
    module = full_module(tiny_model)
    module.configure_model()
    shake(module)
    rewards = trainer(tmp_path).predict(module, loader(1))
    with torch.no_grad():
        output = DPO()(module.pair_logps(batch(0)))
    assert rewards == [
        {
            "chosen_rewards": output.chosen_rewards.tolist(),
            "rejected_rewards": output.rejected_rewards.tolist(),
            "margins": (output.chosen_rewards - output.rejected_rewards).tolist(),
        }
    ]


class Quadratic(PreferenceLoss):
    """A loss as a user would write it in a file of their own, with a weight that is trained too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, pairs: PairLogps) -> LossOutput:
        reference_chosen, reference_rejected = pairs.references()
        chosen = pairs.policy_chosen_logps - reference_chosen
        rejected = pairs.policy_rejected_logps - reference_rejected
        losses = (self.scale - chosen + rejected) ** 2
        return LossOutput(losses, chosen.detach(), rejected.detach(), {"mine": losses.detach()})


def test_a_loss_of_ones_own_trains_logs_and_is_saved(tiny_model: Path, tmp_path: Path) -> None:
    recorder, module, task = Recorder(), lora_module(tiny_model, Quadratic()), trainer(tmp_path, max_steps=4)
    task.callbacks.append(recorder)  # type: ignore[attr-defined]
    task.fit(module, loader(1))
    assert recorder.losses[0] == pytest.approx(1.0) and recorder.losses[-1] < 0.9
    assert "mine" in task.logged_metrics
    task.save_checkpoint(tmp_path / "own.ckpt")
    assert "loss.scale" in torch.load(tmp_path / "own.ckpt", weights_only=True)["state_dict"]


def test_reference_log_probs_of_the_batch_are_used(tiny_model: Path) -> None:
    module = lora_module(tiny_model)
    module.configure_model()
    ahead = {
        "reference_chosen_logps": torch.tensor([-1.0, -2.0]),
        "reference_rejected_logps": torch.tensor([-3.0, -4.0]),
    }
    assert module.pair_logps(batch(0, **ahead)).references()[1].tolist() == [-3.0, -4.0]


def test_no_gradient_reaches_the_reference(tiny_model: Path) -> None:
    module = full_module(tiny_model)
    module.configure_model()
    module.loss(module.pair_logps(batch())).losses.mean().backward()
    assert module.reference is not None
    assert all(p.grad is None for p in module.reference.parameters())
    assert all(p.grad is not None for p in module.policy.parameters())


def test_dropout_is_drawn_from_the_micro_batch_alone(tiny_model: Path, tmp_path: Path) -> None:
    class Noise(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            torch.rand(3)

    def losses(*callbacks: Callback) -> list[float]:
        torch.manual_seed(0)
        recorder = Recorder()
        spec = PolicySpec(str(tiny_model), lora=LoraSpec(r=4, dropout=0.5))
        module = AlignmentModule(spec, DPO(), optimizer=adamw)
        trainer(tmp_path, recorder, *callbacks, max_steps=5).fit(module, loader())
        return recorder.losses

    assert losses() == losses(Noise())


# ---------------------------------------------------------------------- step 0


def shake(module: AlignmentModule) -> None:
    assert module.policy is not None
    with torch.no_grad():
        for parameter in module.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


@pytest.fixture
def sft_adapter(tiny_model: Path, tmp_path: Path) -> Path:
    module = lora_module(tiny_model)
    module.configure_model()
    shake(module)
    shake(module)
    module.policy.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def test_a_clean_start_is_silent(tiny_model: Path, sft_adapter: Path, tmp_path: Path) -> None:
    dropout = PolicySpec(str(tiny_model), lora=LoraSpec(r=4, dropout=0.5))  # fresh adapters are 0: no noise yet
    loaded = PolicySpec(str(tiny_model), adapter=str(sft_adapter))
    for module in (
        lora_module(tiny_model),
        full_module(tiny_model),
        AlignmentModule(dropout, DPO()),
        AlignmentModule(loaded, DPO()),
        lora_module(tiny_model, SLiCHF()),
    ):
        assert start_warnings(module, tmp_path) == []
    for precision in ("bf16-mixed", "bf16-true"):
        assert start_warnings(lora_module(tiny_model), tmp_path, precision=precision) == []


def test_a_loaded_adapter_against_the_bare_base_is_suspicious(
    tiny_model: Path, sft_adapter: Path, tmp_path: Path
) -> None:
    module = AlignmentModule(PolicySpec(str(tiny_model), adapter=str(sft_adapter)), DPO(), AdapterOff())
    assert "take AdapterCopy" in start_warnings(module, tmp_path)[0]


def test_another_model_as_the_reference_is_suspicious(tiny_model: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    module = full_module(tiny_model, reference=ModelReference(PolicySpec(str(other))))
    assert "is another model than the policy's start" in start_warnings(module, tmp_path)[0]


def test_dropout_at_the_start_is_suspicious(tiny_model: Path, tmp_path: Path) -> None:
    module = full_module(tiny_model)
    module.configure_model()
    layer = module.policy.model.layers[0]
    layer.mlp = nn.Sequential(layer.mlp, nn.Dropout(0.9))
    shake(module)
    module.reference = ModelReference()
    module.reference.attach(module.policy, module.spec)  # type: ignore[arg-type]
    assert "Dropout is on" in start_warnings(module, tmp_path)[0]


def test_foreign_log_probs_computed_ahead_are_suspicious(tiny_model: Path, tmp_path: Path) -> None:
    rows = [batch(0, reference_chosen_logps=torch.zeros(2), reference_rejected_logps=torch.zeros(2))]
    data = loader_of(rows)
    assert "computed ahead" in start_warnings(lora_module(tiny_model), tmp_path, data)[0]


def test_weights_moved_after_the_reference_are_suspicious(tiny_model: Path, tmp_path: Path) -> None:
    module = full_module(tiny_model)
    module.configure_model()
    shake(module)
    found = start_warnings(module, tmp_path)
    assert len(found) == 1 and "after the reference was made" in found[0]


# ---------------------------------------------------------------------- optimizers


def test_only_what_is_trained_goes_to_the_optimizer(tiny_model: Path, sft_adapter: Path, tmp_path: Path) -> None:
    spec = PolicySpec(str(tiny_model), adapter=str(sft_adapter))
    module, task = AlignmentModule(spec, DPO(), AdapterCopy()), trainer(tmp_path, max_steps=1)
    task.fit(module, loader())
    given = {id(p) for group in task.optimizers[0].param_groups for p in group["params"]}
    names = {name for name, p in module.named_parameters() if id(p) in given}
    assert names and names == {n for n, p in module.named_parameters() if p.requires_grad}
    assert all(".default." in name for name in names)


def test_the_scheduler_steps_with_the_optimizer(tiny_model: Path, tmp_path: Path) -> None:
    def halve(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)

    module = lora_module(tiny_model, lr_scheduler=halve)
    task = trainer(tmp_path, max_steps=3, accumulate_grad_batches=2)
    task.fit(module, loader(8))
    assert task.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * 0.5**3)


def test_a_plateau_scheduler_watches_the_validation_loss(tiny_model: Path, tmp_path: Path) -> None:
    def plateau(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=1e9)

    module = lora_module(tiny_model, lr_scheduler=plateau)
    task = trainer(tmp_path, max_steps=4)
    task.fit(module, loader(2), loader(1))
    assert task.optimizers[0].param_groups[0]["lr"] < 1e-2


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit"])
def test_8_bit_optimizers_are_made_over_what_is_trained(name: str, tiny_model: Path) -> None:
    optimizers = pytest.importorskip("bitsandbytes.optim")
    module = lora_module(tiny_model, optimizer=lambda params: getattr(optimizers, name)(params, lr=1e-2))
    module.configure_model()
    made = module.configure_optimizers()
    assert isinstance(made, getattr(optimizers, name))
    assert len(made.param_groups[0]["params"]) == sum(p.requires_grad for p in module.parameters())


# ---------------------------------------------------------------------- checkpoints


def fit_and_save(module: AlignmentModule, tmp_path: Path, steps: int = 3) -> tuple[Path, dict[str, Any]]:
    task = trainer(tmp_path, max_steps=steps)
    task.fit(module, loader())
    path = tmp_path / f"step-{steps}.ckpt"
    task.save_checkpoint(path)
    return path, torch.load(path, weights_only=True)


def test_a_lora_checkpoint_holds_the_adapter_alone(tiny_model: Path, tmp_path: Path) -> None:
    module = lora_module(tiny_model)
    _, checkpoint = fit_and_save(module, tmp_path)
    names = set(checkpoint["state_dict"])
    assert names == {n for n, p in module.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in names)


def test_a_full_checkpoint_holds_the_policy_and_not_the_reference(tiny_model: Path, tmp_path: Path) -> None:
    module = full_module(tiny_model)
    _, checkpoint = fit_and_save(module, tmp_path)
    assert set(checkpoint["state_dict"]) == {f"policy.{n}" for n, _ in module.policy.named_parameters()}


FORMS = ["lora", "adapter_copy", "full", "full_refreshed", "adapter_copy_refreshed", "checkpointed_dropout"]


def form(name: str, tiny_model: Path, sft_adapter: Path) -> AlignmentModule:
    if name.startswith("adapter_copy"):
        return AlignmentModule(PolicySpec(str(tiny_model), adapter=str(sft_adapter)), DPO(), optimizer=adamw)
    if name == "checkpointed_dropout":
        spec = PolicySpec(str(tiny_model), lora=LoraSpec(r=4, dropout=0.3), gradient_checkpointing=True)
        return AlignmentModule(spec, DPO(), optimizer=adamw)
    return full_module(tiny_model) if name.startswith("full") else lora_module(tiny_model)


class RefreshAt(Callback):
    """Refreshes the reference after one optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            pl_module.refresh_reference()


@pytest.mark.parametrize("name", FORMS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    name: str, tiny_model: Path, sft_adapter: Path, tmp_path: Path
) -> None:
    def fit(steps: int, resume: Path | None = None) -> tuple[AlignmentModule, list[float], Trainer]:
        torch.manual_seed(0)  # the start of fresh adapters
        recorder, module = Recorder(), form(name, tiny_model, sft_adapter)
        refresh = [RefreshAt(2)] if name.endswith("refreshed") else []
        task = trainer(tmp_path, recorder, *refresh, max_steps=steps)
        task.fit(module, loader(1), ckpt_path=resume, weights_only=True)  # the data's own resume is not at stake here
        return module, recorder.losses, task

    whole, losses, _ = fit(6)
    _, first, task = fit(4)
    task.save_checkpoint(tmp_path / "four.ckpt")
    torch.manual_seed(99)
    resumed, rest, _ = fit(6, tmp_path / "four.ckpt")
    assert first + rest == losses
    expected = whole.state_dict()
    for key, value in resumed.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0, msg=key)


def test_a_refreshed_copy_is_in_the_checkpoint_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    module = full_module(tiny_model)
    task = trainer(tmp_path, RefreshAt(2), max_steps=3)
    task.fit(module, loader())
    task.save_checkpoint(tmp_path / "refreshed.ckpt")
    names = torch.load(tmp_path / "refreshed.ckpt", weights_only=True)["state_dict"]
    assert sum(name.startswith("reference.model.") for name in names) == len(names) / 2
    again = full_module(tiny_model)
    trainer(tmp_path).validate(again, loader(1), ckpt_path=tmp_path / "refreshed.ckpt", verbose=False)
    assert again.reference is not None and again.reference.refreshes == 1


def damaged(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    first = next(iter(state))
    if how == "missing":
        return {name: value for name, value in state.items() if name != first}
    if how == "unknown":
        return {**state, "policy.stranger": torch.zeros(1)}
    return {**state, first: torch.zeros(1, 1)}


@pytest.mark.parametrize(
    ("how", "said"), [("missing", "lacks 1, has 0"), ("unknown", "has 1 others"), ("reshaped", "1 of another shape")]
)
def test_a_checkpoint_that_does_not_fit_is_refused(how: str, said: str, tiny_model: Path, tmp_path: Path) -> None:
    path, checkpoint = fit_and_save(lora_module(tiny_model), tmp_path)
    torch.save({**checkpoint, "state_dict": damaged(checkpoint["state_dict"], how)}, path)
    with pytest.raises(ValueError, match=f"does not fit this configuration.*{said}"):
        trainer(tmp_path).fit(lora_module(tiny_model), loader(), ckpt_path=path)


def test_load_from_checkpoint_and_configure_twice(tiny_model: Path, tmp_path: Path) -> None:
    module = lora_module(tiny_model)
    path, _ = fit_and_save(module, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning lists the base's names, which are not in the checkpoint
        loaded = AlignmentModule.load_from_checkpoint(path, policy=module.spec, loss=DPO())
    policy = loaded.policy
    loaded.configure_model()
    assert loaded.policy is policy
    expected = module.pair_logps(batch()).policy_chosen_logps
    torch.testing.assert_close(loaded.pair_logps(batch()).policy_chosen_logps, expected)


def test_a_fit_on_a_cpu_keeps_the_memory_that_it_frees(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(pair_module, "keep_freed_memory", lambda: calls.append(1))
    trainer(tmp_path, max_steps=1).fit(lora_module(tiny_model), loader())
    assert calls == [1]


def test_making_the_module_loads_nothing(tmp_path: Path) -> None:
    module = AlignmentModule(PolicySpec(str(tmp_path / "missing"), lora=LoraSpec()), DPO())
    assert module.policy is None and isinstance(module.reference, Reference)
    with pytest.raises(RuntimeError, match="configure_model"):
        module.pair_logps(batch())


def test_the_tokenizer_loads_without_the_model_and_once(tiny_model: Path) -> None:
    module = lora_module(tiny_model)
    assert module.tokenizer is module.tokenizer and module.policy is None


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_trains_and_keeps_stored_log_probs_whole(
    tiny_model: Path, tmp_path: Path, precision: str
) -> None:
    class Spy(DPO):
        def forward(self, pairs: PairLogps) -> LossOutput:
            seen.append(pairs)
            return super().forward(pairs)

    seen: list[PairLogps] = []
    stored = torch.full((2,), -12.345678)
    known = batch(reference_chosen_logps=stored, reference_rejected_logps=stored)
    with pytest.warns(UserWarning, match="differ by"):
        trainer(tmp_path, max_steps=1, precision=precision).fit(lora_module(tiny_model, Spy()), loader_of([known]))
    assert seen[0].reference_chosen_logps is not None
    assert seen[0].reference_chosen_logps[0].item() == pytest.approx(-12.345678, abs=1e-6)
    assert seen[0].policy_chosen_logps.dtype == torch.float32


@pytest.mark.parametrize("stored", [False, True])
def test_token_log_probs_and_collisions_reach_the_loss(tiny_model: Path, stored: bool) -> None:
    """LD-DPO at alpha 1 and WPO without weights are DPO; with them, the numbers come from the tokens."""
    module = lora_module(tiny_model)
    module.configure_model()
    shake(module)
    data = batch()
    plain = module.loss(module.pair_logps(data)).losses
    if stored:
        chosen, rejected = module.run_reference(data)
        data.reference_chosen_logps, data.reference_rejected_logps = chosen.sum(), rejected.sum()
        data.reference_chosen_token_logps, data.reference_rejected_token_logps = chosen.logps, rejected.logps
    for same, other in ((LDDPO(alpha=1.0), LDDPO(alpha=0.0)), (None, WPO())):
        if same is not None:
            module.loss = same
            torch.testing.assert_close(module.loss(module.pair_logps(data)).losses, plain)
        module.loss = other
        pairs = module.pair_logps(data)
        assert not torch.allclose(other(pairs).losses, plain)
    assert pairs.policy_chosen_collisions is not None and (pairs.policy_chosen_collisions < 0).all()


def test_the_state_of_a_loss_is_in_the_checkpoint_and_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    whole = lora_module(tiny_model, BCO())
    _, checkpoint = fit_and_save(whole, tmp_path / "a", steps=2)
    assert checkpoint["state_dict"]["loss.reward_count"] > 0
    resumed = lora_module(tiny_model, BCO())
    resumed.on_load_checkpoint(checkpoint)
    resumed.load_state_dict(checkpoint["state_dict"], strict=False)
    torch.testing.assert_close(resumed.loss.reward_mean, whole.loss.reward_mean, rtol=0, atol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_reference_follows_every_n_steps(tiny_model: Path, tmp_path: Path, accumulate: int) -> None:
    module = lora_module(tiny_model, reference=AdapterCopy())
    task = trainer(
        tmp_path, ReferenceRefresh(2), max_steps=5, accumulate_grad_batches=accumulate, num_sanity_val_steps=0
    )
    task.fit(module, loader(8))
    assert module.reference is not None and module.reference.refreshes == 2


def test_a_reference_that_cannot_follow_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a reference that can be refreshed, got AdapterOff"):
        trainer(tmp_path, ReferenceRefresh(2)).fit(lora_module(tiny_model), loader())
    with pytest.raises(ValueError, match="at least 1"):
        ReferenceRefresh(0)
