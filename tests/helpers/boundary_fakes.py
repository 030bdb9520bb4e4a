"""A data module and a module with just enough in them to run the boundary callback in a real fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn

from lit_align.boundary import BoundaryResult, Decision
from lit_align.judges import Judge, RuleJudge
from lit_align.records import Candidate, CandidateSet, Message, Prompt, prompt_text
from lit_align.seeding import derive_seed


def by_number(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    """The truth of these tests: a candidate's text is a number, and the higher one is better."""
    return [float(candidate) for candidate in candidates]


def number_sets(prompts: int, numbers: Sequence[float] = (1.0, 2.0, 3.0, 4.0)) -> list[CandidateSet]:
    candidates = tuple(Candidate(str(number)) for number in numbers)
    return [CandidateSet((Message("user", f"prompt {n}"),), candidates, where=f"row {n}") for n in range(prompts)]


class FakeFeed:
    def __init__(self, data: FakeData) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1000

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        self.data.shares_seen.append(self.data.share)
        return torch.tensor([self.data.share])


class FakeData(LightningDataModule):
    """The policy answers two numbers a prompt; `quality[step]` shifts them, so the score is ours to set."""

    def __init__(self, quality: Sequence[float] | None = None, prompts: int = 40) -> None:
        super().__init__()
        self.quality = quality
        self.judge: Judge | None = RuleJudge(by_number)
        self.seed = 7
        self.measured_on = number_sets(prompts)
        self.train_pairs: list[str] = ["a static pair"]
        self.offered: list[tuple[int, int, list[CandidateSet]]] = []
        self.groups: dict[str, str] = {}
        self.labels: dict[Prompt, list[tuple[str, str]]] = {}
        self.val: str | None = "held out"
        self.restored = False
        self.share = -1.0
        self.shares_seen: list[float] = []
        self.rounds: list[int] = []
        self.sampled: list[tuple[int, list[str]]] = []
        self.purposes: list[tuple[str | int, ...]] = []

    def sample(
        self, sets: Sequence[CandidateSet], *purpose: str | int, num_candidates: int | None = None, desc: str = ""
    ) -> list[CandidateSet]:
        step = self.trainer.global_step
        assert not self.trainer.lightning_module.dropout.training, "sampled in eval mode"
        self.sampled.append((step, [one.prompt[0].content for one in sets]))
        self.purposes.append(purpose)
        quality = 0.5 if self.quality is None else self.quality[step]
        torch.rand(3)  # a draw that the callback must not let through
        fresh = []
        for one in sets:
            draws = [derive_seed(0, one.prompt[0].content, *purpose, k) / 2**63 for k in range(num_candidates or 2)]
            numbers = [5 * (quality + 0.5 * (draw - 0.5)) for draw in draws]
            fresh.append(replace(one, candidates=tuple(Candidate(str(number)) for number in numbers)))
        return fresh

    def group_of(self, prompt: Prompt) -> str:
        return self.groups.get(prompt_text(prompt), prompt_text(prompt))

    @property
    def held_out_prompts(self) -> FakeData:
        return self

    @property
    def unlike(self) -> int:
        return len({self.group_of(candidates.prompt) for candidates in self.measured_on})

    def set_on_policy_share(self, share: float) -> None:
        self.share = share

    def request_round(self) -> None:
        self.rounds.append(self.trainer.global_step)

    def queue_round(self, sets: Sequence[CandidateSet]) -> None:
        self.offered.append((self.trainer.global_step, len(self.rounds), list(sets)))

    def train_dataloader(self) -> FakeFeed:
        return FakeFeed(self)

    def state_dict(self) -> dict[str, Any]:
        return {"share": self.share}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.share = state_dict["share"]
        self.restored = True


class FakeModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout()
        self.frozen = nn.Dropout().eval()
        self.draws: list[float] = []
        self.refreshed: list[int] = []
        self.reference = SimpleNamespace(can_refresh=True)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        assert self.dropout.training and not self.frozen.training, "modes are as before a measurement"
        self.draws.append(float(torch.rand(())))
        return (self.weight - batch).square().sum()

    def on_train_start(self) -> None:
        self.frozen.eval()

    def refresh_reference(self) -> None:
        self.refreshed.append(self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet_trainer(folder: Path, *callbacks: Callback, **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 6,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(callbacks=list(callbacks), **{**settings, **arguments})


def decision(
    step: int, score: float | None, stage: str, reason: str = "because", spread: float = 0.05, prompts: int = 64
) -> Decision:
    share = float(stage == "fine_tuning")
    if score is None:
        return Decision(step, stage, share, reason)
    result = BoundaryResult(
        score, score - spread, score + spread, prompts, votes_on=3, votes_off=3, ties=0, seconds=12.0
    )
    return Decision(step, stage, share, reason, result)
