"""The interface of every sampler: prompts in, K candidates each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from lit_align.checks import require_at_least_1
from lit_align.records import Candidate, FinishReason


@dataclass(frozen=True)
class SamplingRequest:
    """The prompts to sample from, the policy to sample with, and how the candidates end.

    Args:
        model: the policy; its weights, gradients and train or eval modes are as before afterwards.
        tokenizer: decodes the sampled ids into text.
        prompt_ids: the token ids of each prompt, generation prompt included.
        seeds: one for each prompt. A prompt's candidates depend on its own seed, not on the prompts beside it; the
            global random state does not change.
        stop_ids: a candidate ends at the first of these ids (`FinishReason.STOP`).
        pad_id: the id that fills up shorter rows.
        num_candidates: candidates a prompt (K), at least 1; None takes the sampler's own number.
        progress: called with the number of candidates finished since the last call.

    Raises:
        ValueError: there are more or fewer seeds than prompts.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    prompt_ids: Sequence[Sequence[int]]
    seeds: Sequence[int]
    stop_ids: Sequence[int]
    pad_id: int
    num_candidates: int | None = None
    progress: Callable[[int], object] | None = None

    def __post_init__(self) -> None:
        if len(self.seeds) != len(self.prompt_ids):
            raise ValueError(f"expected one seed for each of {len(self.prompt_ids)} prompts, got {len(self.seeds)}")

    def report(self, finished: int) -> None:
        """Tells `progress`, if it is set, how many candidates have been finished since the last call."""
        if self.progress is not None:
            self.progress(finished)


class Sampler(ABC):
    """Draws candidates from a policy's current weights.

    Args:
        num_candidates: candidates a prompt (K), at least 1.

    Attributes:
        runs_policy: whether it runs the policy's own module. One that brings the policy's adapter elsewhere does not,
            and a policy that is sharded over devices need not be gathered for it.
    """

    runs_policy: bool = True

    def __init__(self, num_candidates: int = 4) -> None:
        require_at_least_1(num_candidates=num_candidates)
        self.num_candidates = num_candidates

    @property
    def why_alike(self) -> str | None:
        """Why the answers to a prompt can make no pair; None if they can."""
        return "num_candidates is 1" if self.num_candidates == 1 else None

    @abstractmethod
    def sample(self, request: SamplingRequest) -> list[tuple[Candidate, ...]]:
        """Samples K candidates for each prompt.

        Returns:
            One tuple of K candidates for each prompt, in the order of the prompts.
        """


class TokenSampler(Sampler):
    """A sampler that draws token by token; its arguments are the distribution that it draws from.

    Args:
        num_candidates: candidates a prompt (K), at least 1.
        temperature: divides the logits; 0 is greedy, and all K candidates are then the same.
        top_p: keep the most likely tokens that hold this share of the probability, in (0, 1].
        top_k: keep this many most likely tokens; 0 keeps all.
        min_new_tokens: no candidate ends before this many tokens; 1 forbids the empty answer.
        max_new_tokens: candidates are cut at this many tokens (`FinishReason.LENGTH`).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        num_candidates: int = 4,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_new_tokens: int = 1,
        max_new_tokens: int = 256,
    ) -> None:
        super().__init__(num_candidates)
        if not temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or above, got {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
        if top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or above, got {top_k}")
        if not 0 <= min_new_tokens <= max_new_tokens or max_new_tokens < 1:
            raise ValueError(
                f"expected 0 <= min_new_tokens <= max_new_tokens and 1 <= max_new_tokens, got {min_new_tokens} and "
                f"{max_new_tokens}"
            )
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.min_new_tokens = min_new_tokens
        self.max_new_tokens = max_new_tokens

    @property
    def why_alike(self) -> str | None:
        """See :attr:`Sampler.why_alike`."""
        return "temperature is 0, so that they are all the same" if self.temperature == 0 else super().why_alike

    def count_draws_and_copies(self, request: SamplingRequest) -> tuple[int, int]:
        """How many candidates to draw for each prompt, and how often to return each: greedy ones are all the same."""
        count = request.num_candidates or self.num_candidates
        return (1, count) if self.temperature == 0 else (count, 1)


def candidate_of_ids(ids: list[int], stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Candidate:
    """Makes a candidate of sampled ids, up to the first stop id, which stays in `token_ids` but not in the text."""
    stop = next((n for n, token in enumerate(ids) if token in stop_ids), None)
    kept = ids if stop is None else ids[: stop + 1]
    text = tokenizer.decode(
        kept if stop is None else kept[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    reason = FinishReason.LENGTH if stop is None else FinishReason.STOP
    return Candidate(str(text), finish_reason=reason, token_ids=tuple(kept))
