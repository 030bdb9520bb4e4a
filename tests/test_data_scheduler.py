"""Pairs of one optimizer step sorted by length: the same step, less padding, and a resume at any micro-batch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from lit_align.batch import PairBatch, TokenizedPair, collate, lay_out_padded
from lit_align.data import AlignmentDataModule
from lit_align.data.scheduler import row_length
from lit_align.data.token_budget import cut_evenly, demand_cuttable
from lit_align.losses import DPO, IPO, NLL, SLiCHF
from lit_align.policy import LoraSpec, PolicySpec
from lit_align.training.module import AlignmentModule
from tests.helpers.data_fakes import (
    FakeSampler,
    LastDigit,
    Recorder,
    assert_same,
    data_module,
    stream,
    texts,
    through_a_file,
    trainer,
    write,
)

PER_PAIR = SimpleNamespace(per_pair=True, needs_target=False)


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Pairs whose lengths, a few long ones among many short ones, have nothing to do with their order."""
    rng = random.Random(5)

    def words(word: str) -> str:
        return f"{word} " * min(60, int(rng.lognormvariate(2, 1)))

    return [{"prompt": f"q{n} {words('tea')}", "chosen": f"{words('sea')}{n}", "rejected": "x"} for n in range(count)]


@pytest.fixture
def train(tmp_path: Path) -> str:
    return write(tmp_path / "train.jsonl", mixed_rows(22))


def lengths(batch: PairBatch) -> list[int]:
    return (batch.prompt.lengths + batch.chosen.lengths + batch.rejected.lengths).tolist()


def accumulating(data: AlignmentDataModule, accumulation: int, per_epoch: int = 10**6, loss: Any = PER_PAIR) -> Any:
    """A Trainer that has not begun: `feed` counts its micro-batches as a real one's loop does."""
    ready = SimpleNamespace(ready=0)
    batch_progress = SimpleNamespace(current=ready)
    rank, world = getattr(data.trainer, "global_rank", 0), getattr(data.trainer, "world_size", 1)
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=batch_progress))
    run = trainer(rank, world, accumulation, fit_loop=loops, num_training_batches=per_epoch)
    run.lightning_module.loss = loss
    data.trainer = run
    return ready


def feed(data: AlignmentDataModule, ready: Any, count: int) -> list[PairBatch]:
    batches = []
    for _ in range(count):
        batches.append(data.next_batch())
        ready.ready += 1
    return batches


def by_step(batches: list[PairBatch], sizes: list[int]) -> list[list[PairBatch]]:
    assert sum(sizes) == len(batches)
    found = iter(batches)
    return [[next(found) for _ in range(size)] for size in sizes]


def pairs_of(batches: list[PairBatch]) -> Counter[Any]:
    return Counter(pair for batch in batches for pair in texts(batch))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_holds_the_same_pairs_longest_first(train: str, share: float, rank: int) -> None:
    plain = data_module(train, rank, 2, on_policy_share=share)
    sorting = data_module(train, rank, 2, on_policy_share=share)
    ready = accumulating(sorting, accumulation=4)
    steps, expected = [by_step(some, [4] * 5) for some in (feed(sorting, ready, 20), feed(plain, ready, 20))]
    for step, unsorted in zip(steps, expected, strict=True):
        assert pairs_of(step) == pairs_of(unsorted)
        found = [length for batch in step for length in lengths(batch)]
        assert found == sorted(found, reverse=True) and all(len(batch) == 2 for batch in step)
    assert [lengths(b) for step in steps for b in step] != [lengths(b) for step in expected for b in step]
    assert sorting.delivered == 20 and sorting.counts == plain.counts


@pytest.mark.parametrize("loss", [None, SimpleNamespace(per_pair=False)])
def test_nothing_moves_where_the_loss_does_not_say_per_pair(train: str, loss: Any) -> None:
    data = data_module(train, on_policy_share=0.4)
    expected = stream(data_module(train, on_policy_share=0.4), 8)
    ready = accumulating(data, 4, loss=loss)
    assert [pair for batch in feed(data, ready, 8) for pair in texts(batch)] == expected


def test_a_single_micro_batch_keeps_its_order(train: str) -> None:
    data = data_module(train)
    ready = accumulating(data, accumulation=1)
    assert [pair for batch in feed(data, ready, 8) for pair in texts(batch)] == stream(data_module(train), 8)


# -- micro-batches by tokens


def test_pieces_are_as_even_as_whole_pairs_allow() -> None:
    for lengths, pieces in [([9, 5, 4, 1, 1], 3), ([5] * 7, 3), ([8, 1, 1, 1], 4), ([3], 1), ([100, 1, 1, 1, 1, 1], 2)]:
        counts = cut_evenly(lengths, pieces)
        assert len(counts) == pieces and sum(counts) == len(lengths) and min(counts) > 0
        ways = combinations(range(1, len(lengths)), pieces - 1)
        best = min(max(map(sum, cut_at(lengths, way))) for way in ways)
        assert max(map(sum, cut_at(lengths, list(accumulate(counts))[:-1]))) == best


def cut_at(items: list[int], places: Sequence[int]) -> list[list[int]]:
    return [items[start:stop] for start, stop in pairwise([0, *places, len(items)])]


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_by_tokens_a_step_holds_the_same_pairs(train: str, share: float) -> None:
    plain, cut = (data_module(train, on_policy_share=share, batch_tokens=tokens) for tokens in (None, 100_000))
    expected, found = (by_step(feed(data, accumulating(data, 4), 12), [4] * 3) for data in (plain, cut))
    for step, by_pairs in zip(found, expected, strict=True):
        assert pairs_of(step) == pairs_of(by_pairs)
        assert sum(batch.weight for batch in step) == pytest.approx(4) and all(batch.weight == 1 for batch in by_pairs)
        assert max(sum(lengths(batch)) for batch in step) <= max(sum(lengths(batch)) for batch in by_pairs)
    assert len({len(batch) for step in found for batch in step}) > 1


@pytest.mark.parametrize("given", [1, 2, 3])
def test_by_tokens_a_step_is_taken_up_in_its_middle(train: str, given: int) -> None:
    data = data_module(train, batch_tokens=100_000)
    ready = accumulating(data, 4)
    feed(data, ready, 4 + given)
    state = through_a_file(data.state_dict())
    resumed = data_module(train, batch_tokens=100_000)
    resumed.load_state_dict(state)
    again = accumulating(resumed, 4)
    again.ready = ready.ready
    wanted = [texts(batch) for batch in feed(data, ready, 8)]
    assert [texts(batch) for batch in feed(resumed, again, 8)] == wanted


def test_more_tokens_than_the_budget_are_said_once(train: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_module(train, batch_tokens=1)
    feed(data, accumulating(data, 4), 8)
    assert capsys.readouterr().out.count("more than the 1 of data.batch_tokens") == 1


def test_by_tokens_the_losses_of_a_step_are_those_of_its_pairs(tiny_model: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "mixed.jsonl", mixed_rows(16))
    logged = []
    for tokens in (None, 100_000):
        module = AlignmentModule(PolicySpec(str(tiny_model)), DPO())
        data = AlignmentDataModule(train, batch_size=2, batch_tokens=tokens, reference_cache=None)
        gradients = Gradients()
        fit = pl.Trainer(
            max_steps=2, accumulate_grad_batches=4, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[gradients],
        )  # fmt: skip
        fit.fit(module, data)
        logged.append((float(fit.logged_metrics["loss"]), gradients.norms))
    assert logged[1][0] == pytest.approx(logged[0][0], rel=1e-5)
    assert logged[1][1] == pytest.approx(logged[0][1], rel=1e-4)


class Gradients(pl.Callback):
    """Keeps the norm of the gradients of each optimizer step."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


@pytest.mark.parametrize(
    ("accumulation", "loss", "why"), [(1, DPO(), "a step has only one"), (4, NLL(normalize="batch"), "per_pair")]
)
def test_by_tokens_is_refused_where_it_would_change_the_loss(accumulation: int, loss: Any, why: str) -> None:
    run: Any = SimpleNamespace(accumulation=accumulation, takes_pairs_by_themselves=loss.per_pair)
    with pytest.raises(ValueError, match=why):
        demand_cuttable(8192, run)
    demand_cuttable(None, run)


def test_a_row_is_the_prompt_once_and_all_completions() -> None:
    ids = [np.arange(1, n + 1, dtype=np.int32) for n in (5, 3, 2, 4)]
    pair = TokenizedPair(ids[0], ids[1], ids[2], 0.0, False, target=ids[3])
    assert row_length(pair, with_target=False) == 10 and row_length(pair, with_target=True) == 14
    batch = collate([pair], pad_id=0)
    assert batch.target is not None
    assert lay_out_padded(batch.prompt, [batch.chosen, batch.rejected]).positions.shape == (1, 10)
    assert batch.rows is not None and batch.rows.positions.shape == (1, 14)


def test_targets_count_where_the_loss_has_them(tmp_path: Path) -> None:
    rows = [{**row, "target": "sea " * (5 * n + 1)} for n, row in enumerate(mixed_rows(8))]
    data = data_module(write(tmp_path / "t.jsonl", rows), batch_size=1)
    ready = accumulating(data, 8, loss=SLiCHF(target="row"))
    batches = feed(data, ready, 8)
    found = [length + int(batch.target.lengths) for batch in batches for length in lengths(batch)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_resume_at_any_micro_batch(train: str, share: float) -> None:
    """Every rank goes on from the state of rank 0, which alone is in a checkpoint."""
    whole = [data_module(train, rank, 2, on_policy_share=share) for rank in (0, 1)]
    counters = [accumulating(data, accumulation=3) for data in whole]
    states, batches = [], []
    for index in range(10):
        states.append(through_a_file(whole[0].state_dict()))
        assert through_a_file(whole[0].state_dict()).keys() == whole[1].state_dict().keys()
        if index == 4:  # amid a step: it acts on the next one
            for data in whole:
                data.set_on_policy_share(1.0 - share)
        batches.append([feed(data, ready, 1)[0] for data, ready in zip(whole, counters, strict=True)])
    for start, state in enumerate(states):
        for rank in (0, 1):
            resumed = data_module(train, rank, 2)
            ready = accumulating(resumed, accumulation=3)
            ready.ready = start
            resumed.load_state_dict(through_a_file(state))
            assert resumed.delivered == start
            torch.testing.assert_close(resumed.state_dict()["dealt"], state["dealt"], rtol=0, atol=0, equal_nan=True)
            for index in range(start, 10):
                if index == 4:
                    resumed.set_on_policy_share(1.0 - share)
                assert_same(feed(resumed, ready, 1)[0], batches[index][rank])


def test_a_round_requested_amid_a_step_comes_with_the_next(train: str) -> None:
    data = data_module(train, on_policy_share=1.0)
    ready = accumulating(data, accumulation=2)
    feed(data, ready, 1)
    data.request_round()
    state = through_a_file(data.state_dict())
    rest = feed(data, ready, 1)
    rounds = data.counts["on_policy/rounds"]
    following = feed(data, ready, 2)
    assert data.counts["on_policy/rounds"] > rounds
    resumed = data_module(train)
    again = accumulating(resumed, accumulation=2)
    again.ready = 1
    resumed.load_state_dict(state)
    for got, expected in zip(feed(resumed, again, 3), [*rest, *following], strict=True):
        assert_same(got, expected)


def test_every_round_of_a_step_is_told(train: str) -> None:
    data = data_module(train, on_policy_share=1.0)
    ready = accumulating(data, accumulation=6)
    feed(data, ready, 1)
    assert [stats["index"] for stats in data.new_rounds] == list(range(data.counts["on_policy/rounds"]))
    assert len(data.new_rounds) > 2 and data.new_rounds[-1] == data.round_stats
    feed(data, ready, 1)
    assert data.new_rounds == []


def test_another_batch_size_begins_the_step_anew_with_what_is_left_of_it(train: str) -> None:
    data = data_module(train, on_policy_share=0.5)
    feed(data, accumulating(data, accumulation=4), 1)
    other = data_module(train, batch_size=3)
    ready = accumulating(other, accumulation=4)
    ready.ready = 1
    with pytest.warns(
        UserWarning,
        match="1 process x 2 pairs x 4 micro-batches, and .* 1 process x 3 pairs x 4 micro-batches: no pair",
    ):
        other.load_state_dict(through_a_file(data.state_dict()))
    for step in by_step(feed(other, ready, 11), [3, 4, 4]):
        found = [length for batch in step for length in lengths(batch)]
        assert len(found) == 3 * len(step) and found == sorted(found, reverse=True)


class Seen(Recorder):
    """Notes the optimizer step of each micro-batch."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss
        self.steps: list[int] = []

    def training_step(self, batch: PairBatch, index: int) -> torch.Tensor:
        self.steps.append(self.global_step)
        return super().training_step(batch, index)


def fit(train: str, root: Path, loss: Any, callbacks: list[Any], ckpt: Path | None = None, **more: Any) -> Seen:
    data = AlignmentDataModule(
        train, batch_size=2, sampler=FakeSampler(), judge=LastDigit(), round_prompts=4, seed=3, on_policy_share=0.3
    )
    module = Seen(loss)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_model_summary": False, **more}
    pl.Trainer(
        default_root_dir=root, enable_progress_bar=False, callbacks=callbacks or None,
        enable_checkpointing=bool(callbacks), **settings,
    ).fit(module, data, ckpt_path=ckpt)  # fmt: skip
    return module


@pytest.mark.filterwarnings("ignore")
def test_a_changing_accumulation_and_an_epochs_end_are_respected(train: str, tmp_path: Path) -> None:
    """11 micro-batches an epoch, limited to 7: steps of 3, 3, 1, then of 2, 2, 2, 1, then of 4, 3."""

    def run(name: str, loss: Any) -> Seen:
        changes = GradientAccumulationScheduler({0: 3, 1: 2, 2: 4})
        return fit(train, tmp_path / name, loss, [changes], max_epochs=3, limit_train_batches=7)

    sorting, plain = run("sorted", PER_PAIR), run("plain", SimpleNamespace(per_pair=False))
    sizes = [3, 3, 1, 2, 2, 2, 1, 4, 3]
    assert list(Counter(sorting.steps).values()) == list(Counter(plain.steps).values()) == sizes
    both = [by_step([batch for _, batch in module.seen], sizes) for module in (sorting, plain)]
    moved = 0
    for step, unsorted in zip(*both, strict=True):
        found = [length for batch in step for length in lengths(batch)]
        assert pairs_of(step) == pairs_of(unsorted)
        assert len(step) == 1 or found == sorted(found, reverse=True)
        moved += [texts(batch) for batch in step] != [texts(batch) for batch in unsorted]
    assert moved >= 6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [1, 4])
def test_a_sorted_fit_resumes_exactly(train: str, tmp_path: Path, stop: int) -> None:
    def run(name: str, steps: int, ckpt: Path | None = None) -> Seen:
        keep = ModelCheckpoint(dirpath=tmp_path / name, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        return fit(train, tmp_path, PER_PAIR, [keep], ckpt, max_steps=steps, max_epochs=99, accumulate_grad_batches=3)

    whole = run("whole", 6)
    run("cut", stop)
    resumed = run("rest", 6, tmp_path / "cut" / f"step={stop}.ckpt")
    assert resumed.steps == whole.steps[3 * stop :]
    for (_, got), (_, expected) in zip(resumed.seen, whole.seen[3 * stop :], strict=True):
        assert_same(got, expected)


@pytest.mark.parametrize("loss", [DPO(beta=0.5), IPO()])
def test_loss_and_gradients_of_a_step_stay(train: str, tiny_model: Path, loss: Any) -> None:
    module = AlignmentModule(PolicySpec(str(tiny_model), lora=LoraSpec(r=2)), loss)
    module.configure_model()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))

    def step(sorting: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        data = data_module(train)
        ready = accumulating(data, accumulation=4, loss=PER_PAIR if sorting else None)
        module.zero_grad()
        losses = [module.loss(module.pair_logps(batch)).losses.mean() / 4 for batch in feed(data, ready, 4)]
        torch.stack(losses).sum().backward()
        gradients = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
        return torch.stack(losses).sum().detach(), gradients

    (loss_sorted, sorted_grads), (loss_plain, plain_grads) = step(True), step(False)
    torch.testing.assert_close(loss_sorted, loss_plain, rtol=1e-6, atol=1e-6)
    assert sorted_grads.keys() == plain_grads.keys() == trained.keys()
    for name, gradient in sorted_grads.items():
        largest = float(plain_grads[name].abs().max())
        assert largest > 0
        torch.testing.assert_close(gradient, plain_grads[name], rtol=1e-5, atol=1e-5 * largest)


def padded(batches: list[PairBatch]) -> float:
    """The share of padding, if each pair were a row."""
    cells = [len(batch) * batch.longest_row for batch in batches]
    return 1 - sum(sum(lengths(batch)) for batch in batches) / sum(cells)


def test_sorting_saves_padding(tmp_path: Path) -> None:
    train = write(tmp_path / "mixed.jsonl", mixed_rows(256))
    shares = []
    for loss in (None, PER_PAIR):
        data = data_module(train, batch_size=4)
        shares.append(padded(feed(data, accumulating(data, 8, loss=loss), 64)))
    plain, sorting = shares
    assert plain > 0.25 and sorting < plain / 3
