"""The draw against the distribution that `generate` itself samples from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lit_align.sampling import draw
from lit_align.sampling.draw import Draw


def library(scores: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    ids = torch.zeros(len(scores), 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(ids, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    return scores.softmax(-1)


def ours(scores: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    tokens, probabilities = Draw(temperature, top_k, top_p).distribution(scores)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities if tokens is None else torch.zeros_like(scores).scatter_(-1, tokens, probabilities)


@pytest.mark.parametrize("first_look", [4, 256])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
@pytest.mark.parametrize("top_k", [0, 1, 7, 5000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_library_s_distribution(
    temperature: float, top_k: int, top_p: float, first_look: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "_FIRST_LOOK", first_look)
    scores = torch.randn(6, 1000) * torch.tensor([[0.1], [1], [2], [4], [8], [20]])
    scores[:, 17] = -torch.inf
    wanted = library(scores, temperature, top_k, top_p)
    torch.testing.assert_close(ours(scores, temperature, top_k, top_p), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.8)])
def test_tokens_are_drawn_as_often_as_they_are_likely(top_k: int, top_p: float) -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf, 1.5]])
    count = 20_000
    picked = Draw(1.0, top_k, top_p)(torch.zeros(count, 1), scores.expand(count, -1)).argmax(-1)
    seen = torch.bincount(picked, minlength=6) / count
    wanted = library(scores, 1.0, top_k, top_p)[0]
    assert ((seen - wanted).abs() <= 5 * (wanted * (1 - wanted) / count).sqrt()).all()


def test_one_token_is_left_in_each_row() -> None:
    left = Draw(1.0, 0, 0.9)(torch.zeros(4, 1), torch.randn(4, 50))
    assert (left == 0).sum(-1).tolist() == [1] * 4 and (left == -torch.inf).sum() == 4 * 49
