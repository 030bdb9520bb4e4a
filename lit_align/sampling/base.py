"""What every sampler does: prompts in, K candidates each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from lit_align.records import Candidate


class Sampler(ABC):
    """Draws candidates from a policy's current weights.

    Args:
        num_candidates: candidates a prompt (K), at least 1.
    """

    def __init__(self, num_candidates: int = 4) -> None:
        if num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
        self.num_candidates = num_candidates

    @abstractmethod
    def sample(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Sequence[Sequence[int]],
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        seed: int,
        num_candidates: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> list[tuple[Candidate, ...]]:
        """Samples K candidates for each prompt.

        Args:
            model: the policy; its weights, gradients and train or eval modes are as before afterwards.
            tokenizer: decodes the sampled ids into text.
            prompt_ids: the token ids of each prompt, generation prompt included.
            stop_ids: a candidate ends at the first of these ids (`FinishReason.STOP`).
            pad_id: the id that fills up shorter rows.
            seed: the same seed draws the same candidates; the global random state is left alone.
            num_candidates: K for this call; None takes the sampler's own.
            progress: called with the number of candidates finished since the last call.

        Returns:
            One tuple of K candidates for each prompt, in the order of the prompts.
        """
