"""The sampler on top of `transformers`' own `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lit_align.records import Candidate, FinishReason
from lit_align.sampling.base import Sampler
from lit_align.sampling.draw import Draw
from lit_align.sampling.modes import in_eval_mode
from lit_align.seeding import derive_seed


class TransformersSampler(Sampler):
    """Samples with a KV cache from the policy as it is, adapters unmerged.

    The model's own `generation_config` is left out of it: what is drawn depends on the arguments
    here and on nothing that a checkpoint brought along.

    Args:
        num_candidates: candidates a prompt (K), at least 1.
        temperature: divides the logits; 0 is greedy, and all K candidates are then the same.
        top_p: keep the most likely tokens that hold this share of the probability, in (0, 1].
        top_k: keep this many most likely tokens; 0 keeps all.
        min_new_tokens: no candidate ends before this many tokens; 1 forbids the empty answer.
        max_new_tokens: candidates are cut at this many tokens (`FinishReason.LENGTH`).
        batch_size: sequences sampled at once; the same seed draws other candidates at another size.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> TransformersSampler(num_candidates=2, temperature=0.7).num_candidates
        2
    """

    def __init__(
        self,
        num_candidates: int = 4,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_new_tokens: int = 1,
        max_new_tokens: int = 256,
        batch_size: int = 32,
    ) -> None:
        super().__init__(num_candidates)
        _require(temperature >= 0, f"temperature must be 0 (greedy) or above, got {temperature}")
        _require(0 < top_p <= 1, f"top_p must be in (0, 1], got {top_p}")
        _require(top_k >= 0, f"top_k must be 0 (all tokens) or above, got {top_k}")
        _require(
            0 <= min_new_tokens <= max_new_tokens and max_new_tokens >= 1,
            f"expected 0 <= min_new_tokens <= max_new_tokens, got {min_new_tokens} and {max_new_tokens}",
        )
        _require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.min_new_tokens = min_new_tokens
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

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
        """See :meth:`Sampler.sample`."""
        wanted = num_candidates or self.num_candidates
        drawn = 1 if self.temperature == 0 else wanted  # greedy candidates are all the same
        # Longest prompts first: little padding in a batch, and memory runs out at once or never.
        order = sorted(range(len(prompt_ids)), key=lambda i: (-len(prompt_ids[i]), i))
        rows = [i for i in order for _ in range(drawn)]
        found: list[list[Candidate]] = [[] for _ in prompt_ids]
        with _undisturbed(model) as generator:
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                prompts = [prompt_ids[i] for i in batch]
                new_ids = self._generate(generator, prompts, stop_ids, pad_id, derive_seed(seed, "generate", start))
                for i, ids in zip(batch, new_ids.tolist(), strict=True):
                    found[i].append(_candidate(ids, stop_ids, tokenizer))
                if progress is not None:
                    progress(len(batch) * wanted // drawn)
        return [tuple(candidates * (wanted // drawn)) for candidates in found]

    def _generate(
        self, generator: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], pad_id: int, seed: int
    ) -> Tensor:
        """[B, new tokens] int64 on the CPU, filled up with `pad_id` behind a stop."""
        device = next(generator.parameters()).device
        ids, mask = left_padded(prompts, pad_id)
        with _seeded(device, seed):
            output = generator.generate(
                inputs=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._config(stop_ids, pad_id),
                logits_processor=[Draw(self.temperature, self.top_k, self.top_p)] if self.temperature > 0 else [],
            )
        return output[:, ids.shape[1] :].cpu()

    def _config(self, stop_ids: Sequence[int], pad_id: int) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,  # `Draw` samples
            min_new_tokens=self.min_new_tokens,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=pad_id,
            use_cache=True,
        )


def left_padded(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, both [B, T] int64, padded on the left so that all rows end at the same place."""
    width = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences])
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences])
    return ids, mask


def _candidate(ids: list[int], stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Candidate:
    """A sampled row up to its first stop id, which stays in `token_ids` and leaves the text."""
    stop = next((n for n, token in enumerate(ids) if token in stop_ids), None)
    kept = ids if stop is None else ids[: stop + 1]
    text = tokenizer.decode(
        kept if stop is None else kept[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    reason = FinishReason.LENGTH if stop is None else FinishReason.STOP
    return Candidate(str(text), finish_reason=reason, token_ids=tuple(kept))


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[Any]:
    """The model to call `generate` on, in eval mode and with a blank `generation_config`; all restored.

    The base model of a PEFT model has the adapter's layers in it, so it is the adapted policy.
    Eval mode also keeps the KV cache on where gradient checkpointing would switch it off.
    """
    policy: Any = model
    generator = policy.get_base_model() if hasattr(model, "get_base_model") else policy
    own = generator.generation_config
    generator.generation_config = GenerationConfig()
    head = generator.get_output_embeddings()
    hook = head.register_forward_pre_hook(_in_one_piece) if head is not None else None
    try:
        with in_eval_mode(model), torch.no_grad():  # not inference_mode: its tensors fail in a later backward
            yield generator
    finally:
        generator.generation_config = own
        if hook is not None:
            hook.remove()


def _in_one_piece(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """After the prompt the head gets every row's last position, a view with gaps, for which torch's matrix product
    on a CPU would copy the head's weights once for each row."""
    return tuple(one.contiguous() for one in inputs)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds the generators of the CPU and of `device`; both are as before afterwards."""
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
