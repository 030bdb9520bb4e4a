"""Drawing the next token, without sorting the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

_FIRST_LOOK = 256
"""Most likely tokens to look at first for a nucleus; more where they do not hold `top_p` in every row."""


class Draw(LogitsProcessor):
    """Draws each row's next token and leaves it the only possible one, for `generate` to pick greedily.

    The distribution is that of `generate` with `do_sample` (temperature, then top-k, then top-p). There a nucleus
    sorts the whole vocabulary and the draw takes one exponential number a token of it; here the most likely tokens
    are enough for the one, and one uniform number a row for the other. On a CPU that is most of the time between
    two tokens.

    Args:
        temperature: divides the logits, above 0.
        top_k: keep this many most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens that hold this share of the probability, in (0, 1].
    """

    def __init__(self, temperature: float, top_k: int, top_p: float) -> None:
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V] scores in, [B, V] out: 0 at the drawn token, minus infinity elsewhere."""
        tokens, probabilities = self.distribution(scores)
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        # A row's total is 1 only to rounding; the uniform number stays below it, so a token of probability 0 behind
        # the last possible one is never drawn.
        uniform = torch.rand(len(scores), 1, device=scores.device, dtype=torch.float64) * cumulative[:, -1:]
        place = torch.searchsorted(cumulative, uniform, right=True).clamp_(max=cumulative.shape[-1] - 1)
        drawn = place if tokens is None else tokens.gather(-1, place)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn, 0.0)

    def distribution(self, scores: Tensor) -> tuple[Tensor | None, Tensor]:
        """The tokens in question and their probabilities, both [B, n]; None stands for the whole vocabulary.

        Args:
            scores: [B, V] logits; minus infinity where a token is forbidden.
        """
        logits = scores.float() / self.temperature
        if self.top_k:
            kept, tokens = logits.topk(min(self.top_k, logits.shape[-1]))
            return tokens, self._nucleus(kept.softmax(-1))
        if self.top_p == 1:
            return None, logits.softmax(-1)
        return self._nucleus_of_all(logits)

    def _nucleus_of_all(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        size, total = _FIRST_LOOK, logits.logsumexp(-1, keepdim=True)
        while True:
            kept, tokens = logits.topk(min(size, logits.shape[-1]))
            probabilities = (kept - total).exp()
            if size >= logits.shape[-1] or bool((probabilities.sum(-1) >= self.top_p).all()):
                return tokens, self._nucleus(probabilities)
            size *= 4

    def _nucleus(self, probabilities: Tensor) -> Tensor:
        """Probabilities in falling order, with those behind the nucleus at 0; the most likely one is always kept."""
        before = probabilities.cumsum(-1) - probabilities
        return probabilities.masked_fill(before >= self.top_p, 0.0) if self.top_p < 1 else probabilities
