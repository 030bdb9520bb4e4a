"""Looking ahead with the real module and the real data, on a tiny model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from callbacks import AlwaysOffPolicy, AlwaysOnPolicy, LookAheadBoundary
from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision, MeasurementOutcome
from lit_align.data.datamodule import AlignmentDataModule
from lit_align.judges import RuleJudge
from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.sampling import TransformersSampler
from lit_align.trainer import AlignmentTrainer
from lit_align.training.look_ahead import looking_ahead
from lit_align.training.module import AlignmentModule
from tests.helpers.boundary_fakes import quiet_trainer
from tests.helpers.processes import DDP, on_two_ranks


def mean_letter(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [sum(map(ord, candidate)) / (1 + len(candidate)) for candidate in candidates]


def make(
    folder: Path, model: Path, rule: Any = mean_letter, optimizer: Any = torch.optim.AdamW
) -> tuple[AlignmentModule, AlignmentDataModule]:
    path = folder / "rows.jsonl"
    texts = ["tea", "a drink!", "sea"]
    rows = [{"prompt": f"Give fact {n} about tea.", "candidates": texts} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = AlignmentDataModule(
        str(path), val_fraction=0.4, batch_size=2, judge=RuleJudge(rule), relabel=True, round_prompts=6,
        sampler=TransformersSampler(num_candidates=3, max_new_tokens=6), reference_cache=None,
    )  # fmt: skip
    torch.manual_seed(0)
    module = AlignmentModule(
        PolicySpec(str(model), lora=LoraSpec(r=2, dropout=0.1)),
        DPO(),
        optimizer=lambda params: optimizer(params, lr=1e-2),
    )
    return module, data


def trained(module: AlignmentModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


class Seen(LookAheadBoundary):
    """Remembers what was trained ahead."""

    seen: list[tuple[list[torch.Tensor], list[torch.Tensor]]]

    def measure(self, trainer: Any, pl_module: Any) -> MeasurementOutcome:
        self.seen = getattr(self, "seen", [])
        return super().measure(trainer, pl_module)

    def both_sides(self, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._trained is not None
        self.seen.append(self._trained)
        return super().both_sides(trainer, *args, **kwargs)


class Replayed(BoundaryCallback):
    """Decides as another run did, without measuring."""

    def __init__(self, history: Sequence[Decision]) -> None:
        super().__init__(every_n_steps=None)
        self.known = {one.step: one for one in history}

    def should_decide(self, step: int) -> bool:
        return step in self.known

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
        return Choice(self.known[step].on_policy_share, "replayed")


def no_dropout(module: AlignmentModule) -> AlignmentModule:
    module.spec = PolicySpec(module.spec.model, lora=LoraSpec(r=2))
    return module


@pytest.mark.parametrize(("accumulate", "optimizer"), [(1, torch.optim.SGD), (2, torch.optim.AdamW)])
def test_it_trains_as_a_fit_on_each_source_would(
    tmp_path: Path, tiny_model: Path, accumulate: int, optimizer: Any
) -> None:
    module, data = make(tmp_path, tiny_model, optimizer=optimizer)
    ahead = Seen(look_ahead_steps=3, every_n_steps=9)
    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 1e-4}
    quiet_trainer(tmp_path, ahead, max_steps=1, **settings).fit(no_dropout(module), datamodule=data)
    on, off = ahead.seen[0]
    for schedule, found in ((AlwaysOnPolicy(), on), (AlwaysOffPolicy(), off)):
        plain, data = make(tmp_path, tiny_model, optimizer=optimizer)
        quiet_trainer(tmp_path, schedule, max_steps=3, **settings).fit(no_dropout(plain), datamodule=data)
        expected = list(trained(plain).values())
        assert any(not torch.equal(a, b) for a, b in zip(on, off, strict=True))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_a_round_under_way_is_gone_on_with_and_a_switch_makes_a_fresh_one(tmp_path: Path, tiny_model: Path) -> None:
    rounds: dict[int, int] = {}

    class OnThenOff(Seen):
        def both_sides(self, trainer: Any, *args: Any, **kwargs: Any) -> Any:
            rounds[trainer.global_step] = data.counts["on_policy/rounds"]
            return super().both_sides(trainer, *args, **kwargs)

        def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice:
            return Choice(float(step < 2), "as told")

    module, data = make(tmp_path, tiny_model)
    quiet_trainer(tmp_path, OnThenOff(look_ahead_steps=1, every_n_steps=2), max_steps=5).fit(module, datamodule=data)
    assert data.counts["on_policy/rounds"] == 1 and data.counts["on_policy/pairs"] == 6
    assert rounds == {0: 1, 2: 1, 4: 2}


def test_the_run_goes_on_as_if_it_had_not_looked(tmp_path: Path, tiny_model: Path) -> None:
    module, data = make(tmp_path, tiny_model)
    ahead = LookAheadBoundary(look_ahead_steps=2, every_n_steps=2)
    trainer = AlignmentTrainer(
        default_root_dir=str(tmp_path / "ahead"), max_steps=6, accelerator="cpu", callbacks=[ahead], logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert [one.step for one in ahead.history] == [0, 2, 4, 6]

    again, other = make(tmp_path, tiny_model)
    quiet_trainer(tmp_path, Replayed(ahead.history), gradient_clip_val=1.0).fit(again, datamodule=other)
    assert same(trained(module), trained(again)), "the same weights, bit by bit"
    assert {k: n for k, n in data.counts.items() if "on_policy" in k} == {
        k: n for k, n in other.counts.items() if "on_policy" in k
    }
    rounds = json.loads((tmp_path / "ahead" / "summary.json").read_text())["rounds"]
    assert len(rounds) == other.counts["on_policy/rounds"], "rounds of a look ahead are not rounds of the run"


def test_the_score_is_that_of_one_trained_policy_against_the_other(tmp_path: Path, tiny_model: Path) -> None:
    module, data = make(tmp_path, tiny_model)
    ahead = LookAheadBoundary(look_ahead_steps=4, every_n_steps=9, num_candidates=2, samples_to_keep=99)
    quiet_trainer(tmp_path, ahead, max_steps=1).fit(module, datamodule=data)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    sides = [[[c["text"] for c in row[side]] for row in rows] for side in ("on_policy", "off_policy")]
    assert sides[0] != sides[1] and all(len(texts) == 2 for side in sides for texts in side)
    wins = [
        sum((a > b) + (a == b) / 2 for a in mean_letter("", on, {}) for b in mean_letter("", off, {})) / 4
        for on, off in zip(*sides, strict=True)
    ]
    assert ahead.history[0].score == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    assert data.held_out_prompts.queued == [], "they are not answers of the policy that goes on"


def test_after_an_error_the_policy_is_what_it_was(tmp_path: Path, tiny_model: Path) -> None:
    calls = []

    def failing(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
        calls.append(prompt)
        if len(calls) > 60:
            raise OSError("the judge has gone")
        return mean_letter(prompt, candidates, row)

    module, data = make(tmp_path, tiny_model, failing)
    before: dict[str, torch.Tensor] = {}

    class Kept(LookAheadBoundary):
        def measure(self, trainer: Any, pl_module: Any) -> MeasurementOutcome:
            before.update(trained(pl_module))
            calls[:] = [""] * 60  # it fails while the first round is judged
            return super().measure(trainer, pl_module)

    with pytest.raises(OSError, match="the judge has gone"):
        quiet_trainer(tmp_path, Kept(look_ahead_steps=2, every_n_steps=9)).fit(module, datamodule=data)
    assert before and same(before, trained(module)) and data.on_policy_share == 0.0
    assert all(p.requires_grad == (name in before) for name, p in module.named_parameters())


def test_measure_looks_ahead_where_the_run_is_configured_so(tmp_path: Path, tiny_model: Path) -> None:
    module, data = make(tmp_path, tiny_model)
    trainer = AlignmentTrainer(
        default_root_dir=str(tmp_path), accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[LookAheadBoundary(look_ahead_steps=2)],
    )  # fmt: skip
    found = trainer.measure(module, data, output=str(tmp_path / "measured.json"))
    assert 0 <= found["score"] <= 1 and json.loads((tmp_path / "measured.json").read_text()) == found
    fresh, _ = make(tmp_path, tiny_model)
    fresh.configure_model()
    assert all(not value.any() for name, value in trained(module).items() if "lora_B" in name), "nothing is trained"


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "scaled"])
def test_what_it_cannot_do_is_said(strategy: str) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    kinds = {"FSDPStrategy": type("FSDPStrategy", (), {})(), "scaled": SingleDeviceStrategy("cpu")}
    trainer: Any = SimpleNamespace(strategy=kinds[strategy], precision_plugin=SimpleNamespace(scaler=object()))
    with (
        pytest.raises(ValueError, match="FSDPStrategy" if strategy != "scaled" else "bf16-mixed"),
        looking_ahead(trainer, torch.nn.Linear(1, 1)),  # type: ignore[arg-type]
    ):
        pass
    with pytest.raises(ValueError, match="at least 1"):
        LookAheadBoundary(look_ahead_steps=0)


def _looked_ahead_on_a_rank(folder: Path, model: Path) -> dict[str, Any]:
    own = folder / os.environ["RANK"]
    own.mkdir()
    module, data = make(own, model)
    ahead = Seen(look_ahead_steps=2, every_n_steps=2)
    quiet_trainer(own, ahead, max_steps=3, **DDP).fit(module, datamodule=data)
    scores = [decision.score for decision in ahead.history]
    weights = [
        [tensor.detach().numpy() for tensor in tensors] for tensors in (*ahead.seen[0], trained(module).values())
    ]
    return {"weights": weights, "scores": scores}


def test_under_ddp_all_ranks_look_ahead_alike(tmp_path: Path, tiny_model: Path) -> None:
    first, second = on_two_ranks(tmp_path, _looked_ahead_on_a_rank, tmp_path, tiny_model)
    assert first["scores"] == second["scores"] and len(first["scores"]) == 2
    for own, others in zip(first["weights"], second["weights"], strict=True):
        assert own and all(np.array_equal(a, b) for a, b in zip(own, others, strict=True))
