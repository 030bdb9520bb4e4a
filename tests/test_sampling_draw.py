"""The draw against the distribution that `generate` itself samples from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lit_align.sampling import draw as module
from lit_align.sampling.draw import Draw, usable


def library(scores: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    ids = torch.zeros(len(scores), 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(ids, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    return scores.softmax(-1)


def drawn(scores: Tensor, draw: Draw, count: int) -> Tensor:
    """The share of `count` draws that each token of each row got, [B, V]."""
    keys, steps = torch.arange(count), torch.zeros(count, dtype=torch.long)
    rows = [draw.tokens(row.expand(count, -1), keys + count * n, steps) for n, row in enumerate(scores)]
    return torch.stack([torch.bincount(row, minlength=scores.shape[1]) for row in rows]) / count


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
@pytest.mark.parametrize("top_k", [0, 1, 7, 5000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_library_s_distribution(temperature: float, top_k: int, top_p: float) -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 600) * torch.tensor([[0.1], [2], [8]])
    scores[:, 17] = -torch.inf
    wanted, count = library(scores, temperature, top_k, top_p), 4000
    shares = drawn(scores, Draw(temperature, top_k, top_p), count)
    assert (shares[wanted == 0] == 0).all(), "nothing outside of what is kept"
    off = (shares - wanted) / (wanted * (1 - wanted) / count).sqrt().clamp(min=1 / count)
    assert off.abs().max() < 5.5
    # a distribution that is right in each token is right in sums of them
    halves = (shares[:, :300].sum(-1) - wanted[:, :300].sum(-1)).abs()
    assert (halves < 5 * 0.5 / count**0.5).all()


def test_a_nucleus_of_a_flat_distribution() -> None:
    """Rows that reject many tokens before they are inside: 1/20 of 2,000 tokens that hardly differ."""
    scores = torch.linspace(0, 0.01, 2000)[None]
    shares = drawn(scores, Draw(1.0, 0, 0.05), 5000)[0]
    kept = library(scores, 1.0, 0, 0.05)[0] > 0
    assert shares[~kept].sum() == 0 and 98 <= int(kept.sum()) <= 101
    quarters = shares[kept][-96:].view(4, 24).sum(-1)
    assert ((quarters - 0.24).abs() < 5 * (0.24 * 0.76 / 5000) ** 0.5 + 0.01).all()


@pytest.mark.parametrize("size", [1, 255, 256, 257, 700])
def test_each_token_in_turn_is_found_where_it_alone_is_possible(size: int) -> None:
    scores = torch.full((size, size), -torch.inf).fill_diagonal_(-3.0)
    for top_k, top_p in ((0, 1.0), (0, 0.9), (5, 0.9)):
        keys = torch.arange(size)
        assert Draw(1.0, top_k, top_p).tokens(scores, keys, keys).tolist() == keys.tolist()


def test_a_draw_depends_on_its_key_and_its_step_alone() -> None:
    torch.manual_seed(1)
    draw, scores = Draw(1.0, 0, 0.95), torch.randn(1, 5000).expand(64, -1)
    keys, steps = torch.arange(64) * 2**57, torch.arange(64) % 4
    together = draw.tokens(scores, keys, steps)
    alone = [int(draw.tokens(scores[:1], keys[i : i + 1], steps[i : i + 1])) for i in range(64)]
    assert together.tolist() == alone and len(set(alone)) > 55
    assert draw.tokens(scores, keys, steps + 1).tolist() != alone


def test_random_bits_are_splitmix64_s() -> None:
    """The first outputs of the published generator from the state 1234567."""
    state = torch.tensor([1234567]) + torch.arange(3) * module._GOLDEN
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [number % 2**64 for number in module._mix(state).tolist()] == wanted


def test_rows_that_cannot_be_drawn_from_are_told() -> None:
    scores = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf], [torch.nan, 0.0], [torch.inf, 0.0]])
    assert usable(scores).tolist() == [True, False, False, False]


def test_one_token_is_left_in_each_row_for_generate() -> None:
    scores, keys = torch.randn(4, 50), torch.tensor([9, 8, 7, 6])
    left = Draw(1.0, 0, 0.9, keys, start=3)(torch.zeros(4, 5), scores)
    assert (left == 0).sum(-1).tolist() == [1] * 4 and (left == -torch.inf).sum() == 4 * 49
    assert torch.equal(left.argmax(-1), Draw(1.0, 0, 0.9).tokens(scores, keys, torch.full((4,), 2)))
