"""The reward model judge against direct forwards of tiny models, its 4-bit form, adapters and identity."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaForSequenceClassification,
)

from lit_align.judges import RewardModelJudge
from lit_align.records import CandidateSet, Message
from tests.helpers.candidates import make_set
from tests.helpers.tiny import save_tiny_model, tiny_llama_config, tiny_tokenizer


@pytest.fixture(scope="module")
def llama_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal body with one output, chat template and padding token."""
    return _save_llama(tmp_path_factory.mktemp("llama-reward"))


def _save_llama(folder: Path, pad_token: bool = True, **config: Any) -> Path:
    tokenizer = tiny_tokenizer()
    if not pad_token:
        tokenizer.pad_token = None
    settings = tiny_llama_config(len(tokenizer))
    settings.update({"num_labels": 1, "pad_token_id": tokenizer.pad_token_id, **config})
    torch.manual_seed(1)
    LlamaForSequenceClassification(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without a chat template: prompt and answer are a text pair."""
    folder, tokenizer = tmp_path_factory.mktemp("bert-reward"), tiny_tokenizer(chat_template=None)
    torch.manual_seed(1)
    config = BertConfig(  # type: ignore[call-arg]  # any attribute may be given
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=1, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SETS = [
    make_set("Give one fact about tea.", "Tea is a drink.", "Leaves", "Tea is made from leaves, people love it."),
    make_set("Write about the sea!", "The sea is deep and blue."),
]


def directly(model: Any, folder: Path, candidate_set: CandidateSet, answer: str) -> float:
    """One answer alone, without padding."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompt = candidate_set.prompt[0].content
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")
    else:
        inputs = tokenizer(prompt, answer, return_tensors="pt")
    with torch.no_grad():
        return float(model(**inputs).logits[0, 0])


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["llama_reward", "bert_reward"])
def test_a_reward_model_scores_as_a_direct_forward_does(
    kind: str, batch_size: int, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    loaded = {"llama_reward": LlamaForSequenceClassification, "bert_reward": BertForSequenceClassification}[kind]
    model = loaded.from_pretrained(folder).eval()
    expected = [
        [directly(model, folder, candidate_set, c.text) for c in candidate_set.candidates] for candidate_set in SETS
    ]
    scores = RewardModelJudge(str(folder), batch_size=batch_size, dtype="float32").score(SETS)
    assert [len(s) for s in scores] == [3, 1]
    for got, expected_scores in zip(scores, expected, strict=True):
        np.testing.assert_allclose(got, expected_scores, rtol=0, atol=1e-5)
    assert len({round(s, 4) for s in scores[0]}) == 3, "the answers differ, so must their scores"


def test_a_reward_model_without_a_padding_token_is_batched_all_the_same(tmp_path: Path) -> None:
    folder = _save_llama(tmp_path, pad_token=False)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    expected = [directly(model, folder, SETS[0], c.text) for c in SETS[0].candidates]
    (scores,) = RewardModelJudge(str(folder), dtype="float32").score(SETS[:1])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


ENDS_WITH_EOS = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("template", [ENDS_WITH_EOS, None])
@pytest.mark.parametrize("config_pad", [None, 0, 2, 77, -1])
@pytest.mark.parametrize("tokenizer_pad", [None, "<|endoftext|>", "<|im_end|>"])
def test_whatever_pads_tokenizer_and_config_name_the_score_is_that_of_the_model_alone(
    tmp_path: Path, tokenizer_pad: str | None, config_pad: int | None, template: str | None, batch_size: int
) -> None:
    folder = _save_llama(tmp_path, pad_token_id=config_pad, initializer_range=0.3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer_pad
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    expected = [
        directly(model, folder, candidate_set, c.text) for candidate_set in SETS for c in candidate_set.candidates
    ]
    scores = RewardModelJudge(str(folder), dtype="float32", batch_size=batch_size).score(SETS)
    np.testing.assert_allclose([score for row in scores for score in row], expected, rtol=0, atol=1e-5)


def test_a_reward_model_loses_the_start_of_a_long_text_with_a_warning(bert_reward: Path) -> None:
    long = replace(SETS[0], prompt=(Message("user", "tea " * 200 + "fact?"),))
    other = replace(long, prompt=(Message("user", "sea " * 200 + "tea " * 80 + "fact?"),))
    judge = RewardModelJudge(str(bert_reward), dtype="float32", max_length=48)
    with pytest.warns(UserWarning, match="limit is 48"):
        first = judge.score([long])
    assert judge.score([other]) == first, "what differs lies in the part that is cut away"
    assert len({round(s, 4) for s in first[0]}) == 3, "the answers are still there"


def test_a_classifier_with_several_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3 outputs"):
        RewardModelJudge(str(_save_llama(tmp_path, num_labels=3))).score(SETS)


def test_equal_answers_are_scored_once(llama_reward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = RewardModelJudge(str(llama_reward), dtype="float32")
    rows: list[int] = []
    forward = judge._forward
    monkeypatch.setattr(judge, "_forward", lambda texts: rows.append(len(texts)) or forward(texts))
    (scores,) = judge.score([make_set("p", "tea", "tea is deep and blue", "tea")])
    assert rows == [2] and scores[0] == scores[2] != scores[1]


def test_a_score_that_is_not_finite_is_an_abstention(llama_reward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = RewardModelJudge(str(llama_reward), batch_size=1)
    outputs = iter([np.inf, 1.0, np.nan])  # the longest answer comes first
    monkeypatch.setattr(judge, "_forward", lambda texts: [next(outputs)])
    (scores,) = judge.score([make_set("p", "tea", "tea is deep and blue", "tea is")])
    np.testing.assert_array_equal(scores, [np.nan, np.nan, 1.0])


def test_a_refused_role_names_judge_and_prompt(tmp_path: Path) -> None:
    folder = _save_llama(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    tokenizer.save_pretrained(folder)
    with pytest.raises(Exception, match="no such role") as caught:
        RewardModelJudge(str(folder)).score([make_set("the prompt", "a")])
    assert caught.value.__notes__ == ["raised by RewardModelJudge on the prompt 'the prompt'"]


def test_a_token_that_the_model_has_no_row_for(tmp_path: Path) -> None:
    folder = _save_llama(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tokenizer.save_pretrained(folder)
    judge = RewardModelJudge(str(folder))
    assert len(judge.score([make_set("tea?", "tea")])) == 1
    with pytest.raises(ValueError, match=r"holds the token '<\|tool\|>' \(id \d+\), and the embedding of .* rows"):
        judge.score([make_set("tea?", "a <|tool|>")])


# -- 4 bits


def _save_deberta(folder: Path) -> Path:
    """Its head is three layers, of which the last one has no weights."""
    tokenizer = tiny_tokenizer(chat_template=None)
    config = DebertaV2Config(  # type: ignore[call-arg]  # any attribute may be given
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        type_vocab_size=0, num_labels=1, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("save", "kept"),
    [(_save_llama, ["score"]), (_save_deberta, ["pooler.dense", "classifier"])],
)
def test_the_body_is_in_4_bits_and_the_head_is_not(tmp_path: Path, save: Any, kept: list[str]) -> None:
    folder = save(tmp_path)
    judge = RewardModelJudge(str(folder), quantization="nf4", device="cpu")
    (scores,) = judge.score(SETS[:1])
    linear = {name: type(m).__name__ for name, m in judge._model.named_modules() if "Linear" in type(m).__name__}
    assert [name for name, kind in linear.items() if kind != "Linear4bit"] == kept and len(linear) > 6
    (whole,) = RewardModelJudge(str(folder)).score(SETS[:1])
    assert scores != whole and np.abs(np.subtract(scores, whole)).max() < 0.25 * np.abs(whole).max() + 0.05


# -- adapters


@pytest.fixture(scope="module")
def with_adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A causal model, an adapter with an output layer on it, and both in memory."""
    folder = tmp_path_factory.mktemp("adapted")
    base = save_tiny_model(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(2)
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(str(folder / "adapter"))
    return base, folder / "adapter", adapted


def test_an_adapter_goes_on_top_of_its_base(with_adapter: tuple[Path, Path, Any]) -> None:
    base, adapter, model = with_adapter
    expected = [directly(model, base, SETS[0], c.text) for c in SETS[0].candidates]
    judge = RewardModelJudge(str(base), adapter=str(adapter), batch_size=1)
    np.testing.assert_allclose(judge.score(SETS[:1])[0], expected, rtol=0, atol=1e-5)
    assert len({round(score, 4) for score in expected}) == 3


def test_an_adapter_without_an_output_layer_is_refused(with_adapter: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, _, _ = with_adapter
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"neither the base nor the adapter .* has the weights \['score.weight'\]"):
        RewardModelJudge(str(base), adapter=str(tmp_path)).score(SETS)


def test_a_causal_model_is_no_reward_model(tmp_path: Path) -> None:
    config = tiny_llama_config()
    config.num_labels = 1
    with pytest.raises(ValueError, match=r"lack \['score.weight'\].*perhaps a causal language model"):
        RewardModelJudge(str(save_tiny_model(tmp_path, config=config))).score(SETS)


# -- identity


def test_the_identity_changes_with_what_a_score_depends_on(
    llama_reward: Path, with_adapter: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    def changed(name: str, file: str, old: bytes, new: bytes) -> Path:
        copy = shutil.copytree(llama_reward, tmp_path / name)
        content = (copy / file).read_bytes()
        assert old in content
        (copy / file).write_bytes(content.replace(old, new))
        return copy

    here = RewardModelJudge(str(llama_reward))
    weights = (llama_reward / "model.safetensors").read_bytes()
    template = next(
        path.name for path in llama_reward.iterdir() if b"im_start" in path.read_bytes() and "toke" not in path.name
    )
    others = [
        RewardModelJudge(str(changed("weights", "model.safetensors", weights[-4:], b"abcd"))),
        RewardModelJudge(str(changed("template", template, b"im_start", b"im_begin"))),
        RewardModelJudge(str(changed("tokenizer", "tokenizer.json", b"im_end", b"im_stop"))),
        RewardModelJudge(str(changed("config", "config.json", b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-02'))),
        RewardModelJudge(str(llama_reward), dtype="bfloat16"),
        RewardModelJudge(str(llama_reward), quantization="nf4"),
        RewardModelJudge(str(llama_reward), max_length=99),
        RewardModelJudge(str(llama_reward), adapter=str(with_adapter[1])),
    ]
    assert len({here.identity, *(judge.identity for judge in others)}) == 9
    assert len({judge.identity.split("#")[1] for judge in (here, *others)}) == 9
    assert RewardModelJudge(str(llama_reward), batch_size=1, device="cpu").identity == here.identity
    moved = shutil.copytree(llama_reward, tmp_path / "moved" / llama_reward.name)
    assert RewardModelJudge(str(moved)).identity == here.identity == f"reward_model:{moved.name}#" + here.identity[-16:]


def test_a_hub_model_is_known_by_its_commit(
    llama_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commits = ["0" * 40, "1" * 40]
    root = tmp_path / "models--org--reward"
    for commit in commits:
        shutil.copytree(llama_reward, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commits[0])
    identities = [
        RewardModelJudge("org/reward", revision=revision).identity for revision in (None, commits[0], commits[1])
    ]
    assert identities[0] == identities[1] != identities[2] and identities[0].startswith("reward_model:org/reward#")


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="no/such-reward-model.*Expected a hub id"):
        RewardModelJudge("no/such-reward-model").score(SETS)
    with pytest.raises(OSError):  # noqa: PT011  # the sentence is transformers' own
        RewardModelJudge("no/such-reward-model").identity  # noqa: B018
    with pytest.raises(FileNotFoundError, match="./no-folder"):
        RewardModelJudge("./no-folder").score(SETS)


def test_it_gives_back_its_memory_and_loads_again(llama_reward: Path) -> None:
    judge = RewardModelJudge(str(llama_reward))
    before = judge.score(SETS)
    judge.release()
    assert "_model" not in vars(judge)
    assert judge.score(SETS) == before
