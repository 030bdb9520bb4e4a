from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, LlamaForSequenceClassification

from lit_align.judges import Comparison, Judge, PairwiseJudge, RecordedScores, RewardModelJudge, RuleJudge
from lit_align.judges.base import votes_from_scores
from lit_align.records import Candidate, CandidateSet, Message
from tests.tiny import tiny_llama_config, tiny_tokenizer

NAN = math.nan


def make(
    prompt: str, *texts: str, scores: Sequence[float | None] = (), row: dict[str, Any] | None = None
) -> CandidateSet:
    given = list(scores) or [None] * len(texts)
    candidates = tuple(Candidate(text, score=score) for text, score in zip(texts, given, strict=True))
    return CandidateSet((Message("user", prompt),), candidates, row=row or {}, where=f"{prompt}.jsonl:1")


def longer_is_better(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
    return [len(candidate) for candidate in candidates]


def test_votes_from_scores() -> None:
    votes = votes_from_scores([1.0, 2.0, NAN], [1.0, 3.0])
    np.testing.assert_array_equal(votes, [[0.5, 0.0], [1.0, 0.0], [NAN, NAN]])


# -- rules


def test_a_rule_by_import_path_scores_and_votes() -> None:
    judge = RuleJudge("tests.test_judges.longer_is_better")
    assert judge.identity == "rule:tests.test_judges.longer_is_better"
    assert judge.score([make("p", "a", "bbb"), make("q", "cc")]) == [[1.0, 3.0], [2.0]]
    (votes,) = judge.cross_votes([make("p", "aa", "b")], [make("p", "cc", "ddd")])
    np.testing.assert_array_equal(votes, [[0.5, 0.0], [0.0, 0.0]])


def test_a_rule_sees_prompt_texts_and_the_static_row() -> None:
    seen: list[Any] = []

    def rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> list[float]:
        seen.append((prompt, candidates, row))
        return [0.0] * len(candidates)

    RuleJudge(rule).cross_votes([make("p", "mine")], [make("p", "static", row={"limit": 3})])
    assert seen == [("p", ["mine", "static"], {"limit": 3})], "both sides in one call, so that a rule may compare"


def test_what_is_not_finite_is_an_abstention() -> None:
    judge = RuleJudge(lambda prompt, candidates, row: [math.inf, NAN, 1])
    (scores,) = judge.score([make("p", "a", "b", "c")])
    assert math.isnan(scores[0]) and math.isnan(scores[1]) and scores[2] == 1.0


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ([1.0], ValueError, "1 scores for 2 candidates"),
        (None, TypeError, "returned None"),
        (["1", "2"], TypeError, "expected a list with one number"),
        ([1.0, None], TypeError, "expected a list with one number"),
    ],
)
def test_a_rule_that_answers_wrongly_is_named_with_its_row(answer: Any, error: type[Exception], says: str) -> None:
    def my_rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> Any:
        return answer

    with pytest.raises(error, match=says) as caught:
        RuleJudge(my_rule).score([make("p", "a", "b")])
    assert "my_rule" in str(caught.value) and "p.jsonl:1" in str(caught.value)


def test_an_error_of_a_rule_stays_and_notes_the_row() -> None:
    def my_rule(prompt: str, candidates: list[str], row: dict[str, Any]) -> Any:
        return row["no such column"]

    with pytest.raises(KeyError, match="no such column") as caught:
        RuleJudge(my_rule).score([make("p", "a", "b")])
    (note,) = caught.value.__notes__
    assert "my_rule on p.jsonl:1" in note


@pytest.mark.parametrize("path", ["no_such_module.rule", "tests.test_judges.no_such_rule", "rule", "math.pi"])
def test_an_import_path_that_leads_nowhere(path: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        RuleJudge(path)


# -- recorded scores


def test_recorded_scores_are_taken_from_the_candidates() -> None:
    judge = RecordedScores()
    assert judge.score([make("p", "a", "b", scores=[0.25, 1.0])]) == [[0.25, 1.0]]
    with pytest.raises(ValueError, match=r"candidate 2 .* \(p.jsonl:1\) has no recorded score"):
        judge.score([make("p", "a", "b", scores=[0.25, None])])


def test_a_side_without_recorded_scores_is_the_one_that_is_named() -> None:
    known, unknown = make("p", "a", "b", scores=[0.0, 1.0]), replace(make("p", "c"), where="other.jsonl, row 7")
    assert RecordedScores().cross_votes([known], [known])[0].tolist() == [[0.5, 0.0], [1.0, 0.5]]
    for sides in (([known], [unknown]), ([unknown], [known])):
        with pytest.raises(ValueError, match=r"candidate 1 .* \(other\.jsonl, row 7\) has no recorded score"):
            RecordedScores().cross_votes(*sides)


# -- comparing different prompts is a mistake of the caller


@pytest.mark.parametrize("judge", [RecordedScores(), RuleJudge(longer_is_better)])
def test_cross_votes_need_matched_prompts(judge: Judge) -> None:
    with pytest.raises(ValueError, match="same prompt"):
        judge.cross_votes([make("p", "a")], [make("q", "a")])
    with pytest.raises(ValueError, match="as many"):
        judge.cross_votes([make("p", "a")], [])


# -- pairwise


class Biased(PairwiseJudge):
    """Prefers the longer text, and the first place by 0.2."""

    identity = "biased"

    def __init__(self) -> None:
        self.calls: list[Sequence[Comparison]] = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        self.calls.append(comparisons)
        return [min(1.0, 0.5 + 0.2 + 0.3 * np.sign(len(c.first) - len(c.second))) for c in comparisons]


def test_both_orders_are_averaged() -> None:
    judge = Biased()
    votes = judge.cross_votes([make("p", "aa", "b"), make("q", "x")], [make("p", "cc"), make("q", "xyz", "")])
    # longer: (1.0 + (1 - 0.4)) / 2 = 0.8; as long: (0.7 + 0.3) / 2 = 0.5; shorter: 0.2
    np.testing.assert_allclose(votes[0], [[0.5], [0.2]])
    np.testing.assert_allclose(votes[1], [[0.2, 0.8]])
    assert [len(call) for call in judge.calls] == [8], "one call, so that a judge can batch"
    assert {(c.first, c.second) for c in judge.calls[0] if c.prompt[0].content == "q"} == {
        ("x", "xyz"), ("xyz", "x"), ("x", ""), ("", "x"),
    }  # fmt: skip


def test_a_pairwise_score_is_the_mean_chance_against_the_others() -> None:
    scores = Biased().score([make("p", "a", "bb", "ccc"), make("q", "lone")])
    np.testing.assert_allclose(scores[0], [0.2, 0.5, 0.8])
    assert scores[1] == [0.5]


def test_an_abstention_in_either_order_is_one() -> None:
    class Silent(Biased):
        def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
            return [NAN if c.first == "b" else 0.9 for c in comparisons]

    (votes,) = Silent().cross_votes([make("p", "a", "b")], [make("p", "c")])
    np.testing.assert_array_equal(np.isnan(votes), [[False], [True]])
    (scores,) = Silent().score([make("p", "a", "b")])
    assert all(map(math.isnan, scores))


@pytest.mark.parametrize(("answer", "says"), [([0.5], "for each comparison"), ([1.5, 0.5], r"in \[0, 1\]")])
def test_a_pairwise_judge_that_answers_wrongly(answer: list[float], says: str) -> None:
    class Wrong(Biased):
        def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
            return answer

    with pytest.raises(ValueError, match=says):
        Wrong().cross_votes([make("p", "a")], [make("p", "b")])


# -- reward models


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
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=1, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SETS = [
    make("Give one fact about tea.", "Tea is a drink.", "Leaves", "Tea is made from leaves, people love it."),
    make("Write about the sea!", "The sea is deep and blue."),
]


def directly(model: Any, folder: Path, one: CandidateSet, answer: str) -> float:
    """One answer alone, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = one.prompt[0].content
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
    expected = [[directly(model, folder, one, c.text) for c in one.candidates] for one in SETS]
    scores = RewardModelJudge(str(folder), batch_size=batch_size, dtype="float32").score(SETS)
    assert [len(s) for s in scores] == [3, 1]
    for got, wanted in zip(scores, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    assert len({round(s, 4) for s in scores[0]}) == 3, "the answers differ, so must their scores"


def test_a_reward_model_without_a_padding_token_is_batched_all_the_same(tmp_path: Path) -> None:
    folder = _save_llama(tmp_path, pad_token=False)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    expected = [directly(model, folder, SETS[0], c.text) for c in SETS[0].candidates]
    (scores,) = RewardModelJudge(str(folder), dtype="float32").score(SETS[:1])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


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
