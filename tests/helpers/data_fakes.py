"""A data module with a sampler that writes digits, a judge that reads them, and no model at all."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lit_align.batch import PairBatch
from lit_align.data import AlignmentDataModule
from lit_align.judges import PointwiseJudge
from lit_align.records import Candidate, CandidateSet
from lit_align.sampling import Sampler, SamplingRequest
from lit_align.seeding import derive_seed
from tests.helpers.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


class FakeSampler(Sampler):
    """Writes digits that depend on the prompt's seed; counts its calls."""

    def __init__(self, num_candidates: int = 3, constant: bool = False) -> None:
        super().__init__(num_candidates)
        self.constant = constant
        self.calls: list[int] = []

    def sample(self, request: SamplingRequest) -> list[tuple[Candidate, ...]]:
        self.calls.append(len(request.prompt_ids))
        answers, ids_of = [], request.tokenizer
        for seed in request.seeds:
            texts = [str(derive_seed(seed, k) % 10**6) for k in range(request.num_candidates or self.num_candidates)]
            if self.constant:
                texts = ["same"] * len(texts)
            answers.append(tuple(Candidate(text, token_ids=(*ids_of(text)["input_ids"], 2)) for text in texts))
            request.report(len(texts))
        return answers


class LastDigit(PointwiseJudge):
    """Scores by the last character's code; abstains where `abstain` ends the text."""

    identity = "last digit"

    def __init__(self, abstain: str = "?") -> None:
        self.abstain = abstain

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        return [
            [float("nan") if c.text[-1] == self.abstain else float(ord(c.text[-1])) for c in one.candidates]
            for one in sets
        ]


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair_rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(count)]


def trainer(rank: int = 0, world: int = 1, accumulation: int = 1, **more: Any) -> Any:
    module = SimpleNamespace(policy=nn.Linear(1, 1), tokenizer=TOKENIZER)
    return SimpleNamespace(
        lightning_module=module,
        global_rank=rank,
        world_size=world,
        global_step=5,
        accumulate_grad_batches=accumulation,
        progress_bar_callback=None,
        **more,
    )


def data_module(train: Any, rank: int = 0, world: int = 1, **more: Any) -> AlignmentDataModule:
    more = {"batch_size": 2, "sampler": FakeSampler(), "judge": LastDigit(), "round_prompts": 4, "seed": 3, **more}
    data = AlignmentDataModule(train, **more)
    data.trainer = trainer(rank, world)
    data.setup("fit")
    return data


def texts(batch: PairBatch) -> list[tuple[str, str, str, bool]]:
    def row(padded: Any, index: int) -> str:
        return str(TOKENIZER.decode(padded.ids[index][padded.mask[index]]))

    return [
        (row(batch.prompt, i), row(batch.chosen, i), row(batch.rejected, i), bool(batch.on_policy[i]))
        for i in range(len(batch))
    ]


def stream(data: AlignmentDataModule, count: int) -> list[tuple[str, str, str, bool]]:
    feed = data.train_dataloader()
    return [pair for _ in range(count) for pair in texts(next(feed))]


def assert_same(one: PairBatch, other: PairBatch) -> None:
    for name in ("prompt", "chosen", "rejected"):
        assert torch.equal(getattr(one, name).ids, getattr(other, name).ids)
        assert torch.equal(getattr(one, name).mask, getattr(other, name).mask)
    assert torch.equal(one.on_policy, other.on_policy)
    torch.testing.assert_close(one.margin, other.margin, rtol=0, atol=0, equal_nan=True)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class Recorder(pl.LightningModule):
    """Trains one weight and remembers the pairs it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Linear(1, 1)
        self.tokenizer = TOKENIZER
        self.seen: list[tuple[int, PairBatch]] = []
        self.validated = 0

    def training_step(self, batch: PairBatch, index: int) -> torch.Tensor:
        self.seen.append((self.trainer.datamodule.delivered, batch))  # type: ignore[attr-defined]
        return self.policy(torch.ones(1, 1)).sum()

    def validation_step(self, batch: PairBatch, index: int) -> None:
        self.validated += len(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)
