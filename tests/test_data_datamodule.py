from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import AlignmentDataModule
from lit_align.records import CandidateSet
from tests.helpers.data_fakes import (
    FakeSampler,
    LastDigit,
    Recorder,
    assert_same,
    data_module,
    pair_rows,
    stream,
    texts,
    through_a_file,
    trainer,
    write,
)
from tests.helpers.tiny import tiny_tokenizer


@pytest.fixture
def train(tmp_path: Path) -> str:
    return write(tmp_path / "train.jsonl", pair_rows(11))


def test_an_epoch_shows_each_pair_once_in_another_order_each_time(train: str) -> None:
    data = data_module(train, batch_size=1)
    first, second = stream(data, 11), stream(data, 11)
    assert sorted(first) == sorted(second) and len(set(first)) == 11 and first != second
    assert first[0][1].startswith("good") and first[0][2].startswith("bad")
    assert stream(data_module(train, batch_size=1), 11) == first
    assert stream(data_module(train, batch_size=1, seed=4), 11) != first


def test_the_feed_is_sized_in_whole_optimizer_steps(train: str) -> None:
    data = data_module(train, batch_size=2)
    feed = data.train_dataloader()
    assert len(feed) == 6 and iter(feed) is feed
    data.trainer = trainer(accumulation=4)
    assert len(feed) == 8
    data.trainer = trainer(world=2)
    assert len(feed) == 3
    data.trainer = None
    assert len(feed) == 6 and data.delivered == 0


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_two_ranks_share_the_order_of_one_process(train: str, share: float) -> None:
    alone = data_module(train, batch_size=4, on_policy_share=share)
    ranks = [data_module(train, rank, 2, batch_size=4, on_policy_share=share) for rank in (0, 1)]
    single = stream(alone, 6)
    both = [stream(data, 3) for data in ranks]
    assert [pair for two in zip(*both, strict=True) for pair in two] == single
    assert len({pair[3] for pair in single}) == (2 if share == 0.4 else 1)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_another_number_of_processes_goes_on_with_the_same_pairs(
    train: str, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """In steps of eight pairs: on two ranks, then on four, then on one, as on one all through."""
    whole = stream(data_module(train, batch_size=8, on_policy_share=share), 6)
    found: list[Any] = []
    state: dict[str, Any] | None = None
    for world in (2, 4, 1):
        ranks = [data_module(train, rank, world, batch_size=8 // world, on_policy_share=share) for rank in range(world)]
        for data in ranks if state is not None else ():
            data.load_state_dict(through_a_file(state or {}))
        steps = zip(*(stream(data, 2) for data in ranks), strict=True)
        found += [pair for pairs in steps for pair in pairs]
        state = ranks[0].state_dict()
    assert found == whole
    said = "by 4 processes x 2 pairs, and the run goes on with 1 process x 8 pairs: its steps hold the same pairs"
    assert said in capsys.readouterr().out


def test_the_mixture_follows_the_share(train: str) -> None:
    data = data_module(train, batch_size=8, on_policy_share=0.25)
    drawn = [pair[3] for pair in stream(data, 100)]
    assert 0.2 < sum(drawn) / len(drawn) < 0.3


def test_a_swap_acts_on_the_very_next_micro_batch(train: str) -> None:
    data = data_module(train)
    feed = data.train_dataloader()
    for share in (0.0, 1.0, 0.0, 1.0, 1.0, 0.0):
        data.set_on_policy_share(share)
        assert next(feed).on_policy.tolist() == [share == 1.0] * 2
    assert data.delivered == 6


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_resume_at_any_point_yields_identical_batches(train: str, share: float) -> None:
    whole = data_module(train, on_policy_share=share)
    states, batches = [], []
    for _ in range(14):
        states.append(through_a_file(whole.state_dict()))
        batches.append(next(whole.train_dataloader()))
    for start, state in enumerate(states):
        resumed = data_module(train)
        assert not resumed.restored
        resumed.load_state_dict(state)
        assert resumed.restored and resumed.delivered == start and resumed.on_policy_share == share
        for expected in batches[start:]:
            assert_same(next(resumed.train_dataloader()), expected)
        assert resumed.counts == whole.counts
    assert (whole.counts["on_policy/rounds"] > 1) == (share > 0)


def test_state_may_come_before_setup_and_keeps_a_requested_round(train: str) -> None:
    data = data_module(train, on_policy_share=1.0)
    next(data.train_dataloader())
    data.request_round()
    state = through_a_file(data.state_dict())
    early = AlignmentDataModule(train, batch_size=2, sampler=FakeSampler(), judge=LastDigit(), round_prompts=4, seed=3)
    early.load_state_dict(state)
    early.trainer = trainer()
    early.setup("fit")
    assert early.restored
    assert_same(next(early.train_dataloader()), next(data.train_dataloader()))
    assert early.round_stats["index"] == 1


def test_other_data_is_refused_and_other_settings_warned_of(train: str, tmp_path: Path) -> None:
    state = data_module(train).state_dict()
    for rows in (pair_rows(10), [*pair_rows(10), {"prompt": "q10", "chosen": "good 1O", "rejected": "bad 10"}]):
        other = data_module(write(tmp_path / "other.jsonl", rows))
        with pytest.raises(ValueError, match=rf"other data: expected 11 pairs \(hash .*got {len(rows)} pairs"):
            other.load_state_dict(state)
    with pytest.warns(UserWarning, match="made with seed 3, now 4"):
        data_module(train, seed=4).load_state_dict(state)


def test_a_round_is_sampled_judged_and_paired(train: str) -> None:
    sampler = FakeSampler()
    data = data_module(train, on_policy_share=1.0, sampler=sampler, batch_size=1)
    batch = next(data.train_dataloader())
    _, chosen, rejected, on_policy = texts(batch)[0]
    last = [text.removesuffix("<|im_end|>")[-1] for text in (chosen, rejected)]
    assert on_policy and chosen.endswith("<|im_end|>") and batch.margin.item() == ord(last[0]) - ord(last[1]) > 0
    stats = data.round_stats
    assert sampler.calls == [4] and stats["prompts"] == 4 and stats["candidates"] == 12 and stats["step"] == 5
    assert stats["pairs"] + stats["ties"] == 4 and stats["yield"] == stats["pairs"] / 12
    assert 48 <= stats["mean_score"] <= 57 and stats["sample_seconds"] >= 0 and stats["judge_seconds"] >= 0
    assert data.counts["on_policy/rounds"] == 1 and data.counts["on_policy/pairs"] == stats["pairs"]
    stream(data, int(stats["pairs"]) - 1)
    assert sampler.calls == [4]  # used up to the last pair
    next(data.train_dataloader())
    assert sampler.calls == [4, 4]


def test_rounds_go_through_all_prompts(train: str) -> None:
    data = data_module(train, on_policy_share=1.0, batch_size=1, round_prompts=11, seed=0)
    data.stream.on.ensure(1)
    pairs = data.stream.on.pending
    assert len({pair.prompt.tobytes() for pair in pairs}) == len(pairs) == data.round_stats["pairs"] <= 11


def test_a_requested_round_replaces_the_current_one(train: str) -> None:
    data = data_module(train, on_policy_share=1.0, batch_size=1)
    next(data.train_dataloader())
    left = {pair.chosen.tobytes() for pair in data.stream.on.pending}
    data.request_round()
    next(data.train_dataloader())
    assert data.counts["on_policy/rounds"] == 2 and not left & {
        pair.chosen.tobytes() for pair in data.stream.on.pending
    }


def test_abstentions_and_duplicates_of_a_round_are_counted(train: str) -> None:
    data = data_module(train, on_policy_share=1.0, judge=LastDigit(abstain="4"), sampler=FakeSampler(40), batch_size=1)
    next(data.train_dataloader())
    stats = data.round_stats
    assert 0 < stats["abstentions"] < 50 and stats["mean_score"] == stats["mean_score"]


def test_three_rounds_without_a_pair_are_an_error(train: str) -> None:
    sampler = FakeSampler(constant=True)
    data = data_module(train, on_policy_share=1.0, sampler=sampler)
    with pytest.raises(RuntimeError, match="3 on-policy rounds of 4 prompts each gave no pair"):
        next(data.train_dataloader())
    assert sampler.calls == [4, 4, 4] and data.round_stats["duplicates"] == 8


def test_on_policy_needs_a_sampler_and_a_judge(train: str) -> None:
    with pytest.raises(
        ValueError, match="on-policy pairs need a sampler and a judge: set `data.sampler` and `data.judge`"
    ):
        AlignmentDataModule(train, on_policy_share=0.5)
    data = data_module(train, judge=None)
    with pytest.raises(ValueError, match="need a judge: set `data.judge`"):
        data.set_on_policy_share(1.0)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        data.set_on_policy_share(1.5)


def test_sample_keeps_sets_and_takes_its_seed_from_the_purpose(train: str) -> None:
    data = data_module(train, val_fraction=0.3, boundary_fraction=0.0)
    drawn = data.sample(data.held_out, "boundary", 7, num_candidates=2)
    assert [s.prompt for s in drawn] == [s.prompt for s in data.held_out] and len(drawn[0].candidates) == 2
    assert data.sample(data.held_out, "boundary", 7, num_candidates=2) == drawn
    assert data.sample(data.held_out, "boundary", 8, num_candidates=2) != drawn
    assert data.sample([], "boundary") == []
    turned = data.sample(data.held_out[::-1], "boundary", 7, num_candidates=2)[::-1]
    assert turned == drawn, "a prompt draws the same candidates wherever it stands"
    assert len({one.candidates for one in drawn}) == len(drawn)


def test_where_epochs_of_prompts_meet_no_prompt_comes_twice_in_a_round(train: str) -> None:
    data = data_module(train, on_policy_share=1.0, batch_size=1, round_prompts=7)
    rounds = []
    for _ in range(6):
        data.request_round()
        next(data.train_dataloader())
        rounds.append(data.round_stats["prompts"])
    assert rounds == [7] * 6 and data.stream.on.prompt_cursor > 42


def test_held_out_prompts_never_train(train: str, tmp_path: Path) -> None:
    data = data_module(train, val_fraction=0.3, boundary_fraction=0.0)
    assert len(data.held_out) == 3 and len(data.val_pairs) == 3 and len(data.train_sets) == 8
    assert not {s.prompt for s in data.held_out} & {s.prompt for s in data.train_sets}
    assert [c.text.split()[0] for c in data.held_out[0].candidates] == ["good", "bad"]
    given = data_module(train, val=write(tmp_path / "val.jsonl", [*pair_rows(2), *pair_rows(2)]), boundary_fraction=0.0)
    assert given.counts["prompt_held_out"] == 2 and len(given.train_pairs) == 9 and given.counts["val/pairs"] == 4
    assert len(given.held_out) == 2
    batches = list(given.val_dataloader()[0])
    assert [pair[0] for batch in batches for pair in texts(batch)] == [f"{P}q{i}{G}" for i in (0, 1, 0, 1)]


P, G = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def test_val_loaders_of_two_ranks_hold_all_pairs(train: str, tmp_path: Path) -> None:
    val = write(tmp_path / "val.jsonl", [{**row, "prompt": f"v{i}"} for i, row in enumerate(pair_rows(5))])
    seen = [
        [
            pair[0]
            for batch in data_module(train, rank, 2, val=val, boundary_fraction=0.0).val_dataloader()[0]
            for pair in texts(batch)
        ]
        for rank in (0, 1)
    ]
    assert len(seen[0]) == len(seen[1]) == 3 and set(seen[0] + seen[1]) == {f"{P}v{i}{G}" for i in range(5)}


def test_without_held_out_data_there_is_no_loader(train: str) -> None:
    data = data_module(train)
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="test and predict need held-out pairs"):
        data.test_dataloader()


SETS = [
    {"prompt": "a", "candidates": [{"text": "x1", "score": 9}, {"text": "x2", "score": 8}, {"text": "x2", "score": 1}]},
    {"prompt": "b", "candidates": [{"text": "y1", "score": 1}, {"text": "y2", "score": 1}]},
]


def test_scored_sets_become_pairs_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    data = data_module(write(tmp_path / "s.jsonl", SETS), batch_size=1)
    assert data.counts["ties"] == 1 and data.counts["duplicates"] == 1 and data.counts["pairs"] == 1
    assert stream(data, 1)[0][1:3] == ("x1<|im_end|>", "x2<|im_end|>")
    assert len(data.train_sets) == 2 and data.counts["prompts"] == 2


def test_relabel_asks_the_judge_for_sets_and_pairs(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        SETS[0],
        {"prompt": "c", "chosen": "z3", "rejected": "z7"},
        {"prompt": "d", "chosen": "w3", "rejected": "v3"},
    ]
    data = data_module(write(tmp_path / "s.jsonl", rows), relabel=True, batch_size=2)
    found = {pair[1:3] for pair in stream(data, 1)}
    assert found == {("x2<|im_end|>", "x1<|im_end|>"), ("z7<|im_end|>", "z3<|im_end|>")}
    assert data.counts["ties"] == 1
    assert [c.score for c in data.train_sets[1].candidates] == [ord("3"), ord("7")]


def test_sets_without_scores_are_judged_or_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [{"prompt": "a", "candidates": ["x1", "x2"]}])
    assert stream(data_module(path, batch_size=1), 1)[0][1] == "x2<|im_end|>"
    with pytest.raises(ValueError, match=r"s\.jsonl, row 1: a candidate set without scores needs a judge"):
        data_module(path, judge=None)
    with pytest.raises(ValueError, match="relabel: true needs a judge"):
        data_module(path, judge=None, relabel=True)


def test_a_judge_with_the_wrong_number_of_scores_is_refused(tmp_path: Path) -> None:
    class Short(LastDigit):
        def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
            return [scores[:-1] for scores in super().score(sets)]

    path = write(tmp_path / "s.jsonl", [{"prompt": "a", "candidates": ["x1", "x2"]}])
    with pytest.raises(ValueError, match=r"expected last digit to score \[2\] candidates of 1 sets, got \[1\]"):
        data_module(path, judge=Short())


def test_long_prompts_leave_the_sets_too(tmp_path: Path) -> None:
    rows = [*pair_rows(3), {"prompt": "long " * 40, "chosen": "a", "rejected": "b"}]
    path = write(tmp_path / "l.jsonl", rows)
    tied = write(tmp_path / "t.jsonl", [{**SETS[1], "prompt": "other " * 40}])
    dropped = data_module([path, tied], max_prompt_tokens=40)
    assert dropped.counts["prompt_too_long"] == 2 and len(dropped.train_sets) == len(dropped.train_pairs) == 3
    cut = data_module(path, max_prompt_tokens=40, too_long="cut_prompt")
    assert cut.counts["prompt_cut"] == 1 and len(cut.train_sets) == len(cut.train_pairs) == 4
    with pytest.raises(ValueError, match=r"expected training pairs in .*completion_too_long: 3"):
        data_module(write(tmp_path / "c.jsonl", pair_rows(3)), max_completion_tokens=2, sampler=None)


def test_bad_rows_of_the_template_name_their_place(tmp_path: Path) -> None:
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = write(tmp_path / "t.jsonl", [*pair_rows(2), {"prompt": system, "chosen": "a", "rejected": "b"}])
    refusing = tiny_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"t\.jsonl, row 3: .*no system"):
        AlignmentDataModule(path).prepare(refusing)
    data = AlignmentDataModule(path, on_bad_row="skip")
    with pytest.warns(UserWarning, match="template_refused: 1"):
        data.prepare(refusing)
    assert len(data.train_pairs) == len(data.train_sets) == 2


def test_setup_without_a_trainer_says_what_to_do(train: str) -> None:
    with pytest.raises(RuntimeError, match=r"call prepare\(tokenizer\)"):
        AlignmentDataModule(train).setup("fit")


class Swaps(pl.Callback):
    """Sets shares after given micro-batches; like the boundary's callback it comes before the checkpoint's."""

    def __init__(self, shares: dict[int, float]) -> None:
        self.shares = shares

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.datamodule.delivered in self.shares:
            trainer.datamodule.set_on_policy_share(self.shares[trainer.datamodule.delivered])


def fit(
    train: str, root: Path, steps: int, accumulation: int, swaps: dict[int, float], ckpt: Path | None = None
) -> tuple[Recorder, AlignmentDataModule]:
    module = Recorder()
    data = AlignmentDataModule(
        train, batch_size=2, sampler=FakeSampler(), judge=LastDigit(), round_prompts=4, seed=3, val_fraction=0.2
    )
    keep_all = ModelCheckpoint(dirpath=root, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    runner = pl.Trainer(
        default_root_dir=root,
        max_steps=steps,
        max_epochs=1000,
        accumulate_grad_batches=accumulation,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Swaps(swaps), keep_all],
    )
    runner.fit(module, data, ckpt_path=ckpt)
    return module, data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("accumulation", "stop"), [(1, 3), (1, 5), (2, 1), (2, 4)])
def test_a_real_fit_swaps_in_mid_epoch_and_resumes_exactly(
    train: str, tmp_path: Path, accumulation: int, stop: int
) -> None:
    swaps = {3: 1.0, 7: 0.3, 12: 0.0}
    whole, _ = fit(train, tmp_path / "whole", 8, accumulation, swaps)
    sources = [(delivered, batch.on_policy.tolist()) for delivered, batch in whole.seen]
    assert [delivered for delivered, _ in sources] == list(range(1, 8 * accumulation + 1))  # nothing is prefetched
    assert all(on == [3 < delivered <= 7] * 2 for delivered, on in sources if delivered <= 7 or delivered > 12)
    fit(train, tmp_path / "cut", stop, accumulation, swaps)
    resumed, data = fit(train, tmp_path / "rest", 8, accumulation, swaps, tmp_path / "cut" / f"step={stop}.ckpt")
    assert data.restored and whole.validated > 0
    rest = whole.seen[stop * accumulation :]
    assert [d for d, _ in resumed.seen] == [d for d, _ in rest]
    for (_, got), (_, expected) in zip(resumed.seen, rest, strict=True):
        assert_same(got, expected)


def one_of_two(rank: int, folder: Path, train: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    sampler = FakeSampler()
    data = data_module(train, rank, 2, on_policy_share=1.0, sampler=sampler, relabel=True)
    batches = [next(data.train_dataloader()) for _ in range(2)]
    taken = [pair for batch in batches for pair in texts(batch)]
    pending = [pair.chosen.tolist() for pair in data.stream.on.pending]
    state = {"taken": taken, "pending": pending, "calls": sampler.calls, "stats": data.round_stats}
    state["pairs"] = [pair.chosen.tolist() for pair in data.train_pairs]
    (folder / f"{rank}.json").write_text(json.dumps(state))
    torch.distributed.destroy_process_group()


def test_two_processes_share_a_round(train: str, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=one_of_two, args=(rank, tmp_path, train)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert zero["calls"] == one["calls"] and set(zero["calls"]) == {2}  # half of the round's four prompts each
    assert zero["stats"] == one["stats"] and zero["stats"]["prompts"] == 4 and zero["stats"]["candidates"] == 12
    assert zero["pending"] == one["pending"] and zero["pairs"] == one["pairs"]
    assert not {tuple(pair) for pair in zero["taken"]} & {tuple(pair) for pair in one["taken"]}
    alone = data_module(train, relabel=True, on_policy_share=1.0, batch_size=4)
    assert [pair.chosen.tolist() for pair in alone.train_pairs] == zero["pairs"]
    taken = [texts(next(alone.train_dataloader())) for _ in range(2)]
    turns = [[list(pair) for pair in batch] for batch in taken]
    assert turns == [_in_turn(zero["taken"][at : at + 2], one["taken"][at : at + 2]) for at in (0, 2)], "as one process"


def _in_turn(zero: list[list[str]], one: list[list[str]]) -> list[list[str]]:
    return [pair for both in zip(zero, one, strict=True) for pair in both]
