"""Figures of candidates as metrics: what they average, what they leave out, several processes."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import lit_align.metrics
from lit_align.metrics import (
    BestScore,
    CandidateMetric,
    Characteristics,
    DistinctN,
    Duplicates,
    Embedder,
    EmbeddingDifference,
    EmptyShare,
    LengthSpread,
    LogLikelihoodSpread,
    MeanDifference,
    MeanLength,
    MeanScore,
    NearDuplicates,
    NgramDifference,
    ScoreSpread,
    SelfBLEU,
    TransformersEmbedder,
    characteristics,
    of_equal_size,
)
from lit_align.records import Candidate, CandidateSet, Message
from tests.helpers.tiny import tiny_tokenizer

NAN = float("nan")


def answers(*texts: str, scores: Sequence[float | None] = (), prompt: str = "q") -> CandidateSet:
    padded = [*scores, *[None] * (len(texts) - len(scores))]
    candidates = tuple(Candidate(text, score) for text, score in zip(texts, padded, strict=True))
    return CandidateSet((Message("user", prompt),), candidates)


def value(metric: Any, *sets: CandidateSet) -> float:
    metric.update(sets)
    return float(metric.compute())


SETS = [
    answers("a b c", "a b d", scores=[1.0, 3.0]),
    answers("a b", "a b", "x y", "", scores=[0.5, NAN, None, -0.5]),
    answers("lone one", scores=[7.0]),
    answers(),
]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (DistinctN(1), (4 / 6 + 4 / 6) / 2),
        (DistinctN(2), (3 / 4 + 2 / 3) / 2),
        (DistinctN(3), 1.0),  # the second prompt has no trigram
        (SelfBLEU(1), (2 / 3 + (1 + 1 + 0) / 3) / 2),
        (MeanDifference(), (2 / 3 + 2 / 3) / 2),
        (MeanDifference(NgramDifference(1)), (1 / 2 + 2 / 3) / 2),
        (NearDuplicates(), (0 + 1 / 6) / 2),
        (NearDuplicates(1 / 3), (1 + 1 / 6) / 2),  # abc and abd share one of three bigrams
        (Duplicates(), (0 + 1 / 6) / 2),
        (MeanScore(), (2.0 + 0.0 + 7.0) / 3),
        (BestScore(), (3.0 + 0.5 + 7.0) / 3),
        (ScoreSpread(), (2.0 + 1.0) / 2),
        (MeanLength(), (3 + 6 / 4 + 2) / 3),
        (MeanLength("characters"), (5 + 9 / 4 + 8) / 3),
        (LengthSpread(), (0 + (0 + 0 + 2 + 0 + 2 + 2) / 6) / 2),
        (EmptyShare(), (0 + 1 / 4 + 0) / 3),
    ],
)
def test_each_figure_is_a_mean_over_the_prompts_that_have_it(metric: CandidateMetric, expected: float) -> None:
    assert value(metric, *SETS) == pytest.approx(expected, abs=1e-12)
    metric.reset()
    for candidate_set in reversed(SETS):  # neither order nor batches matter
        metric.update([candidate_set])
    assert float(pickle.loads(pickle.dumps(metric)).compute()) == pytest.approx(expected, abs=1e-12)


def test_every_exported_figure_is_nan_without_prompts_and_survives_odd_texts() -> None:
    exported = [getattr(lit_align.metrics, name) for name in lit_align.metrics.__all__]
    metrics = [kind for kind in exported if isinstance(kind, type) and issubclass(kind, CandidateMetric)]
    odd = answers("", "", "\ud800", "\u65e5" * 5, "word " * 2000, scores=[NAN, 1e300, -1e300])
    for kind in set(metrics) - {CandidateMetric}:
        assert math.isnan(value(kind(), *[])), kind
        assert math.isfinite(value(kind(), odd)), kind


def test_token_lengths_are_of_candidates_that_carry_ids() -> None:
    sampled = tuple(Candidate("x", token_ids=ids) for ids in ((1, 2, 3), (4,), None))
    assert value(MeanLength("tokens"), CandidateSet((), sampled), answers("no ids")) == 2.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DistinctN(0), "n to be at least 1 word, got 0"),
        (lambda: SelfBLEU(0), "max_n to be at least 1 word, got 0"),
        (lambda: NearDuplicates(0.0), r"threshold in \(0, 1\], got 0.0"),
        (lambda: MeanLength("lines"), "words, characters, tokens; got 'lines'"),  # type: ignore[arg-type]
        (lambda: of_equal_size(SETS, 0), "at least 1 candidate a prompt, got 0"),
        (lambda: TransformersEmbedder("x", pooling="max"), "'mean' or 'cls', got 'max'"),
        (lambda: TransformersEmbedder("x", batch_size=0), "batch_size to be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


# -- all at once


def test_characteristics_holds_what_there_is() -> None:
    figures = characteristics(SETS)
    assert figures["distinct_2"] == pytest.approx((3 / 4 + 2 / 3) / 2) and figures["score_mean"] == pytest.approx(3.0)
    assert figures["candidates"] == 7 / 4 and figures["length_mean"] == pytest.approx(6.5 / 3)
    assert "length_tokens" not in figures and "embedding_spread" not in figures
    unscored = characteristics([answers("a b", "c d")])
    assert not {"score_mean", "score_best", "score_spread"} & unscored.keys()
    assert all(type(number) is float and math.isfinite(number) for number in {**figures, **unscored}.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchmetrics warns of a metric that was never updated
        assert characteristics([]) == {}


def test_characteristics_of_one_number_of_candidates() -> None:
    sets = [answers(*(f"{i} {j} w" for j in range(5)), prompt=str(i)) for i in range(30)] + [answers("a", "b")]
    three = of_equal_size(sets, 3)
    assert [len(candidate_set.candidates) for candidate_set in three] == [3] * 30
    turned = [replace(candidate_set, candidates=candidate_set.candidates[::-1]) for candidate_set in sets]
    assert [set(candidate_set.candidates) for candidate_set in of_equal_size(turned, 3)] == [
        set(candidate_set.candidates) for candidate_set in three
    ]
    firsts = sum(
        candidate_set.candidates[0] in kept.candidates for candidate_set, kept in zip(sets, three, strict=False)
    )
    assert 8 <= firsts <= 28  # 3 of 5 stay, whatever their place: 18 of 30 on average
    assert characteristics(sets, candidates=3) == characteristics(three)


def test_a_copy_does_not_draw_its_twin_along() -> None:
    twins = [answers("a", "a", "b", "c", prompt=str(i)) for i in range(200)]
    twin_pairs = sum(
        candidate_set.candidates[0].text == candidate_set.candidates[1].text
        for candidate_set in of_equal_size(twins, 2)
    )
    assert 20 <= twin_pairs <= 50  # one of the six pairs is the twins: 33 on average


# -- embeddings


class Letters(Embedder):
    """Counts of a, b and c."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float64)


def test_the_spread_of_embeddings() -> None:
    sets = [answers("a", "b", "aa"), answers("ab", "a", " ")]
    expected = ((1 + 0 + 1) / 3 + (1 - math.sqrt(0.5))) / 2  # the empty one is left out
    assert characteristics(sets, Letters())["embedding_spread"] == pytest.approx(expected)
    between = EmbeddingDifference(Letters())
    assert between(["", "a", "?"[:0], "b"]).tolist() == [[0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]
    assert between(["", ""]).tolist() == [[0, 0], [0, 0]]
    alike = answers("aab" * 3, "aab" * 7, "aab" * 11, "baa")  # one direction, up to rounding
    assert value(NearDuplicates(1.0, between), alike) == 1.0


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny_tokenizer(None)
    size: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(vocab_size=len(tokenizer), max_position_embeddings=24, intermediate_size=32, **size)
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_of_transformers_text_by_text(encoder_folder: Path, pooling: str) -> None:
    texts = ["a short one", "x", "one that is a good deal longer than the others are, " * 4]
    embeddings = TransformersEmbedder(str(encoder_folder), pooling=pooling, batch_size=2).embed(texts)
    model = BertModel.from_pretrained(encoder_folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoder_folder)
    for text, row in zip(texts, embeddings, strict=True):
        ids = tokenizer(text)["input_ids"][:24]  # no padding, cut at the model's positions
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        expected = states.mean(0) if pooling == "mean" else states[0]
        assert row == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        TransformersEmbedder(str(tmp_path))


# -- log-likelihoods


def test_the_spread_of_log_likelihoods() -> None:
    metric = LogLikelihoodSpread()
    metric.update([[-1.0, -3.0, None], [-2.0, NAN]])
    metric.update([[-1.0, -1.0]])
    assert float(metric.compute()) == 1.0


# -- two processes count what one would have counted


def many() -> list[CandidateSet]:
    draw = np.random.default_rng(1)
    vocabulary = list("abcdef")
    return [
        answers(
            *(" ".join(draw.choice(vocabulary, draw.integers(0, 7))) for _ in range(3)),
            scores=list(draw.normal(size=3)),
            prompt=str(i),
        )
        for i in range(15)
    ]


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metrics = Characteristics()
    metrics.update(many()[:9] if rank == 0 else many()[9:])
    alone = characteristics(many()[:2]) if rank == 0 else {}  # waits for nobody
    empty = Characteristics()
    empty.update(many() if rank == 0 else [])  # a rank may be left without prompts
    Path(folder, f"{rank}.json").write_text(json.dumps([metrics.figures(), empty.figures(), alone]))
    torch.distributed.destroy_process_group()


def test_two_processes_reduce_to_what_one_counts(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=one_of_two, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    expected = characteristics(many())
    for characteristics_ in (*first[:2], *second[:2]):
        assert characteristics_ == pytest.approx(expected, abs=1e-12)
    assert len(expected) > 12 and first[2] == characteristics(many()[:2])
