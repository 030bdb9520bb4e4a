"""RewardModule: what it reads, learns, saves and resumes, held against the judge that loads what it saved."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from peft.tuners.lora.layer import Linear as LoraLinear
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import logsigmoid
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lit_align import (
    AlignmentDataModule,
    AlignmentTrainer,
    BoundaryCallback,
    LoraSpec,
    PolicySpec,
    RewardModelJudge,
    RuleJudge,
    TransformersSampler,
)
from lit_align.judges.inputs import encode_answer
from lit_align.policy.lora import InPlaceLoraLinear
from lit_align.records import Candidate, CandidateSet, Message, PreferencePair
from lit_align.reward import RewardDataModule, RewardModule, bradley_terry_loss
from lit_align.reward.encode import RewardEncoder
from lit_align.training.checkpoint import AlignmentCheckpoint
from tests.helpers.tiny import CORPUS, save_tiny_model, tiny_llama_config

ENDS_WITH_EOS = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
ANSWERS = ["tea", "\nA leaf, and water.", "Well, the sea is deep and blue!", "  no", "bees like honey " * 3]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Pairs whose better answer says tea; several of one prompt; answers that begin with white space."""
    path = tmp_path / "rows.jsonl"
    made = []
    for n in range(24):
        good, bad = f"tea {ANSWERS[n % 5]}", f"{ANSWERS[(n + 1) % 5]} sea {n}"
        scores = {"chosen_score": 3, "rejected_score": 1 + n % 2}
        made.append({"prompt": f"Give fact {n // 2}.", "chosen": good, "rejected": bad, **scores})
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def save_tiny_encoder(folder: Path, kind: str) -> Path:
    """A tiny BERT or RoBERTa with a masked-language-model head, as a user would name it for a base."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [*CORPUS, *ANSWERS], trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    second = "$B:1 [SEP]:1" if kind == "bert" else "[SEP] $B [SEP]"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=f"[CLS] $A [SEP] {second}", special_tokens=ends
    )
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if kind == "bert" else [])]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64, model_input_names=inputs,
    )  # fmt: skip
    sizes: dict[str, Any] = {
        "vocab_size": len(fast), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "pad_token_id": 0,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "bert":
            BertForMaskedLM(BertConfig(max_position_embeddings=64, **sizes)).save_pretrained(folder)
        else:
            RobertaForMaskedLM(RobertaConfig(max_position_embeddings=66, **sizes)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def trained(
    base: Path, rows: Path, root: Path, *callbacks: Callback, spec: dict[str, Any] | None = None, steps: int = 6
) -> tuple[RewardModule, RewardDataModule, AlignmentTrainer]:
    torch.manual_seed(0)  # as the command line does
    module = RewardModule(
        PolicySpec(str(base), **{"lora": LoraSpec(r=4), **(spec or {})}),
        optimizer=lambda params: torch.optim.AdamW(params, lr=5e-3),
    )
    data = RewardDataModule(str(rows), val_fraction=0.25, batch_size=4)
    trainer = AlignmentTrainer(
        max_steps=steps, accelerator="cpu", logger=False, default_root_dir=str(root), enable_progress_bar=False,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, data, trainer


def scored_by_module(module: RewardModule, data: RewardDataModule) -> list[tuple[float, float]]:
    module.eval()
    found = []
    with torch.no_grad():
        for batch in data.val_dataloader()[0]:
            chosen, rejected = module.rewards(batch)
            found += list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    return found


def scored_by_judge(judge: RewardModelJudge, rows: Path, data: RewardDataModule) -> list[tuple[float, float]]:
    held_out = {one.prompt for one in data.held_out}
    pairs = [json.loads(line) for line in rows.read_text().splitlines()]
    sets = [
        CandidateSet((Message("user", pair["prompt"]),), (Candidate(pair["chosen"]), Candidate(pair["rejected"])))
        for pair in pairs
    ]
    return [(a, b) for a, b in judge.score([one for one in sets if one.prompt in held_out])]


@pytest.mark.parametrize("base", ["llama", "bert", "roberta", "plain"])
@pytest.mark.parametrize("lora", [LoraSpec(r=4), None])
def test_the_saved_model_scores_as_the_module_does(
    base: str, lora: LoraSpec | None, rows: Path, tmp_path: Path, tiny_model: Path
) -> None:
    folder = tiny_model
    if base == "plain":  # a decoder without a chat template reads a text pair
        folder = save_tiny_model(tmp_path / base, chat_template=None)
    elif base != "llama":
        folder = save_tiny_encoder(tmp_path / base, base)
    module, data, _ = trained(folder, rows, tmp_path / "run", spec={"lora": lora})
    own = scored_by_module(module, data)
    judge = RewardModelJudge(str(tmp_path / "run/reward_model"), batch_size=3)
    torch.testing.assert_close(
        torch.tensor(scored_by_judge(judge, rows, data)), torch.tensor(own), atol=1e-5, rtol=1e-5
    )
    assert len({score for both in own for score in both}) > 6, "the model tells answers apart"


class FailAtTheEnd(Callback):
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        raise RuntimeError("the end")


def test_the_quality_is_kept_at_once(rows: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(RuntimeError, match="the end"):
        trained(tiny_model, rows, tmp_path / "run", FailAtTheEnd(), steps=6)
    record = json.loads((tmp_path / "run/reward_quality.json").read_text())
    assert record["pairs"] == 6 and record["step"] == 5, "of the validation at the epoch's end"


def test_it_learns_and_says_how_well(rows: Path, tmp_path: Path, tiny_model: Path, capsys: Any) -> None:
    module, _, trainer = trained(tiny_model, rows, tmp_path / "run", steps=40)
    assert trainer.callback_metrics["rewards/margins"] > 0.5
    assert trainer.callback_metrics["val/accuracy"] > 0.8
    record = json.loads((tmp_path / "run/reward_quality.json").read_text())
    assert module.quality is not None
    assert record["pairs"] == module.quality.pairs == 6
    assert record["accuracy"]["value"] == pytest.approx(float(trainer.callback_metrics["val/accuracy"]))
    assert {"val/loss", "val/rewards/accuracies", "val/longer_rule", "val/brier", "val/calibration_error"} <= set(
        trainer.callback_metrics
    )
    out = capsys.readouterr().out
    assert "rule: the longer is better" in out and "reward_model" in out


def test_the_batch_holds_what_the_judge_reads(rows: Path, tiny_model: Path) -> None:
    module = RewardModule(PolicySpec(str(tiny_model)))
    data = RewardDataModule(str(rows), batch_size=4)
    data.prepare(module.tokenizer)
    pairs = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(data.train_pairs) == len(pairs)
    for pair, row in zip(data.train_pairs, pairs, strict=True):
        prompt = (Message("user", row["prompt"]),)
        for answer, ids in ((row["chosen"], pair.chosen), (row["rejected"], pair.rejected)):
            expected = encode_answer(module.tokenizer, prompt, Candidate(answer))[0]["input_ids"]
            assert [*pair.prompt.tolist(), *ids.tolist()] == expected


def test_an_answer_that_merges_with_the_end_of_the_prompt_is_read_as_the_judge_reads_it(tiny_model: Path) -> None:
    tokenizer = RewardModule(PolicySpec(str(tiny_model))).tokenizer
    tokenizer.add_tokens(["\n\n"])
    prompt = (Message("user", "Give one fact."),)
    pair = PreferencePair(prompt, Candidate("\nTea is a drink."), Candidate("the sea"))
    encoded = RewardEncoder(tokenizer).encode_pair(pair)
    assert not isinstance(encoded, str)
    for answer, ids in ((pair.chosen, encoded.chosen), (pair.rejected, encoded.rejected)):
        assert [*encoded.prompt, *ids] == encode_answer(tokenizer, prompt, answer)[0]["input_ids"]
    assert tokenizer.convert_ids_to_tokens(encoded.chosen.tolist())[0] == "\n\n"


def test_the_loss_is_bradley_terry_s() -> None:
    chosen, rejected = torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0])
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-1))])
    with_margin = bradley_terry_loss(chosen, rejected, torch.tensor([1.0, 1.0]))
    assert with_margin.tolist() == pytest.approx([math.log(1 + math.e), math.log(2)])
    centred = bradley_terry_loss(chosen, rejected, centring=0.1)
    assert centred.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-1)) + 0.1 * 9])


def test_the_margin_weight_takes_the_data_s_scores(rows: Path, tiny_model: Path) -> None:
    module = RewardModule(PolicySpec(str(tiny_model)), margin_weight=0.5)
    module.configure_model()
    data = RewardDataModule(str(rows), batch_size=4)
    data.prepare(module.tokenizer)
    batch = data.next_batch()
    chosen, rejected = module.rewards(batch)
    expected = -logsigmoid(chosen - rejected - 0.5 * batch.margin)
    torch.testing.assert_close(module._losses(chosen, rejected, batch), expected)
    assert set(batch.margin.tolist()) == {1.0, 2.0}
    batch.margin[0] = math.nan
    with pytest.raises(ValueError, match="margin_weight"):
        module._losses(chosen, rejected, batch)


def test_padding_and_batch_mates_change_nothing(rows: Path, tmp_path: Path, tiny_model: Path) -> None:
    for folder in (tiny_model, save_tiny_encoder(tmp_path / "bert", "bert")):
        module = RewardModule(PolicySpec(str(folder)))
        module.configure_model()
        together = RewardDataModule(str(rows), batch_size=8)
        alone = RewardDataModule(str(rows), batch_size=1)
        for data in (together, alone):
            data.prepare(module.tokenizer)
        chosen, rejected = module.rewards(together.next_batch())
        for n in range(8):
            one, other = module.rewards(alone.next_batch())
            torch.testing.assert_close((one[0], other[0]), (chosen[n], rejected[n]), atol=2e-6, rtol=1e-5)


class StopAt(Callback):
    """Ends a fit as a kill would, as far as files go."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def test_a_resumed_fit_ends_as_an_uninterrupted_one(rows: Path, tmp_path: Path, tiny_model: Path) -> None:
    spec = {"lora": LoraSpec(r=4, dropout=0.3)}
    whole, _, _ = trained(tiny_model, rows, tmp_path / "whole", spec=spec)
    with pytest.raises(RuntimeError, match="killed"):
        trained(tiny_model, rows, tmp_path / "cut", AlignmentCheckpoint(every_n_train_steps=2), StopAt(5), spec=spec)
    assert not (tmp_path / "cut/reward_model").exists()
    last = tmp_path / "cut/checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert all("lora" in name or "score" in name for name in saved) and len(saved) > 2

    module = RewardModule(whole.spec, optimizer=lambda params: torch.optim.AdamW(params, lr=5e-3))
    trainer = AlignmentTrainer(
        max_steps=6, accelerator="cpu", logger=False, default_root_dir=str(tmp_path / "cut"), enable_progress_bar=False
    )
    data = RewardDataModule(str(rows), val_fraction=0.25, batch_size=4)
    trainer.fit(module, datamodule=data, ckpt_path=last)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    assert (tmp_path / "cut/reward_model/model.safetensors").is_file()


def test_a_finished_run_gives_its_model_again(rows: Path, tmp_path: Path, tiny_model: Path) -> None:
    module, data, _ = trained(tiny_model, rows, tmp_path / "run")
    expected = scored_by_module(module, data)
    saved = tmp_path / "run/reward_model/model.safetensors"
    saved.unlink()
    again = RewardModule(module.spec)
    trainer = AlignmentTrainer(
        max_steps=6, accelerator="cpu", logger=False, default_root_dir=str(tmp_path / "run"), enable_progress_bar=False
    )
    fresh = RewardDataModule(str(rows), val_fraction=0.25, batch_size=4)
    trainer.fit(again, datamodule=fresh, ckpt_path="last")
    assert saved.is_file()
    torch.testing.assert_close(torch.tensor(scored_by_module(again, fresh)), torch.tensor(expected))


def test_half_precision_keeps_its_head_whole_and_saves_in_float32(rows: Path, tmp_path: Path, tiny_model: Path) -> None:
    module, data, _ = trained(tiny_model, rows, tmp_path / "run", spec={"dtype": "bfloat16"})
    assert module.model is not None
    dtypes = {name.split(".")[-2]: p.dtype for name, p in module.model.named_parameters() if p.requires_grad}
    assert set(dtypes.values()) == {torch.float32}
    judge = RewardModelJudge(str(tmp_path / "run/reward_model"))
    assert judge._model.dtype == torch.float32
    own, other = scored_by_module(module, data), scored_by_judge(judge, rows, data)
    torch.testing.assert_close(torch.tensor(other), torch.tensor(own), atol=0.05, rtol=0.05)


def test_nf4_merges_into_the_base_as_it_was(rows: Path, tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    module, data, _ = trained(tiny_model, rows, tmp_path / "run", spec={"quantization": "nf4", "dtype": "float32"})
    judge = RewardModelJudge(str(tmp_path / "run/reward_model"))
    found = scored_by_judge(judge, rows, data)
    # The same adapters on the whole base: what the file must hold.
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    plain = RewardModule(replace(module.spec, quantization=None))
    plain.configure_model()
    assert plain.model is not None and module.model is not None
    set_peft_model_state_dict(plain.model, get_peft_model_state_dict(module.model))
    expected = scored_by_module(plain, data)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_head_that_is_there_is_kept_and_a_new_one_is_always_the_same(tmp_path: Path, tiny_model: Path) -> None:
    first, second = RewardModule(PolicySpec(str(tiny_model))), RewardModule(PolicySpec(str(tiny_model)))
    first.configure_model()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second.configure_model()
    assert torch.equal(before, torch.get_rng_state())
    assert first.model is not None and second.model is not None
    torch.testing.assert_close(first.model.score.weight, second.model.score.weight, rtol=0, atol=0)
    with torch.no_grad():
        first.model.score.weight.fill_(0.25)
    first.save(tmp_path / "saved")
    on_top = RewardModule(PolicySpec(str(tmp_path / "saved"), lora=LoraSpec(r=2)))
    on_top.configure_model()
    heads = [p for name, p in on_top.named_parameters() if "score" in name and p.requires_grad]
    assert len(heads) == 1 and (heads[0] == 0.25).all()


def test_its_adapters_and_activations_are_a_policys(tmp_path: Path, rows: Path, tiny_model: Path) -> None:
    """LoRA layers that add in place, trained and merged, and the layers' inputs on the host give the same model."""
    plain, plain_data, _ = trained(tiny_model, rows, tmp_path / "plain")
    layers = {type(m) for m in plain.modules() if isinstance(m, LoraLinear)}
    assert layers == {InPlaceLoraLinear}
    moved, moved_data, _ = trained(tiny_model, rows, tmp_path / "moved", spec={"gradient_checkpointing": "offload"})
    assert any(getattr(m, "gradient_checkpointing", False) for m in moved.modules())
    own, other = scored_by_module(plain, plain_data), scored_by_module(moved, moved_data)
    torch.testing.assert_close(torch.tensor(other), torch.tensor(own), atol=1e-6, rtol=1e-6)


def test_what_cannot_be_a_reward_model_is_refused(tmp_path: Path, rows: Path, tiny_model: Path) -> None:
    for spec, message in (
        (PolicySpec(str(tiny_model), adapter="somewhere"), "saved adapter"),
        (PolicySpec(str(tiny_model), quantization="nf4"), "cannot be trained itself"),
        (PolicySpec(str(tmp_path / "none")), "not there"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            RewardModule(spec).configure_model()
    with pytest.raises(ValueError, match="centring"):
        RewardModule(PolicySpec("x"), centring=-1.0)
    trainer = AlignmentTrainer(
        max_steps=1, accelerator="cpu", logger=False, default_root_dir=str(tmp_path / "run"), enable_progress_bar=False
    )
    with pytest.raises(ValueError, match=r"lit_align\.reward\.RewardDataModule"):
        trainer.fit(RewardModule(PolicySpec(str(tiny_model))), datamodule=AlignmentDataModule(str(rows)))


def test_a_boundary_has_nothing_to_measure(rows: Path, tmp_path: Path, tiny_model: Path) -> None:
    data = RewardDataModule(
        str(rows),
        val_fraction=0.25,
        sampler=TransformersSampler(),
        judge=RuleJudge(lambda prompt, texts, row: [0.0] * 4),
    )
    trainer = AlignmentTrainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        default_root_dir=str(tmp_path / "run"),
        callbacks=BoundaryCallback(),
    )
    with pytest.raises(ValueError, match="set `boundary` to null"):
        trainer.fit(RewardModule(PolicySpec(str(tiny_model))), datamodule=data)


def test_what_a_model_cannot_read_is_left_out_and_counted(tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "bert", "bert")
    long = {"prompt": "Give one fact.", "chosen": "tea " * 70, "rejected": "sea"}
    short = {"prompt": "Give one fact.", "chosen": "tea", "rejected": "sea"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(long) + "\n" + json.dumps(short) + "\n")
    module = RewardModule(PolicySpec(str(encoder)))
    data = RewardDataModule(str(path))
    data.prepare(module.tokenizer)
    assert data.counts["longer_than_the_model_reads"] == 1 and data.counts["pairs"] == 1


def test_a_head_with_more_outputs_makes_room_for_one(tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "bert", "bert")
    config = BertConfig.from_pretrained(encoder, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(encoder)
    module = RewardModule(PolicySpec(str(encoder)))
    with pytest.raises(Exception, match="size mismatch|mismatch"):
        module.configure_model()


@pytest.mark.parametrize("config_pad", [None, 0, 2])
def test_training_starts_from_the_scores_of_the_model_alone(rows: Path, tmp_path: Path, config_pad: int | None) -> None:
    """Where the tokenizer pads with the token that ends each text, and the config with another one or none."""
    folder = save_tiny_model(tmp_path / "model", chat_template=ENDS_WITH_EOS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    config = tiny_llama_config(len(tokenizer))
    config.update({"num_labels": 1, "pad_token_id": config_pad, "initializer_range": 0.3})
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    data = RewardDataModule(str(rows), batch_size=5)
    module = RewardModule(PolicySpec(str(folder), dtype="float32"))
    module.configure_model()
    data.prepare(module.tokenizer)
    batch = data.next_batch()
    with torch.no_grad():
        chosen, _ = module.rewards(batch)
        for i, reward in enumerate(chosen.tolist()):
            ids = torch.cat([batch.prompt.ids[i][batch.prompt.mask[i]], batch.chosen.ids[i][batch.chosen.mask[i]]])
            assert reward == pytest.approx(float(model(ids[None]).logits[0, 0]), abs=1e-5)
    module.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert AutoConfig.from_pretrained(tmp_path / "saved").pad_token_id == saved.pad_token_id
    assert (saved.pad_token_id == saved.eos_token_id) == (config_pad == 2)
