"""How likely a model finds candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lit_align.batch import Padded
from lit_align.data.encoder import Encoder
from lit_align.policy.logps import sequence_logps
from lit_align.policy.modes import in_eval_mode
from lit_align.records import CandidateSet


@torch.no_grad()
def mean_logps(
    model: nn.Module, encoder: Encoder, sets: Sequence[CandidateSet], batch_size: int = 8
) -> list[list[float]]:
    """The per-token mean log-likelihood of each candidate under a model, in nats.

    For :class:`lit_align.metrics.LogLikelihoodSpread`. Limits of the encoder do not drop anything here; a prompt is
    cut where `too_long` says so.

    Args:
        model: a causal language model of transformers, or one wrapped by peft.
        encoder: of the model's tokenizer.
        sets: prompts with their candidates.
        batch_size: candidates at once; batches are sorted by length.

    Returns:
        A list for each prompt: a value for each candidate; NaN where a candidate has no token.
    """
    device = next(model.parameters()).device
    rows = [
        (encoder.encode_prompt(one.prompt), encoder.encode_completion(candidate, one.prompt))
        for one in sets
        for candidate in one.candidates
    ]
    means = [float("nan")] * len(rows)
    order = sorted((i for i, (_, ids) in enumerate(rows) if ids), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))
    with in_eval_mode(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            prompts = Padded.from_sequences([rows[i][0] for i in batch], encoder.pad_id).to(device)
            completions = Padded.from_sequences([rows[i][1] for i in batch], encoder.pad_id).to(device)
            logps = sequence_logps(model, prompts, completions)
            for i, mean in zip(batch, (logps.sum() / logps.lengths).tolist(), strict=True):
                means[i] = mean
    rest = iter(means)
    return [[next(rest) for _ in one.candidates] for one in sets]
