"""Draws the next token, without sorting the vocabulary and without a random generator's state."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

_BLOCK = 256
"""Tokens whose probabilities are added up before one of them is looked for."""
_GOLDEN = -0x61C8864680B583EB
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15
"""SplitMix64's constants (Steele, Lea, Flood 2014), as signed numbers."""


class Draw(LogitsProcessor):
    """Draws each row's next token.

    The distribution is that of `generate` with `do_sample` (temperature, then top-k, then top-p), except that tokens
    as likely as the last one of a nucleus are all in it. `generate` sorts the whole vocabulary to find the nucleus.
    Here a token is drawn from the whole vocabulary; if it lies outside the nucleus, it is drawn again from the tokens
    more likely than itself.

    The random numbers are counter-based: a row's token depends on its key and on the number of tokens that it has,
    not on the rows beside it or on earlier draws.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep this many most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens that hold this share of the probability, in (0, 1].
        keys: for use in `generate`: [B] int64, each row's own; by default 0, 1, ...
        start: for use in `generate`: the tokens of a row before the first drawn one, padding included.
    """

    def __init__(
        self, temperature: float, top_k: int, top_p: float, keys: Tensor | None = None, start: int = 0
    ) -> None:
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self._keys = keys
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V] scores in, [B, V] out: 0 at the drawn token, minus infinity elsewhere, for a greedy `generate`."""
        keys = torch.arange(len(scores), device=scores.device) if self._keys is None else self._keys
        tokens = self.tokens(scores, keys, torch.full_like(keys, input_ids.shape[1] - self._start))
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)

    def tokens(self, scores: Tensor, keys: Tensor, steps: Tensor) -> Tensor:
        """Draws a token for each row, [B] int64.

        Args:
            scores: [B, V] logits; minus infinity forbids a token. A row without a finite logit, or with NaN, draws a
                token that means nothing: see :func:`usable`.
            keys: [B] int64, each row's own.
            steps: [B] int64, how many tokens each row has drawn before.
        """
        if self.temperature == 0:
            return scores.argmax(-1)
        logits = scores.float() / self.temperature
        if self.top_k:
            kept, tokens = logits.topk(min(self.top_k, logits.shape[-1]))
            place = _pick(self._nucleus_of_sorted(kept.softmax(-1)), _mixed(keys, steps, 0))
            return tokens.gather(-1, place[:, None])[:, 0]
        probabilities = logits.softmax(-1)
        token = _pick(probabilities, _mixed(keys, steps, 0))
        return token if self.top_p == 1 else self._inside(probabilities, token, keys, steps)

    def _nucleus_of_sorted(self, probabilities: Tensor) -> Tensor:
        """Probabilities in falling order, with those behind the nucleus at 0; the most likely one is always kept."""
        before = probabilities.cumsum(-1) - probabilities
        return probabilities.masked_fill(before >= self.top_p, 0.0) if self.top_p < 1 else probabilities

    def _inside(self, probabilities: Tensor, tokens: Tensor, keys: Tensor, steps: Tensor) -> Tensor:
        """Draws again for the rows whose token is outside of the nucleus.

        A token is inside if the likelier ones hold less than `top_p`. If it is outside, so are all that are no
        likelier; the next draw leaves those out and keeps the whole nucleus, so the token that is inside in the end
        has the nucleus's distribution.
        """
        # A token above 1 - top_p leaves less than top_p to all others: most rows are done here.
        open_rows = (probabilities.gather(-1, tokens[:, None])[:, 0] <= 1 - self.top_p).nonzero()[:, 0]
        remaining = probabilities[open_rows]
        turn = 0
        while len(open_rows):
            likelier = remaining * (remaining > remaining.gather(-1, tokens[open_rows, None]))
            outside = likelier.sum(-1) >= self.top_p
            open_rows = open_rows[outside]
            remaining = likelier[outside]
            turn = turn + 1
            tokens[open_rows] = _pick(remaining, _mixed(keys[open_rows], steps[open_rows], turn))
        return tokens


def usable(scores: Tensor) -> Tensor:
    """[B] bool: whether a token can be drawn from each row of [B, V] logits. NaN and plus infinity forbid it."""
    return scores.amax(-1).isfinite()


def _mixed(keys: Tensor, steps: Tensor, turn: int) -> Tensor:
    """64 random bits for each row, [B] int64: SplitMix64's mixing of the key, then of the step and the turn."""
    return _mix(_mix(keys) + (steps * 64 + turn))


def _mix(numbers: Tensor) -> Tensor:
    numbers = numbers + _GOLDEN
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shifts to the right and fills in zeros from the left."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _pick(weights: Tensor, bits: Tensor) -> Tensor:
    """Picks a column for each row, with a chance proportional to its weight; [B] int64.

    A block of columns is drawn first and a column of it second, each with 32 of the random bits: one pass over the
    weights, while a running sum over all of them would take several.

    Args:
        weights: [B, N], not negative.
        bits: [B] int64, random.
    """
    count = weights.shape[1]
    whole = count // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(1, (whole // _BLOCK, _BLOCK)).sum(-1)
    sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], 1)
    block = _of_running_sum(sums, _shifted(bits, 32))
    columns = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, columns.clamp(max=count - 1)).masked_fill(columns >= count, 0.0)
    return block * _BLOCK + _of_running_sum(inside, bits & 0xFFFFFFFF)


def _of_running_sum(weights: Tensor, bits: Tensor) -> Tensor:
    """The first column at which the running sum of [B, n] weights passes `bits` / 2^32 of the total.

    Its weight is never 0.
    """
    running = weights.cumsum(-1, dtype=torch.float64)
    target = (bits[:, None].double() / 2**32) * running[:, -1:]
    return torch.searchsorted(running, target, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)
