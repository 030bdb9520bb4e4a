"""The sampler that is the policy itself, as `transformers` runs it."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from lit_align.checks import require_at_least_1
from lit_align.console import note
from lit_align.policy.load import position_limit
from lit_align.policy.modes import in_eval_mode
from lit_align.records import Candidate
from lit_align.sampling.base import SamplingRequest, TokenSampler, candidate_of_ids
from lit_align.sampling.decode import (
    CandidateRequest,
    FinishedCandidates,
    Limits,
    can_share,
    sample_plain,
    sample_shared,
)
from lit_align.sampling.draw import Draw
from lit_align.seeding import derive_seed


class TransformersSampler(TokenSampler):
    """Samples with a KV cache from the policy as it is, adapters unmerged.

    The model's own `generation_config` has no effect: only the arguments here decide how tokens are drawn.

    A prompt is computed once for all of its candidates, a finished candidate leaves the batch, and others take the
    free places. Models that keep more than keys and values (Mamba, RWKV, chunked attention) are sampled batch by batch
    with `generate`. A GPU that runs out of memory gets half of the batch; the candidates stay the same.

    Args:
        num_candidates: candidates a prompt (K), at least 1.
        batch_size: candidates sampled at once. The candidates depend on it only through rounding.
        kwargs: those of :class:`~lit_align.sampling.base.TokenSampler`: how they are drawn.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> TransformersSampler(num_candidates=2, temperature=0.7).num_candidates
        2
    """

    def __init__(self, num_candidates: int = 4, *, batch_size: int = 32, **kwargs: Any) -> None:
        super().__init__(num_candidates, **kwargs)
        require_at_least_1(batch_size=batch_size)
        self.batch_size = batch_size
        self._max_rows = batch_size  # less once the memory has run out

    def sample(self, request: SamplingRequest) -> list[tuple[Candidate, ...]]:
        """See :meth:`Sampler.sample`.

        Raises:
            FloatingPointError: the policy's logits are NaN or infinite.
            ValueError: a prompt and the longest answer are more than the rows of the model's table of positions.
            torch.OutOfMemoryError: a single candidate does not fit.
        """
        num_draws, copies = self.count_draws_and_copies(request)
        requests = _requests_by_length(request, num_draws)
        draw = Draw(self.temperature, self.top_k, self.top_p)
        stop_ids = tuple(request.stop_ids)
        limits = Limits(draw, stop_ids, request.pad_id, self.min_new_tokens, self.max_new_tokens)
        candidates: dict[tuple[int, int], Candidate] = {}
        with undisturbed(request.model) as generator:
            self._require_room(generator, request)
            for candidate, ids in self._sample_until_done(generator, requests, limits):
                candidates[candidate.place] = candidate_of_ids(ids, stop_ids, request.tokenizer)
                request.report(copies)
        return [tuple(candidates[i, j] for j in range(num_draws)) * copies for i in range(len(request.prompt_ids))]

    def _require_room(self, generator: Any, request: SamplingRequest) -> None:
        limit, must_fail = position_limit(generator.config)
        longest = max(map(len, request.prompt_ids), default=0)
        if limit is not None and must_fail and longest + self.max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {longest} tokens and an answer of up to {self.max_new_tokens} (max_new_tokens) are more "
                f"than the {limit} positions of the model: at most {max(limit - longest, 0)} new tokens go with it"
            )

    def _sample_until_done(
        self, generator: Any, requests: Sequence[CandidateRequest], limits: Limits
    ) -> FinishedCandidates:
        """Yields candidates as they are finished. Those under way when the memory runs out are drawn again."""
        sample = sample_shared if can_share(generator) else sample_plain
        waiting = {request.place: request for request in requests}
        while True:
            size = max(1, min(self._max_rows, len(waiting)))
            try:
                for request, ids in sample(generator, list(waiting.values()), size, limits):
                    del waiting[request.place]
                    yield request, ids
                return
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self._max_rows = size // 2
                note(
                    f"out of memory while sampling {size} candidates at once: {self._max_rows} at once from here on, "
                    f"with the same candidates. A data.sampler.batch_size of {self._max_rows} starts with that"
                )
            gc.collect()  # only here: inside `except` the error still holds the computed tensors
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _requests_by_length(sampling: SamplingRequest, num_draws: int) -> list[CandidateRequest]:
    """The candidates to draw, longest prompts first: there is little padding, and memory runs out at once or never."""
    prompts = sampling.prompt_ids
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    requests = []
    for i in order:
        for j in range(num_draws):
            requests.append(CandidateRequest(i, j, prompts[i], derive_seed(sampling.seeds[i], "draw", j)))
    return requests


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Any]:
    """Gives the model to call `generate` on, in eval mode and with a blank `generation_config`; restores both.

    The base model of a PEFT model has the adapter's layers in it, so it is the adapted policy.
    Eval mode also keeps the KV cache on when gradient checkpointing would switch it off.
    """
    policy: Any = model
    generator = policy.get_base_model() if hasattr(model, "get_base_model") else policy
    own = generator.generation_config
    generator.generation_config = GenerationConfig()
    head = generator.get_output_embeddings()
    hook = head.register_forward_pre_hook(_make_contiguous) if head is not None else None
    try:
        with in_eval_mode(model), torch.no_grad():  # not inference_mode: its tensors fail in a later backward
            yield generator
    finally:
        generator.generation_config = own
        if hook is not None:
            hook.remove()


def _make_contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies the head's inputs into memory without gaps.

    After the prompt the head gets every row's last position, which is a view with gaps; for such a view torch's matrix
    product on a CPU copies the head's weights once for each row.
    """
    return tuple(tensor.contiguous() for tensor in inputs)
