from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_align.boundary import BoundaryCallback, BoundaryResult, Decision
from lit_align.judges import RuleJudge
from lit_align.records import Candidate, CandidateSet, Stage
from tests.helpers.boundary_fakes import FakeData, FakeModule, by_number, quiet_trainer
from tests.helpers.modules import loader_of
from tests.helpers.processes import DDP, on_two_ranks

RISING = [0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9]
KEYS = [
    "step", "stage", "on_policy_share", "score", "low", "high", "prompts", "votes_on", "votes_off", "ties", "seconds",
    "method", "alpha", "stopped", "share_of_training", "characteristics", "reason",
]  # fmt: skip


def fit(
    folder: Path, callback: BoundaryCallback, data: FakeData, ckpt_path: Any = None, **arguments: Any
) -> FakeModule:
    module = FakeModule()
    quiet_trainer(folder, callback, **arguments).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_decision_takes_effect_at_exactly_the_next_micro_batch(tmp_path: Path, accumulate: int) -> None:
    data, callback = FakeData(RISING), BoundaryCallback(every_n_steps=2)
    fit(tmp_path, callback, data, accumulate_grad_batches=accumulate)
    assert [step for step, _ in data.sampled] == [0, 2, 4, 6], "once per optimizer step, the first before any batch"
    assert data.shares_seen == [0.0] * 4 * accumulate + [1.0] * 2 * accumulate
    assert data.rounds == [4], "a fresh round at the switch"
    last = callback.history[-1]
    assert last.stage == Stage.FINE_TUNING and last.on_policy_share == 1.0


def test_every_decision_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = BoundaryCallback(every_n_steps=2, max_prompts=30)
    fit(tmp_path, callback, FakeData(RISING))
    written = lines(tmp_path / "boundary.jsonl")
    assert written == [decision.record() for decision in callback.history]
    assert " ".join(written[0]) == (
        "step stage on_policy_share reason score low high prompts votes_on votes_off ties abstentions seconds method "
        "alpha stopped share_of_training judge_warning characteristics graded threshold"
    )
    assert all(set(KEYS) <= line.keys() for line in written)
    assert [line["stage"] for line in written] == ["injection", "injection", "fine_tuning", "fine_tuning"]
    for line in written:
        assert line["low"] <= line["score"] <= line["high"] and line["prompts"] == 30 and line["seconds"] > 0
        assert line["votes_on"] + line["votes_off"] + line["ties"] == 30 * 2 * 4
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("boundary: step")]
    assert len(shown) == 4 and "from injection to fine-tuning" in shown[2]


def test_the_samples_are_kept_with_the_scores_of_both_sides(tmp_path: Path) -> None:
    callback = BoundaryCallback(every_n_steps=10, num_candidates=3, samples_to_keep=40)
    fit(tmp_path, callback, FakeData([0.5]), max_steps=1)
    rows = lines(tmp_path / "samples.jsonl")
    assert [answer["text"] for answer in rows[0]["off_policy"]] == ["1.0", "2.0", "3.0", "4.0"]
    assert all(answer["score"] == float(answer["text"]) for row in rows for answer in row["on_policy"])
    wins = sum(a["score"] > b["score"] for row in rows for a in row["on_policy"] for b in row["off_policy"])
    assert callback.history[0].score == pytest.approx(wins / (40 * 3 * 4), abs=1e-12)
    few = BoundaryCallback(every_n_steps=10, samples_to_keep=2)
    fit(tmp_path, few, FakeData([0.5]), max_steps=1)
    assert len(lines(tmp_path / "samples.jsonl")) == 2


def test_training_is_not_disturbed(tmp_path: Path) -> None:
    often, never = FakeData(RISING), FakeData(RISING)
    torch.manual_seed(5)
    measured = fit(tmp_path / "a", BoundaryCallback(every_n_steps=1), often)
    torch.manual_seed(5)
    once = fit(tmp_path / "b", BoundaryCallback(every_n_steps=100), never)
    assert len(often.sampled) == 7 and len(never.sampled) == 1
    assert measured.draws == once.draws, "the random state is the same with and without measurements"


def test_prompts_are_drawn_anew_without_replacement(tmp_path: Path) -> None:
    data = FakeData(prompts=40)
    data.measured_on += data.measured_on[:10]  # a prompt may have several rows
    fit(tmp_path, BoundaryCallback(every_n_steps=3, max_prompts=15), data)
    draws = [prompts for _, prompts in data.sampled]
    assert [len(set(prompts)) for prompts in draws] == [15, 15, 15]
    assert len({frozenset(prompts) for prompts in draws}) == 3
    again = FakeData(prompts=40)
    fit(tmp_path, BoundaryCallback(every_n_steps=3, max_prompts=15), again)
    assert again.sampled == data.sampled, "counted randomness: the same seed draws the same prompts"


def test_loggers_get_numbers_and_a_table(tmp_path: Path) -> None:
    tables: list[dict[str, Any]] = []

    class TableLogger(CSVLogger):
        def log_table(self, **table: Any) -> None:
            tables.append(table)

    csv, board = TableLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")
    logged: list[tuple[dict[str, float], int]] = []
    texts: list[tuple[str, str, int]] = []
    board.experiment.add_text = lambda tag, text, step: texts.append((tag, text, step))
    log_metrics = csv.log_metrics
    csv.log_metrics = lambda metrics, step=None: (logged.append((metrics, step)), log_metrics(metrics, step))  # type: ignore
    loggers: list[Logger] = [csv, board]
    callback = BoundaryCallback(every_n_steps=4, samples_to_keep=2)
    fit(tmp_path, callback, FakeData(RISING), logger=loggers)
    ours = [(metrics, step) for metrics, step in logged if "boundary/score" in metrics]
    assert [step for _, step in ours] == [0, 4]
    assert [metrics["boundary/stage"] for metrics, _ in ours] == [0.0, 1.0]
    assert ours[0][0]["boundary/score"] == callback.history[0].score
    assert {"boundary/low", "boundary/high", "boundary/on_policy_share", "boundary/ties"} <= ours[0][0].keys()
    samples = [(text, step) for tag, text, step in texts if tag == "boundary/samples"]
    assert [step for _, step in samples] == [0, 4]
    assert samples[0][0].startswith("| prompt | side | score | answer |\n|---|")
    sizes = [len(table["data"]) for table in tables if table["key"] == "boundary/samples"]
    assert sizes == [2 * 6, 2 * 6]  # two prompts: two fresh, four static answers


def test_patience_counts_through_a_resume(tmp_path: Path) -> None:
    """Stopped between the two measurements that ask; the history alone must carry the count."""
    arguments: dict[str, Any] = {"every_n_steps": 2, "patience": 2}
    whole, data = BoundaryCallback(**arguments), FakeData(RISING)
    fit(tmp_path / "whole", whole, data, max_steps=8)
    assert data.shares_seen == [0.0] * 6 + [1.0] * 2

    folder = tmp_path / "cut"
    fit_with_checkpoint(folder, BoundaryCallback(**arguments), FakeData(RISING), max_steps=4)
    (folder / "samples.jsonl").open("a").write('{"step": 5, "prompt": "from a run that was cut off"}\n')
    resumed, rest = BoundaryCallback(**arguments), FakeData(RISING)
    fit(folder, resumed, rest, max_steps=8, ckpt_path=folder / "last.ckpt")
    assert [step for step, _ in rest.sampled] == [6, 8], "nothing is measured twice at the step of the checkpoint"
    assert rest.shares_seen == data.shares_seen[4:]

    def timeless(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
        return [{**decision.record(), "seconds": 0, "share_of_training": 0} for decision in decisions]

    assert timeless(resumed.history) == timeless(whole.history)
    assert lines(folder / "boundary.jsonl") == [decision.record() for decision in resumed.history]
    assert lines(folder / "samples.jsonl") == lines(tmp_path / "whole" / "samples.jsonl")


def fit_with_checkpoint(folder: Path, callback: BoundaryCallback, data: FakeData, max_steps: int) -> None:
    saver = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=max_steps)
    trainer = quiet_trainer(folder, callback, saver, max_steps=max_steps, enable_checkpointing=True)
    trainer.fit(FakeModule(), datamodule=data)


def test_a_resume_without_its_state_is_refused(tmp_path: Path) -> None:
    class NoState(BoundaryCallback):
        def state_dict(self) -> dict[str, Any]:
            return {}

    class ForgetfulData(FakeData):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            pass

    fit_with_checkpoint(tmp_path, BoundaryCallback(), FakeData(), max_steps=2)
    with pytest.raises(ValueError, match="lacks the data's position"):
        fit(tmp_path, BoundaryCallback(), ForgetfulData(), ckpt_path=tmp_path / "last.ckpt")
    fit_with_checkpoint(tmp_path / "other", NoState(), FakeData(), max_steps=2)
    with pytest.raises(ValueError, match="lacks the boundary's decisions, so"):
        fit(tmp_path, BoundaryCallback(), FakeData(), ckpt_path=tmp_path / "other" / "last.ckpt")


def test_the_state_survives_a_rename_and_is_plain(tmp_path: Path) -> None:
    class Renamed(BoundaryCallback):
        pass

    fit_with_checkpoint(tmp_path, BoundaryCallback(every_n_steps=1), FakeData(RISING), max_steps=2)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["BoundaryCallback"]
    renamed = Renamed(every_n_steps=1)
    renamed.load_state_dict(state)
    assert renamed.state_key == "BoundaryCallback" and [d.step for d in renamed.history] == [0, 1, 2]
    assert renamed.state_dict() == state


def test_a_second_fit_starts_anew(tmp_path: Path) -> None:
    callback = BoundaryCallback(every_n_steps=2)
    fit(tmp_path, callback, FakeData(RISING))
    fit(tmp_path, callback, FakeData(RISING), max_steps=2)
    assert [d.step for d in callback.history] == [0, 2]
    assert [line["step"] for line in lines(tmp_path / "boundary.jsonl")] == [0, 2]
    assert {line["step"] for line in lines(tmp_path / "samples.jsonl")} == {0, 2}


def test_the_reference_is_refreshed_at_a_switch_only(tmp_path: Path) -> None:
    module = fit(tmp_path, BoundaryCallback(every_n_steps=1, refresh_reference=True), FakeData(RISING))
    assert module.refreshed == [4]
    assert fit(tmp_path, BoundaryCallback(every_n_steps=1), FakeData(RISING)).refreshed == []


def test_it_is_quiet_outside_training(tmp_path: Path) -> None:
    class Validated(FakeModule):
        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            pass

    class ValidatedData(FakeData):
        def val_dataloader(self) -> Any:
            return loader_of([0, 1], batch_size=1)

    data = ValidatedData(RISING)
    trainer = quiet_trainer(tmp_path, BoundaryCallback(every_n_steps=2), val_check_interval=1, num_sanity_val_steps=2)
    trainer.validate(Validated(), datamodule=data, verbose=False)
    assert data.sampled == []
    trainer.fit(Validated(), datamodule=data)
    assert [step for step, _ in data.sampled] == [0, 2, 4, 6]


class Opinion(RuleJudge):
    """Finds the policy's answers better, whatever they are."""

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        return [[float(candidate.text not in "1.0 2.0 3.0 4.0") for candidate in one.candidates] for one in sets]


def test_a_judge_of_its_own_goes_before_the_data_s(tmp_path: Path) -> None:
    callback = BoundaryCallback(judge=Opinion(by_number))
    fit(tmp_path, callback, FakeData([0.0]), max_steps=1)
    assert callback.history[0].score == 1.0


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    no_judge, no_prompts = FakeData(), FakeData(prompts=0)
    no_judge.judge = None
    with pytest.raises(ValueError, match="needs a judge"):
        fit(tmp_path, BoundaryCallback(), no_judge)
    with pytest.raises(ValueError, match="val_fraction"):
        fit(tmp_path, BoundaryCallback(), no_prompts)
    with pytest.raises(TypeError, match="AlignmentDataModule"):
        quiet_trainer(tmp_path, BoundaryCallback()).fit(FakeModule(), loader_of([0.0], batch_size=1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_n_steps": 0},
        {"max_prompts": 0},
        {"alpha": 1.0},
        {"patience": 0},
        {"batch_prompts": 0},
        {"max_share_of_training": 0.0},
    ],
)
def test_arguments_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BoundaryCallback(**wrong)


def test_the_predicate() -> None:
    callback = BoundaryCallback(every_n_steps=20)
    assert [step for step in range(50) if callback.should_measure(step)] == [0, 20, 40]


# -- a schedule of one's own


class Careful(BoundaryCallback):
    """At most half of the pairs on-policy, and a measurement at two steps only."""

    def should_measure(self, step: int) -> bool:
        return step in (0, 3)

    def on_policy_share(self, result: BoundaryResult, history: Sequence[Decision]) -> float:
        return min(0.5, result.score)


def test_a_schedule_of_one_s_own(tmp_path: Path) -> None:
    callback, data = Careful(), FakeData([0.1, 0.1, 0.1, 0.9])
    fit(tmp_path, callback, data)
    assert [d.step for d in callback.history] == [0, 3]
    assert data.shares_seen[3:] == [0.5] * 3 and callback.history[1].stage == "fine_tuning"
    assert callback.history[1].reason.startswith("Careful at score")


@pytest.mark.parametrize("patience", [1, 2])
def test_a_schedule_that_hands_on_the_paper_s_share_hands_on_its_reason(tmp_path: Path, patience: int) -> None:
    class Watching(BoundaryCallback):
        def on_policy_share(self, result: BoundaryResult, history: Sequence[Decision]) -> float:
            return super().on_policy_share(result, history)

    class AtMostHalf(BoundaryCallback):
        def on_policy_share(self, result: BoundaryResult, history: Sequence[Decision]) -> float:
            return min(0.5, super().on_policy_share(result, history))

    plain, watching, half = (
        schedule(every_n_steps=2, patience=patience) for schedule in (BoundaryCallback, Watching, AtMostHalf)
    )
    for schedule in (plain, watching, half):
        fit(tmp_path, schedule, FakeData(RISING), max_steps=5)
    told = [[(d.stage, d.on_policy_share, d.reason) for d in schedule.history] for schedule in (plain, watching)]
    assert told[0] == told[1]
    assert half.history[0].reason == plain.history[0].reason, "0 is the paper's own"
    assert [d.on_policy_share for d in half.history] == [min(0.5, d.on_policy_share) for d in plain.history]
    if patience == 1:
        assert half.history[2].reason.startswith("AtMostHalf at score")


def test_a_measure_that_returns_something_else_is_refused(tmp_path: Path) -> None:
    class Bare(BoundaryCallback):
        def measure(self, trainer: Any, pl_module: Any) -> Any:
            return super().measure(trainer, pl_module).result

    with pytest.raises(TypeError, match=r"Bare.measure\(\) must return a MeasurementOutcome, got BoundaryResult"):
        fit(tmp_path, Bare(), FakeData())


def test_other_settings_are_a_copy_s(tmp_path: Path) -> None:
    callback = Careful(max_prompts=30)
    other = callback.with_settings(max_prompts=5, draw_seed=3)
    assert isinstance(other, Careful) and (other.max_prompts, other.draw_seed, other.alpha) == (5, 3, 0.05)
    assert (callback.max_prompts, callback.draw_seed) == (30, None)
    with pytest.raises(ValueError, match="alpha"):
        callback.with_settings(alpha=2.0)


def test_a_share_that_is_none_is_refused(tmp_path: Path) -> None:
    class Wild(BoundaryCallback):
        def on_policy_share(self, result: BoundaryResult, history: Sequence[Decision]) -> float:
            return 2.0

    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 2.0 at step 0"):
        fit(tmp_path, Wild(), FakeData())


# -- two ranks


class RankData(FakeData):
    """The ranks see different scores on their shards; only together they cross."""

    def sample(self, sets: Sequence[CandidateSet], *purpose: Any, **arguments: Any) -> list[CandidateSet]:
        self.sampled.append((self.trainer.global_step, [one.prompt[0].content for one in sets]))
        late = self.trainer.global_step >= 2
        number = "9" if late and self.trainer.global_rank == 1 else "2.5"
        return [CandidateSet(one.prompt, (Candidate(number), Candidate(number))) for one in sets]


def _ddp_rank(folder: Path) -> dict[str, Any]:
    data, callback = RankData(prompts=31), BoundaryCallback(every_n_steps=2, batch_prompts=5)
    quiet_trainer(folder, callback, max_steps=4, **DDP).fit(FakeModule(), datamodule=data)
    history = json.loads(json.dumps([decision.record() for decision in callback.history]))
    offered = [(step, [one.prompt[0].content for one in sets]) for step, _, sets in data.offered]
    return {"history": history, "shares": data.shares_seen, "sampled": data.sampled, "offered": offered}


def test_two_ranks_share_the_prompts_and_agree(tmp_path: Path) -> None:
    first, second = on_two_ranks(tmp_path, _ddp_rank, tmp_path)
    assert first["history"] == second["history"], "the record is one, down to its seconds"
    assert first["shares"] == second["shares"] == [0.0, 0.0, 1.0, 1.0], "31 prompts do not decide: static pairs first"
    assert [d["prompts"] for d in first["history"]] == [31, 25, 25], "at the same batch, of 5 prompts in all"
    assert [d["score"] for d in first["history"]] == pytest.approx([0.5, 0.7, 0.7])
    assert [d["stopped"] for d in first["history"]] == ["pool", "decided", "decided"]
    for at, sizes in ((0, (19, 12)), (2, (15, 10)), (4, (15, 10))):
        drawn = [[p for step, batch in one["sampled"] if step == at for p in batch] for one in (first, second)]
        assert tuple(map(len, drawn)) == sizes and len({*drawn[0], *drawn[1]}) == sum(sizes), "no prompt twice"
        offered = [[ps for step, ps in one["offered"] if step == at] for one in (first, second)]
        assert offered == ([[], []] if at == 0 else [[prompts] for prompts in drawn])
    assert lines(tmp_path / "boundary.jsonl") == first["history"]
    kept = [row["prompt"] for row in lines(tmp_path / "samples.jsonl") if row["step"] == 0]
    of_ranks = [[p for step, batch in one["sampled"] if step == 0 for p in batch] for one in (first, second)]
    in_turn = [of_ranks[0][0], of_ranks[1][0], of_ranks[0][1], of_ranks[1][1], of_ranks[0][2]]
    assert len(kept) == 8 and kept[:5] == in_turn, "those of all ranks, in the order of the draw"


def test_a_reference_that_cannot_be_refreshed_is_refused_at_the_start(tmp_path: Path) -> None:
    module = FakeModule()
    module.reference.can_refresh = False
    with pytest.raises(ValueError, match="refresh_reference needs a reference that can be refreshed"):
        quiet_trainer(tmp_path, BoundaryCallback(refresh_reference=True)).fit(module, datamodule=FakeData(RISING))


def test_a_run_switches_at_the_threshold_that_is_set(tmp_path: Path) -> None:
    shares = {}
    for threshold in (0.2, 0.5, 0.97):
        quality = [0.1, 0.4, 0.4, 0.7, 0.7, 0.7, 0.7]
        data, callback = FakeData(quality), BoundaryCallback(every_n_steps=1, threshold=threshold)
        fit(tmp_path / str(threshold), callback, data)
        shares[threshold] = data.shares_seen
        assert all(decision.threshold == threshold for decision in callback.history)
    assert [sum(seen) for seen in shares.values()] == [5.0, 3.0, 0.0]
    with pytest.raises(ValueError, match="threshold"):
        BoundaryCallback(threshold=0.0)
