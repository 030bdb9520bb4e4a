"""What a run asks of its data is told before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GPT2Config

from callbacks import Alternating, AlwaysOffPolicy, AlwaysOnPolicy, FixedSwitch, MixtureBoundary
from lit_align.boundary import BoundaryCallback
from lit_align.data import AlignmentDataModule, Encoder
from lit_align.judges import RewardModelJudge
from lit_align.losses import DPO, SLiCHF
from lit_align.policy import PolicySpec
from lit_align.records import Message
from lit_align.report import WinRateCallback
from lit_align.rows.reading import BadRow
from lit_align.sampling import TransformersSampler
from lit_align.training.module import AlignmentModule
from tests.helpers.boundary_fakes import quiet_trainer
from tests.helpers.data_fakes import FakeSampler, LastDigit, data_module, pair_rows, trainer, write
from tests.helpers.tiny import save_tiny_model, tiny_llama_config, tiny_tokenizer


@pytest.fixture
def train(tmp_path: Path) -> str:
    return write(tmp_path / "train.jsonl", pair_rows(12))


class Unloaded(AlignmentModule):
    def configure_model(self) -> None:
        raise AssertionError("the model is not to be loaded for a run that cannot work")


def fit(folder: Path, model: Path, data: AlignmentDataModule, loss: Any = None, *callbacks: Any) -> None:
    module = Unloaded(PolicySpec(str(model)), loss or DPO())
    quiet_trainer(folder, *callbacks, max_steps=4).fit(module, datamodule=data)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, r"set `data.sampler`, `data.judge`, `data.val` \(or `data.val_fraction`\)$"),
        ({"sampler": FakeSampler(), "val_fraction": 0.3}, "set `data.judge`$"),
        ({"judge": LastDigit(), "val_fraction": 0.3}, "set `data.sampler`$"),
        ({"sampler": FakeSampler(), "judge": LastDigit()}, r"set `data.val` \(or `data.val_fraction`\)$"),
    ],
)
@pytest.mark.parametrize("schedule", [BoundaryCallback(), MixtureBoundary(), AlwaysOffPolicy(every_n_steps=2)])
def test_a_measurement_says_all_that_is_missing_at_once(
    train: str, tmp_path: Path, tiny_model: Path, given: dict[str, Any], named: str, schedule: BoundaryCallback
) -> None:
    words = f"{type(schedule).__name__} samples answers to held-out prompts and has them judged, and the data lack "
    with pytest.raises(ValueError, match=f"^{words}what it takes: {named}"):
        fit(tmp_path, tiny_model, AlignmentDataModule(train, **given), None, schedule)


@pytest.mark.parametrize("schedule", [AlwaysOnPolicy(), FixedSwitch(at_step=3), Alternating(period=2)])
def test_a_schedule_that_will_ask_for_samples_says_so_at_the_start(
    train: str, tmp_path: Path, tiny_model: Path, schedule: BoundaryCallback
) -> None:
    words = f"^{type(schedule).__name__} trains on judged samples, and the data lack what it takes: "
    with pytest.raises(ValueError, match=words + "set `data.sampler`, `data.judge`$"):
        fit(tmp_path, tiny_model, AlignmentDataModule(train), None, schedule)


def test_a_schedule_that_never_decides_is_refused_at_the_start(train: str, tmp_path: Path, tiny_model: Path) -> None:
    data = AlignmentDataModule(train, val_fraction=0.3, sampler=FakeSampler(), judge=LastDigit())
    with pytest.raises(ValueError, match="^BoundaryCallback decides at no step: set every_n_steps to at least 1"):
        fit(tmp_path, tiny_model, data, None, BoundaryCallback(every_n_steps=None))


@pytest.mark.parametrize("schedule", [AlwaysOffPolicy(), FixedSwitch(at_step=99)])
def test_static_pairs_alone_need_neither(train: str, schedule: BoundaryCallback) -> None:
    """A switch after the run's end never comes."""
    data = AlignmentDataModule(train)
    data.trainer = trainer(callbacks=[schedule], max_steps=4)
    data.setup("fit")
    assert data.train_pairs
    evaluation = AlignmentDataModule(train, val_fraction=0.3)
    evaluation.trainer = trainer(callbacks=[BoundaryCallback()])
    evaluation.setup("validate")


def test_held_out_prompts_that_are_all_too_long(train: str, tmp_path: Path) -> None:
    val = write(tmp_path / "val.jsonl", [{"prompt": f"tea {n} " * 90, "chosen": "a", "rejected": "b"} for n in "1234"])
    data = AlignmentDataModule(train, val, sampler=FakeSampler(), judge=LastDigit(), max_prompt_tokens=60)
    data.trainer = trainer(callbacks=[BoundaryCallback()], max_steps=4)
    with pytest.raises(ValueError, match=r"none of the data's is left \(val/.*val/prompt_too_long: 4"):
        data.setup("fit")


@pytest.mark.parametrize("kind", ["pair", "prompt", "padding"])
def test_a_token_that_the_model_has_no_row_for_is_named(tmp_path: Path, kind: str) -> None:
    """The tokenizer's last token is more than the embedding has rows for; only data that use it are refused."""
    tokenizer = tiny_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    config = tiny_llama_config(rows)
    config.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pairs = pair_rows(6)
    fit_length = {"max_steps": 1}
    quiet_trainer(tmp_path / "fine", **fit_length).fit(
        AlignmentModule(PolicySpec(str(tmp_path)), DPO()),
        datamodule=AlignmentDataModule(write(tmp_path / "fine.jsonl", pairs)),
    )
    if kind == "padding":
        tokenizer.pad_token = "<|tool|>"
        tokenizer.save_pretrained(tmp_path)
    pairs[2] |= {"pair": {"chosen": "use <|tool|>"}, "prompt": {"prompt": "<|tool|>?"}, "padding": {}}[kind]
    with pytest.raises(ValueError, match=rf"{rows} rows, and its tokenizer {rows + 1} tokens.*'<\|tool\|>' \({rows}\)"):
        fit(tmp_path, tmp_path, AlignmentDataModule(write(tmp_path / "rows.jsonl", pairs)))


def short_model(folder: Path, kind: str) -> Path:
    """A model with 48 positions."""
    size = len(tiny_tokenizer())
    rope = tiny_llama_config(size)
    rope.max_position_embeddings = 48
    table = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=48, bos_token_id=1, eos_token_id=2)
    return save_tiny_model(folder, config=table if kind == "table" else rope)


def refuses_or_warns(kind: str, folder: Path, model: Path, data: AlignmentDataModule, text: str) -> None:
    if kind == "table":
        with pytest.raises(ValueError, match=text):
            fit(folder, model, data)
    else:
        with pytest.warns(UserWarning, match=text), pytest.raises(AssertionError, match="not to be loaded"):
            fit(folder, model, data)


@pytest.mark.parametrize("kind", ["table", "rope"])
def test_rows_longer_than_the_model_s_positions(tmp_path: Path, kind: str) -> None:
    model = short_model(tmp_path / "model", kind)
    rows = pair_rows(6)
    with pytest.raises(AssertionError, match="not to be loaded"):  # which comes behind all checks
        fit(tmp_path / "short", model, AlignmentDataModule(write(tmp_path / "short.jsonl", rows)))
    rows[3]["prompt"] += " tea" * 40
    long = AlignmentDataModule(write(tmp_path / "long.jsonl", rows))
    text = "tokens together, in 1 of 6 pairs more than the 48 positions of the model"
    refuses_or_warns(kind, tmp_path / "long", model, long, text)


@pytest.mark.parametrize("kind", ["table", "rope"])
def test_sampled_answers_longer_than_the_model_s_positions(tmp_path: Path, kind: str) -> None:
    model = short_model(tmp_path / "model", kind)
    rows = [*pair_rows(5), {"prompt": "q and more"}]

    def data(max_new_tokens: int) -> AlignmentDataModule:
        sampler = TransformersSampler(max_new_tokens=max_new_tokens)
        return AlignmentDataModule(write(tmp_path / "rows.jsonl", rows), sampler=sampler, judge=LastDigit())

    lengths = [len(Encoder(tiny_tokenizer()).encode_prompt((Message("user", row["prompt"]),))) for row in rows]
    assert lengths[-1] > max(lengths[:-1])
    with pytest.raises(AssertionError, match="not to be loaded"):
        fit(tmp_path / "short", model, data(48 - max(lengths)))
    text = f"prompts of up to {max(lengths)} tokens and sampled .*for 1 of 6 prompts, to more than the 48 positions"
    refuses_or_warns(kind, tmp_path / "long", model, data(49 - max(lengths)), text)


def test_training_prompts_that_are_all_held_out_are_said_to_be(tmp_path: Path) -> None:
    train, val = (write(tmp_path / name, pair_rows(4)) for name in ("train.jsonl", "val.jsonl"))
    with pytest.raises(ValueError, match="prompt_held_out: 4.*Give held-out rows with other prompts"):
        AlignmentDataModule(train, val).prepare(tiny_tokenizer())


def test_a_resumed_share_needs_its_sampler(train: str) -> None:
    state = data_module(train, on_policy_share=0.5).state_dict()
    with pytest.raises(ValueError, match="on-policy pairs need a sampler and a judge"):
        data_module(train, sampler=None, judge=None).load_state_dict(state)


@pytest.mark.parametrize("held_out", [False, True])
def test_rows_without_the_target_that_the_loss_asks_for(tmp_path: Path, tiny_model: Path, held_out: bool) -> None:
    whole = [{**row, "target": "good"} for row in pair_rows(6)]
    rows = [*whole[:3], {**whole[3], "target": None}, *whole[4:]]
    path, fine = write(tmp_path / "rows.jsonl", rows), write(tmp_path / "fine.jsonl", whole)
    files = (fine, path) if held_out else (path, None)
    with pytest.raises(BadRow, match=r"rows\.jsonl, row 4: the loss asks for each row's own `target`.*got None"):
        fit(tmp_path, tiny_model, AlignmentDataModule(*files), SLiCHF(target="row"))
    data = AlignmentDataModule(path, on_bad_row="skip")
    data.trainer = trainer()
    data.trainer.lightning_module.loss = SLiCHF(target="row")
    with pytest.warns(UserWarning, match="no_target: 1"):
        data.setup("fit")
    assert len(data.train_pairs) == len(data.train_sets) == 5 and data.counts["bad_row/no_target"] == 1
    assert len(data_module(path).train_pairs) == 6  # another loss does not mind


def test_sets_without_a_target_are_refused_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "candidates": ["a1", "a2"]} for n in range(3)]
    data = AlignmentDataModule(write(tmp_path / "sets.jsonl", rows), judge=LastDigit())
    data.trainer = trainer()
    data.trainer.lightning_module.loss = SLiCHF(target="row")
    with pytest.raises(BadRow, match=r"sets\.jsonl, row 1: .*`target`"):
        data.setup("fit")


def test_files_and_judges_that_are_not_there_are_named_before_the_policy_is_asked_for(tmp_path: Path) -> None:
    """Also a judge that stands in a callback, which is asked at the run's end."""
    rows = write(tmp_path / "rows.jsonl", pair_rows(6))
    judge = RewardModelJudge(str(tmp_path / "judge"))
    with pytest.raises(FileNotFoundError, match=r"no data at '.*absent\.jsonl'"):
        fit(tmp_path, tmp_path / "no_model", AlignmentDataModule(str(tmp_path / "absent.jsonl")))
    with pytest.raises(FileNotFoundError, match=r"no data at '.*absent\.jsonl'"):
        fit(tmp_path, tmp_path / "no_model", AlignmentDataModule(rows, val=str(tmp_path / "absent.jsonl"), judge=judge))
    model = save_tiny_model(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="judge' is not there"):
        fit(tmp_path, model, AlignmentDataModule(rows), None, WinRateCallback(judge=judge))
