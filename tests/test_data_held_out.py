"""Held-out prompts: the boundary's and the evaluation's apart, and a measurement's samples as on-policy pairs."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import AlignmentDataModule
from lit_align.data.held_out import HeldOut, choose_boundary_prompts, prompt_key
from lit_align.records import CandidateSet, Message, Prompt, prompt_text
from lit_align.rows.alike import group_alike
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

PROMPTS = [(Message("user", f"prompt {n}"),) for n in range(400)]


def held_out_rows(count: int) -> list[dict[str, Any]]:
    return [{**row, "prompt": f"held out {n}"} for n, row in enumerate(pair_rows(count))]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return write(tmp_path / "train.jsonl", pair_rows(11)), write(tmp_path / "val.jsonl", held_out_rows(24))


def made(files: tuple[str, str], rank: int = 0, world: int = 1, **more: Any) -> AlignmentDataModule:
    return data_module(files[0], rank, world, **{"val": files[1], "batch_size": 1, **more})


def prompts_of(sets: Any) -> set[str]:
    return {prompt_text(one.prompt) for one in sets}


def measured(data: AlignmentDataModule, num_candidates: int | None = None) -> list[CandidateSet]:
    """What a measurement that asks for fine-tuning does."""
    fresh = data.sample(data.measured_on, "boundary", data.run.step, num_candidates=num_candidates)
    data.set_on_policy_share(1.0)
    data.request_round()
    data.queue_round(fresh)
    return fresh


def apart(prompts: Iterable[Prompt], fraction: float) -> frozenset[Prompt]:
    prompts = list(prompts)
    return choose_boundary_prompts(prompts, group_alike(prompts), fraction)


def test_the_split_hangs_on_the_prompts_alone_and_is_even_at_every_size() -> None:
    half = apart(PROMPTS, 0.5)
    assert len(half) == 200 and apart(reversed(PROMPTS), 0.5) == half
    assert apart(PROMPTS, 0.3) < half < apart(PROMPTS, 0.6)
    assert apart(PROMPTS, 0.0) == frozenset() == apart([], 0.5)
    for size in range(2, 41):
        assert len(apart(PROMPTS[:size], 0.5)) in (size // 2, -(-size // 2))
        assert 0 < len(apart(PROMPTS[:size], 0.01)) <= len(apart(PROMPTS[:size], 0.99)) < size
    # the first digits of three blake2b hashes: another hash would move prompts of old runs into training
    assert [prompt_key(prompt)[0] for prompt in PROMPTS[:3]] == ["1", "f", "d"]


def test_a_prompt_that_is_added_moves_at_most_one() -> None:
    for size in range(2, 60):
        before, after = apart(PROMPTS[:size], 0.5), apart(PROMPTS[: size + 1], 0.5)
        assert len((before ^ after) - {PROMPTS[size]}) <= 1


def test_prompts_that_are_alike_stay_together() -> None:
    prompts = [(Message("user", f"{text} number {n}."),) for n in range(20) for text in ("Tell me of", "tell  me of")]
    for fraction in (0.2, 0.5, 0.7):
        numbers = Counter(prompt[0].content.split()[-1] for prompt in apart(prompts, fraction))
        assert set(numbers.values()) == {2} and len(numbers) == round(20 * fraction)


def test_a_pool_too_small_to_split_serves_both() -> None:
    with pytest.warns(UserWarning, match="1 held-out prompts are too few to keep those of the boundary apart"):
        assert apart(PROMPTS[:1], 0.5) == frozenset()
    twice = [*PROMPTS[:1], (Message("user", "Prompt  0"),)]
    with pytest.warns(UserWarning, match="2 held-out prompts that are all alike are too few"):
        assert apart(twice, 0.5) == frozenset()
    sets = [CandidateSet(prompt, ()) for prompt in PROMPTS[:1]]
    both = HeldOut(sets, frozenset())
    both.queue(sets, 1)
    assert both.measured_on == both.evaluated_on == sets and both.queued == []


def test_evaluation_and_boundary_share_no_prompt(files: tuple[str, str], capsys: Any) -> None:
    data = made(files)
    boundary, evaluation = prompts_of(data.measured_on), prompts_of(data.evaluated_on)
    assert boundary | evaluation == prompts_of(data.held_out) and not boundary & evaluation
    assert len(data.val_pairs) == len(evaluation) == data.counts["val/prompts_evaluated"] == data.counts["val/pairs"]
    assert len(boundary) == data.counts["val/prompts_measured"] and data.counts["val/rows"] == 24
    shown = {pair[0].split("\n")[1].removesuffix("<|im_end|>") for b in data.val_dataloader()[0] for pair in texts(b)}
    assert shown == evaluation
    line = f"Held-out prompts: {len(boundary)} to measure the boundary on, {len(evaluation)} to evaluate on"
    assert line in capsys.readouterr().out
    without = made(files, sampler=None)  # nothing is ever sampled
    assert prompts_of(without.measured_on) == prompts_of(without.evaluated_on) == boundary | evaluation


def test_a_measurements_candidates_become_the_next_round(files: tuple[str, str]) -> None:
    data = made(files)
    run: Any = data.trainer
    run.global_step = 7
    fresh = measured(data)
    calls = list(data.sampler.calls)
    run.global_step = 9
    seen = stream(data, 1)
    assert data.sampler.calls == calls
    stats = data.round_stats
    assert stats["prompts"] == len(fresh) and stats["reused"] == stats["candidates"] == 3 * len(fresh)
    assert stats["step"] == 7 and data.counts["on_policy/reused"] == 3 * len(fresh)
    assert stats["pairs"] + stats["ties"] + stats["single_candidate"] == len(fresh) and stats["pairs"] > 3
    seen += stream(data, int(stats["pairs"]) - 1)
    answers = {prompt_text(one.prompt): {candidate.text for candidate in one.candidates} for one in fresh}
    for prompt, *completions, on_policy in seen:
        assert on_policy
        chosen, rejected = (text.removesuffix("<|im_end|>") for text in completions)
        assert answers[prompt.split("\n")[1].removesuffix("<|im_end|>")] >= {chosen, rejected}
        assert chosen[-1] > rejected[-1]  # the data's judge said so
    next(data.train_dataloader())
    assert data.sampler.calls == [*calls, 4] and data.round_stats["reused"] == 0


def test_a_queue_of_few_candidates_is_filled_up(files: tuple[str, str]) -> None:
    """The sampler draws three, the measurement had two."""
    kept: list[CandidateSet] = []

    class Keeping(LastDigit):
        def score(self, sets: Any) -> list[list[float]]:
            kept.extend(sets)
            return super().score(sets)

    data = made(files, judge=Keeping())
    fresh = measured(data, num_candidates=2)
    calls = list(data.sampler.calls)
    next(data.train_dataloader())
    assert data.sampler.calls == [*calls, len(fresh)]
    assert [one.prompt for one in kept] == [one.prompt for one in fresh]
    for one, before in zip(kept, fresh, strict=True):
        texts_of = [[c.text for c in some.candidates] for some in (one, before)]
        assert texts_of[0][:2] == texts_of[1] and len(set(texts_of[0])) == 3
    assert data.round_stats["candidates"] == 3 * len(fresh) and data.round_stats["reused"] == 2 * len(fresh)


def test_scores_of_another_judge_are_not_used(files: tuple[str, str]) -> None:
    def first_round(wrong: bool) -> list[Any]:
        data = made(files)
        fresh = measured(data)
        data.queue_round(
            [
                replace(one, candidates=tuple(replace(c, score=-float(ord(c.text[-1]))) for c in one.candidates))
                for one in fresh
            ]
            if wrong
            else fresh
        )
        return stream(data, 3)

    assert first_round(True) == first_round(False)


def test_what_was_trained_on_is_not_measured_again(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    data = made(files)
    pool = data.measured_on
    data.set_on_policy_share(1.0)
    fresh = data.sample(pool[:3], "boundary", 0)
    data.queue_round([tied(fresh[0]), *fresh[1:]])
    assert prompts_of(data.measured_on) == prompts_of(pool)  # queued, not used
    next(data.train_dataloader())
    spent = prompts_of(pool) - prompts_of(data.measured_on)
    assert spent == prompts_of(pool[1:3]) and data.round_stats["ties"] == 1  # a tie was not trained on
    other = made(files)
    other.load_state_dict(through_a_file(data.state_dict()))
    assert other.measured_on == data.measured_on
    data.queue_round(data.sample(pool, "boundary", 1))
    data.request_round()
    next(data.train_dataloader())
    assert f"most of the {len(pool)} prompts it is measured on" in capsys.readouterr().out
    assert data.measured_on == pool


def tied(one: CandidateSet) -> CandidateSet:
    """Three answers that the judge cannot tell apart."""
    first = one.candidates[0]
    return replace(one, candidates=tuple(replace(first, text=before + first.text) for before in ("", "x", "y")))


def test_a_queue_without_a_pair_falls_through_to_fresh_samples(files: tuple[str, str]) -> None:
    data = made(files)
    pool = data.measured_on
    data.set_on_policy_share(1.0)
    data.queue_round([tied(one) for one in data.sample(pool[:3], "boundary", 0)])
    next(data.train_dataloader())
    assert data.counts["on_policy/reused"] == 9 and data.counts["on_policy/ties"] >= 3
    assert data.round_stats["reused"] == 0 and data.round_stats["pairs"] > 0 and data.counts["on_policy/rounds"] == 2
    assert data.measured_on == pool


def test_a_queue_is_none_of_the_three_rounds_that_may_fail(files: tuple[str, str]) -> None:
    data = made(files, sampler=FakeSampler(constant=True))
    data.set_on_policy_share(1.0)
    data.queue_round([tied(one) for one in data.sample(data.measured_on[:3], "boundary", 0)])
    with pytest.raises(RuntimeError, match="3 on-policy rounds of 4 prompts each gave no pair"):
        next(data.train_dataloader())
    assert data.sampler.calls == [3, 4, 4, 4]


def test_a_later_queue_replaces_and_a_share_of_0_clears(files: tuple[str, str]) -> None:
    data = made(files)
    measured(data)
    data.queue_round(data.sample(data.measured_on[:2], "boundary", 8))
    assert len(data.held_out_prompts.queued) == 2
    data.set_on_policy_share(0.0)
    assert data.held_out_prompts.queued == []


def test_evaluation_prompts_are_refused(files: tuple[str, str]) -> None:
    data = made(files)
    with pytest.raises(ValueError, match=r"'held out \d+' \(.*row \d+\): evaluation prompts are never trained on"):
        data.queue_round(data.sample(data.evaluated_on, "boundary", 0))


def test_a_judge_that_fails_loses_no_queue(files: tuple[str, str]) -> None:
    class Failing(LastDigit):
        fails = True

        def score(self, sets: Any) -> list[list[float]]:
            if self.fails:
                raise ConnectionError("the judge is away")
            return super().score(sets)

    judge = Failing()
    data, fine = made(files, judge=judge), made(files)
    for one in (data, fine):
        measured(one)
    with pytest.raises(ConnectionError):
        next(data.train_dataloader())
    judge.fails = False
    assert stream(data, 2) == stream(fine, 2)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_resume_before_and_amid_the_queued_round(files: tuple[str, str], share: float) -> None:
    whole = made(files, batch_size=2)
    stream(whole, 2)
    fresh = whole.sample(whole.measured_on, "boundary", 5, num_candidates=2)
    whole.queue_round([replace(one, candidates=one.candidates[:1]) for one in fresh])
    whole.set_on_policy_share(share)
    whole.queue_round(fresh)
    states, batches = [], []
    for _ in range(12):
        states.append(through_a_file(whole.state_dict()))
        batches.append(next(whole.train_dataloader()))
    assert whole.counts["on_policy/reused"] > 0 and whole.counts["on_policy/rounds"] > (share == 1.0)
    for start, state in enumerate(states):
        resumed = made(files, batch_size=2)
        resumed.load_state_dict(state)
        assert through_a_file(resumed.state_dict()).keys() == state.keys()
        for expected in batches[start:]:
            assert_same(next(resumed.train_dataloader()), expected)
        assert resumed.counts == whole.counts and resumed.measured_on == whole.measured_on


def without(files: tuple[str, str], folder: Path, gone: set[str]) -> AlignmentDataModule:
    fewer = write(folder / "fewer.jsonl", [row for row in held_out_rows(24) if row["prompt"] not in gone])
    return data_module(files[0], val=fewer, batch_size=1)


def test_a_queue_for_prompts_that_are_gone_is_reported(files: tuple[str, str], tmp_path: Path) -> None:
    data = made(files)
    measured(data)
    other = without(files, tmp_path, {min(prompts_of(data.measured_on)), min(prompts_of(data.evaluated_on))})
    with pytest.warns(UserWarning, match="sampled candidates for 1 prompts that are no longer held out"):
        other.load_state_dict(through_a_file(data.state_dict()))
    assert len(other.held_out_prompts.queued) == len(other.measured_on) == 11


def test_no_prompt_goes_from_the_boundary_to_the_evaluation(files: tuple[str, str], tmp_path: Path) -> None:
    data = made(files)
    state = through_a_file(data.state_dict())
    other = without(files, tmp_path, set(sorted(prompts_of(data.evaluated_on))[:6]))
    with pytest.raises(ValueError, match=r"3 held-out prompts that the checkpoint's run .* now to evaluate on"):
        other.load_state_dict(state)
    del state["held_out"]["pool"]
    with pytest.raises(ValueError, match="of an earlier version, which chose the held-out prompts"):
        made(files).load_state_dict(state)


class Measures(pl.Callback):
    """As the boundary's callback does after optimizer step 2, ahead of the checkpoint's."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 2:
            measured(trainer.datamodule)


def fit(files: tuple[str, str], root: Path, steps: int, ckpt: Path | None = None) -> tuple[Recorder, Any]:
    data = AlignmentDataModule(
        files[0], files[1], batch_size=2, sampler=FakeSampler(), judge=LastDigit(), round_prompts=4, seed=3
    )
    keep_all = ModelCheckpoint(dirpath=root, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module = Recorder()
    pl.Trainer(
        default_root_dir=root,
        max_steps=steps,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Measures(), keep_all],
    ).fit(module, data, ckpt_path=ckpt)
    return module, data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_fit_goes_on_between_measurement_and_round_and_amid_it(
    files: tuple[str, str], tmp_path: Path, stop: int
) -> None:
    whole, data = fit(files, tmp_path / "whole", 10)
    assert [batch.on_policy.all().item() for _, batch in whole.seen] == [False] * 2 + [True] * 8
    assert data.counts["on_policy/reused"] > 0 and data.counts["on_policy/rounds"] > 1
    fit(files, tmp_path / "cut", stop)
    resumed, again = fit(files, tmp_path / "rest", 10, tmp_path / "cut" / f"step={stop}.ckpt")
    assert again.counts == data.counts and again.sampler.calls == data.sampler.calls[1:]
    for (_, got), (_, expected) in zip(resumed.seen, whole.seen[stop:], strict=True):
        assert_same(got, expected)


def one_of_two(rank: int, folder: Path, files: tuple[str, str]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    data = made(files, rank, 2)
    share = data.measured_on[rank::2]
    fresh = data.sample(share, "boundary")
    data.set_on_policy_share(1.0)
    data.queue_round(fresh if rank else [])  # a rank may have had no prompt
    state = through_a_file(data.state_dict())
    calls = list(data.sampler.calls)
    taken = stream(data, 2)
    resumed = made(files, rank, 2)
    torch.distributed.broadcast_object_list(states := [state], src=0)  # as of rank 0 alone, as in a checkpoint
    resumed.load_state_dict(states[0])
    said = {
        "taken": taken,
        "resumed": stream(resumed, 2),
        "sampled": data.sampler.calls[len(calls) :],
        "stats": data.round_stats,
        "measured_on": sorted(prompts_of(data.measured_on)),
        "offered": len(fresh),
    }
    (folder / f"{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


def test_two_ranks_queue_their_shares(files: tuple[str, str], tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=one_of_two, args=(rank, tmp_path, files)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert zero["sampled"] == one["sampled"] == [] and zero["stats"]["prompts"] == one["offered"]
    assert zero["stats"] == one["stats"] and zero["measured_on"] == one["measured_on"]
    assert not {pair[0] for pair in zero["taken"]} & {pair[0] for pair in one["taken"]}
    assert zero["resumed"] == zero["taken"] and one["resumed"] == one["taken"]


def test_state_may_come_before_setup(files: tuple[str, str]) -> None:
    data = made(files)
    measured(data)
    early = AlignmentDataModule(
        files[0], files[1], batch_size=1, sampler=FakeSampler(), judge=LastDigit(), round_prompts=4, seed=3
    )
    early.load_state_dict(through_a_file(data.state_dict()))
    early.trainer = trainer()
    early.setup("fit")
    assert stream(early, 4) == stream(data, 4)
