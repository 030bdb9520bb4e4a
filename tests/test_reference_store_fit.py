"""Stored reference log-probs in real fits: the same numbers, no second pass, and what survives a kill."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_align.batch import PairBatch
from lit_align.data import AlignmentDataModule
from lit_align.losses import DPO, PreferenceLoss, RSOHinge, SLiCHF
from lit_align.policy import AdapterCopy, LoraSpec, ModelReference, PolicySpec, Reference, TokenLogps
from lit_align.policy.load import load_model
from lit_align.reference import logps as reference_logps
from lit_align.training.module import AlignmentModule
from tests.helpers.data_fakes import FakeSampler, LastDigit, pair_rows, through_a_file, write
from tests.helpers.tiny import save_tiny_model

PAIRS, HELD_OUT = 9, 3


@dataclass
class Run:
    """What a fit did."""

    module: Counted
    data: AlignmentDataModule
    trainer: Trainer
    losses: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    stored: list[bool] = field(default_factory=list)


class Watch(Callback):
    """Keeps losses, and does something after a step."""

    def __init__(self, after: dict[int, Callable[[Run], Any]]) -> None:
        self.after = after
        self.run: Run | None = None

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: PairBatch, index: int) -> None:
        assert self.run is not None
        self.run.losses.append(float(outputs["loss"]))
        self.run.stored.append(batch.reference_chosen_logps is not None)
        self.after.get(trainer.global_step, lambda _: None)(self.run)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert self.run is not None
        self.run.val_losses.append(float(trainer.callback_metrics["val/loss"]))


class Counted(AlignmentModule):
    """Notes the size of each forward pass of the reference."""

    passes: list[int]
    modes: list[bool]

    def run_reference(self, batch: PairBatch) -> list[TokenLogps]:
        self.passes.append(len(batch))
        self.modes.append(self.training)
        return super().run_reference(batch)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2)


@pytest.fixture
def rows(tmp_path: Path) -> tuple[str, str]:
    held_out = [{**row, "prompt": f"held out {n}"} for n, row in enumerate(pair_rows(HELD_OUT))]
    return write(tmp_path / "train.jsonl", pair_rows(PAIRS)), write(tmp_path / "val.jsonl", held_out)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "reference"


def spec(model: Path, **options: Any) -> PolicySpec:
    return PolicySpec(str(model), **{"lora": LoraSpec(r=4), **options})


def prepared(
    policy: PolicySpec,
    rows: tuple[str, str],
    cache: Path | None,
    loss: PreferenceLoss | None = None,
    reference: Reference | None = None,
    after: dict[int, Callable[[Run], Any]] | None = None,
    trainer: dict[str, Any] | None = None,
    **data: Any,
) -> Run:
    torch.manual_seed(0)  # the start of fresh adapters
    module = Counted(policy, loss or DPO(), reference, optimizer=adamw)
    module.passes, module.modes = [], []
    options = {"batch_size": 2, "seed": 3, "reference_cache": None if cache is None else str(cache), **data}
    watch = Watch(after or {})
    task = Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0, **(trainer or {})},
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[watch],
    )
    watch.run = Run(module, AlignmentDataModule(rows[0], rows[1], **options), task, passes=module.passes)
    return watch.run


def fit(*args: Any, resume: Path | None = None, **options: Any) -> Run:
    run = prepared(*args, **options)
    run.trainer.fit(run.module, run.data, ckpt_path=resume, weights_only=True)
    return run


def assert_same_losses(one: Run, other: Run) -> None:
    assert len(one.losses) == len(other.losses) > 0 and len(one.val_losses) == len(other.val_losses) > 0
    np.testing.assert_allclose(one.losses, other.losses, rtol=0, atol=2e-6)
    np.testing.assert_allclose(one.val_losses, other.val_losses, rtol=0, atol=2e-6)


@pytest.fixture
def sft(tiny_model: Path, tmp_path: Path) -> str:
    """A saved adapter that does something."""
    policy = load_model(spec(tiny_model))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    policy.save_pretrained(tmp_path / "sft")
    return str(tmp_path / "sft")


FORMS = ["lora", "full", "adapter_copy", "second_model"]


def form(name: str, tiny_model: Path, sft: str, tmp_path: Path) -> tuple[PolicySpec, Reference | None]:
    if name == "second_model":
        other = tmp_path / "second"
        return spec(tiny_model), ModelReference(
            PolicySpec(str(other if other.exists() else save_tiny_model(other, seed=1)))
        )
    return {
        "lora": spec(tiny_model),
        "full": spec(tiny_model, lora=None),
        "adapter_copy": spec(tiny_model, lora=None, adapter=sft),
    }[name], None


# ---------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", FORMS)
def test_training_equals_training_with_the_reference_in_the_loop(
    name: str, tiny_model: Path, sft: str, tmp_path: Path, rows: tuple[str, str], cache: Path
) -> None:
    def run(where: Path | None) -> Run:
        policy, reference = form(name, tiny_model, sft, tmp_path)
        return fit(policy, rows, where, reference=reference)

    loop, stored, again = run(None), run(cache), run(cache)
    assert not any(loop.stored) and all(stored.stored) and all(again.stored)
    assert len(set(loop.losses)) > 5 and (name == "second_model") == (abs(loop.losses[0] - math.log(2)) > 1e-4)
    assert_same_losses(loop, stored)
    assert stored.losses == again.losses and stored.val_losses == again.val_losses  # bit by bit
    assert sum(stored.passes) == PAIRS + HELD_OUT and again.passes == []
    assert not any(stored.module.modes) and stored.module.training
    for later in (stored, again):
        if isinstance(later.module.reference, ModelReference):
            assert later.module.reference.model is None  # given back, or never loaded


def test_a_batch_carries_the_tokens_and_their_sums(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    run = fit(spec(tiny_model), rows, cache)
    batch = next(run.data.train_dataloader())
    chosen, rejected = run.module.run_reference(batch)
    assert batch.reference_chosen_token_logps is not None and batch.reference_rejected_token_logps is not None
    torch.testing.assert_close(batch.reference_chosen_token_logps, chosen.logps, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.reference_rejected_token_logps, rejected.logps, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.reference_chosen_logps, chosen.sum(), rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.reference_rejected_logps, rejected.sum(), rtol=0, atol=1e-5)


def test_without_a_reference_nothing_is_computed(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    run = fit(spec(tiny_model), rows, cache, SLiCHF())
    assert run.passes == [] and not cache.exists() and not any(run.stored)
    assert run.data.stream.reference.fill_all() == {}


# ---------------------------------------------------------------------- found again


@pytest.mark.parametrize("other", ["beta", "loss", "seed", "rank", "pairs_of_the_same_completions"])
def test_nothing_but_the_reference_and_the_tokens_matters(
    other: str, tiny_model: Path, rows: tuple[str, str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(spec(tiny_model), rows, cache)
    assert f"0 of {PAIRS + HELD_OUT} static pairs found in {cache}" in capsys.readouterr().out
    policy = spec(tiny_model, lora=LoraSpec(r=2, alpha=4)) if other == "rank" else spec(tiny_model)
    loss = {"beta": DPO(beta=0.5), "loss": RSOHinge()}.get(other)
    if other == "pairs_of_the_same_completions":
        swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pair_rows(PAIRS)]
        write(Path(rows[0]), swapped)
    more: dict[str, Any] = {"seed": 4} if other == "seed" else {}
    run = fit(policy, rows, cache, loss, **more)
    assert run.passes == [] and all(run.stored)
    assert f"all {PAIRS + HELD_OUT} static pairs found in {cache}" in capsys.readouterr().out


def test_another_reference_or_other_tokens_are_not_found(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    fit(spec(tiny_model), rows, cache)
    assert sum(fit(spec(tiny_model, dtype="bfloat16"), rows, cache).passes) == PAIRS + HELD_OUT
    assert sum(fit(spec(tiny_model), rows, cache, trainer={"precision": "bf16-mixed"}).passes) == PAIRS + HELD_OUT
    write(Path(rows[0]), [*pair_rows(PAIRS), {"prompt": "q0", "chosen": "good 0", "rejected": "worse 0"}])
    assert fit(spec(tiny_model), rows, cache).passes == [1]


def test_full_fine_tuning_finds_what_lora_computed(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    fit(spec(tiny_model), rows, cache)
    run = fit(spec(tiny_model, lora=None), rows, cache)
    assert run.passes == [] and isinstance(run.module.reference, ModelReference) and run.module.reference.model is None


def test_only_what_the_run_can_show_is_computed(
    tiny_model: Path, rows: tuple[str, str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"max_steps": 1, "accumulate_grad_batches": 2, "limit_val_batches": 1, "max_epochs": 50}
    run = fit(spec(tiny_model), rows, cache, trainer=limits)
    assert sum(run.passes) == 4 + 2  # one step of two micro-batches, one batch of held-out pairs
    run = fit(spec(tiny_model), rows, cache, trainer={**limits, "val_check_interval": 2})
    assert sum(run.passes) == 0 and len(run.val_losses) == 1
    run = fit(spec(tiny_model), rows, cache, trainer={"max_epochs": 1, "limit_train_batches": 3})
    assert sum(run.passes) == 2 + 1
    assert "6 of 9 static pairs found" in capsys.readouterr().out


def test_validation_test_and_prediction_store_and_find(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    limits = {"limit_val_batches": 1, "limit_test_batches": 0.5, "limit_predict_batches": 1.0}
    for expected in ([2, 2, HELD_OUT], [0, 0, 0]):
        run = prepared(spec(tiny_model), rows, cache, trainer=limits)
        run.trainer.validate(run.module, run.data, verbose=False)
        computed = [sum(run.passes)]
        run.trainer.test(run.module, run.data, verbose=False)
        computed.append(sum(run.passes))
        assert run.trainer.predict(run.module, run.data)
        assert [*computed, sum(run.passes)] == expected


# ---------------------------------------------------------------------- rounds and refreshes

ROUNDS: dict[str, Any] = {"on_policy_share": 1.0, "round_prompts": 4}


def on_policy(**more: Any) -> dict[str, Any]:
    return {**ROUNDS, "sampler": FakeSampler(), "judge": LastDigit(), **more}


def test_on_policy_pairs_get_theirs_with_the_round(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    limits = {"max_steps": 6, "max_epochs": 50, "limit_val_batches": 0}
    loop = fit(spec(tiny_model), rows, None, trainer=limits, **on_policy())
    stored = fit(spec(tiny_model), rows, cache, trainer=limits, **on_policy())
    assert all(stored.stored) and not any(loop.stored)
    np.testing.assert_allclose(stored.losses, loop.losses, rtol=0, atol=2e-6)
    assert sum(stored.passes) == stored.data.counts["on_policy/pairs"] >= 12
    assert stored.data.round_stats["reference_seconds"] > 0 and not cache.exists()


def test_a_round_in_a_checkpoint_keeps_its_values(
    tiny_model: Path, rows: tuple[str, str], cache: Path, tmp_path: Path
) -> None:
    limits = {"max_epochs": 50, "limit_val_batches": 0}
    whole = fit(spec(tiny_model), rows, cache, trainer={**limits, "max_steps": 3}, **on_policy(round_prompts=9))
    first = fit(spec(tiny_model), rows, cache, trainer={**limits, "max_steps": 1}, **on_policy(round_prompts=9))
    assert all(pair.reference is not None for pair in through_a_file_again(first))
    first.trainer.save_checkpoint(tmp_path / "one.ckpt")
    rest = prepared(spec(tiny_model), rows, cache, trainer={**limits, "max_steps": 3}, **on_policy(round_prompts=9))
    rest.trainer.fit(rest.module, rest.data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert rest.passes == [] and all(rest.stored) and first.losses + rest.losses == whole.losses


def through_a_file_again(run: Run) -> list[Any]:
    """The pending pairs, after a checkpoint."""
    state = through_a_file(run.data.state_dict())
    run.data.load_state_dict(state)
    return run.data.stream.on.pending


@pytest.mark.parametrize("name", ["full", "adapter_copy"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_refreshed_reference_makes_stored_values_void(
    name: str, share: float, tiny_model: Path, sft: str, tmp_path: Path, rows: tuple[str, str], cache: Path
) -> None:
    def run(where: Path | None) -> Run:
        policy, _ = form(name, tiny_model, sft, tmp_path)
        refresh = {2: lambda run: run.module.refresh_reference()}
        return fit(policy, rows, where, after=refresh, **on_policy(on_policy_share=share, round_prompts=9))

    fit(form(name, tiny_model, sft, tmp_path)[0], rows, cache)  # everything is stored
    loop, stored = run(None), run(cache)
    assert_same_losses(loop, stored)
    assert all(stored.stored[:2]) and not any(stored.stored[2:4])
    if share != 0.5:  # of a mixture, whether a batch holds only pairs of a new round depends on the draws
        assert any(stored.stored[4:]) == (share == 1.0)  # a round made after the refresh has values of its own


@pytest.mark.parametrize("name", ["full", "adapter_copy"])
def test_a_resumed_run_knows_that_its_reference_was_refreshed(
    name: str,
    tiny_model: Path,
    sft: str,
    tmp_path: Path,
    rows: tuple[str, str],
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(steps: int, resume: Path | None = None) -> Run:
        policy, _ = form(name, tiny_model, sft, tmp_path)
        refresh = {2: lambda run: run.module.refresh_reference()}
        limits = {"max_steps": steps, "max_epochs": 50, "limit_val_batches": 0}
        return fit(policy, rows, cache, after=refresh, trainer=limits, resume=resume)

    whole, first = run(6), run(3)
    first.trainer.save_checkpoint(tmp_path / "three.ckpt")
    capsys.readouterr()
    rest = run(6, tmp_path / "three.ckpt")
    assert "static pairs found" not in capsys.readouterr().out
    assert not any(rest.stored) and first.losses + rest.losses == whole.losses


def test_a_source_that_may_change_is_computed_a_round_at_a_time(
    tiny_model: Path, rows: tuple[str, str], cache: Path
) -> None:
    limits = {"max_steps": 4, "max_epochs": 50, "limit_val_batches": 0}
    swap = {1: lambda run: run.data.set_on_policy_share(1.0)}
    run = fit(spec(tiny_model), rows, cache, after=swap, trainer=limits, **on_policy(on_policy_share=0.0))
    assert sum(run.passes) - run.data.counts["on_policy/pairs"] == 4 and all(run.stored)
    back = {1: lambda run: run.data.set_on_policy_share(1.0), 2: lambda run: run.data.set_on_policy_share(0.0)}
    run = fit(spec(tiny_model), rows, cache, after=back, trainer=limits, **on_policy(on_policy_share=0.0))
    # two for step 1, on-policy pairs for step 2, two that are stored for step 3, and no more than step 4 needs
    assert sum(run.passes) - run.data.counts["on_policy/pairs"] == 2 and all(run.stored)


class Moving(AdapterCopy):
    """A form of one's own that does not say what it starts as."""

    def initial_spec(self, policy: PolicySpec) -> None:  # type: ignore[override]
        return None


@pytest.mark.filterwarnings("ignore")
def test_a_reference_that_cannot_be_told_runs_at_each_step(
    tiny_model: Path, rows: tuple[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(UserWarning, match="Moving does not say which model it starts as"):
        run = fit(spec(tiny_model), rows, cache, reference=Moving())
    assert not any(run.stored) and not cache.exists()
    monkeypatch.setattr(reference_logps, "model_identity", lambda *_: (_ for _ in ()).throw(ValueError("no commit")))
    with pytest.warns(UserWarning, match="cannot be told from other models: no commit"):
        run = fit(spec(tiny_model), rows, cache)
    assert not any(run.stored)


# ---------------------------------------------------------------------- accidents


def fail_after(run: Run, passes: int, how: Callable[[], Any]) -> None:
    original = run.module.run_reference

    def run_reference(batch: PairBatch) -> list[TokenLogps]:
        if len(run.passes) == passes:
            how()
        return original(batch)

    run.module.run_reference = run_reference  # type: ignore[method-assign]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupted_pass_keeps_what_it_computed(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    cut = prepared(spec(tiny_model), rows, cache)
    fail_after(cut, 3, interrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cut.trainer.fit(cut.module, cut.data)
    assert cut.passes == [2, 2, 2] and cut.losses == []
    resumed = fit(spec(tiny_model), rows, cache)
    assert sum(resumed.passes) == PAIRS + HELD_OUT - 6
    assert_same_losses(resumed, fit(spec(tiny_model), rows, None))


def killed(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    torch.set_num_threads(1)
    reference_logps.WRITE_SECONDS = 0.0
    run = prepared(spec(tiny_model), rows, cache)
    fail_after(run, 4, lambda: os._exit(9))
    run.trainer.fit(run.module, run.data)


def test_a_killed_pass_keeps_what_it_had_written(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=killed, args=(tiny_model, rows, cache))
    child.start()
    child.join(120)
    assert child.exitcode == 9
    assert sum(fit(spec(tiny_model), rows, cache).passes) == PAIRS + HELD_OUT - 8


def test_a_torn_file_is_computed_anew(tiny_model: Path, rows: tuple[str, str], cache: Path) -> None:
    whole = fit(spec(tiny_model), rows, cache)
    (shard,) = cache.glob("*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="what is missing is computed anew"):
        again = fit(spec(tiny_model), rows, cache)
    assert sum(again.passes) == PAIRS + HELD_OUT
    assert_same_losses(whole, again)
    assert fit(spec(tiny_model), rows, cache).passes == []


def test_a_folder_that_cannot_be_written_costs_the_storing_alone(
    tiny_model: Path, rows: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be kept for later runs"):
        run = fit(spec(tiny_model), rows, tmp_path / "file" / "cache")
    assert all(run.stored) and sum(run.passes) == PAIRS + HELD_OUT


# ---------------------------------------------------------------------- ranks


def one_of_two(rank: int, port: int, model: Path, rows: tuple[str, str], caches: list[Path], out: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    ddp = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    found = []
    for cache in (*caches, None):
        run = fit(spec(model), rows, cache and cache / str(rank) if "own" in str(cache) else cache, trainer=ddp)
        found.append({"passes": sum(run.passes), "losses": run.losses, "val": run.val_losses, "stored": run.stored})
    (out / f"{rank}.json").write_text(json.dumps(found))


def test_two_ranks_share_the_pass(tiny_model: Path, rows: tuple[str, str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared, own = tmp_path / "shared", tmp_path / "own"  # the second: each rank on a disk of its own
    fit(spec(tiny_model), rows, own / "0", trainer={"max_steps": 2, "limit_val_batches": 0})  # rank 0 finds four
    context = multiprocessing.get_context("fork")
    caches = [shared, shared, own, own]
    children = [
        context.Process(target=one_of_two, args=(rank, port, tiny_model, rows, caches, tmp_path)) for rank in (0, 1)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(180)
    assert [child.exitcode for child in children] == [0, 0]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    total = PAIRS + HELD_OUT
    assert [[run["passes"] for run in one[:4]] for one in ranks] == [[total / 2, 0, total / 2, 0]] * 2
    for one in ranks:
        loop = one[-1]
        assert not any(loop["stored"])
        for run in one[:4]:
            assert all(run["stored"])
            np.testing.assert_allclose(run["losses"], loop["losses"], rtol=0, atol=2e-6)
            np.testing.assert_allclose(run["val"], loop["val"], rtol=0, atol=2e-6)
