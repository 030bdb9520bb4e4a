"""Reads from a configured run all that its memory depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from lit_align.boundary import BoundaryCallback
from lit_align.data import AlignmentDataModule
from lit_align.judges import Judge
from lit_align.policy.reference import AdapterCopy, ModelReference
from lit_align.policy.spec import PolicySpec
from lit_align.report.win_rate import WinRateCallback
from lit_align.sampling import TransformersSampler
from lit_align.sampling.draw import Draw
from lit_align.training.module import AlignmentModule


@dataclass(frozen=True)
class Setup:
    """All that the memory of a run depends on.

    Args:
        policy: the model and how it is trained.
        optimizer: makes the optimizer of the trained parameters.
        batch_size: pairs a micro-batch.
        accumulate: micro-batches a step.
        prompt_tokens: tokens of each prompt.
        completion_tokens: tokens of each completion.
        completions: completions of each row: chosen, rejected and, for some losses, a target.
        precision: the Trainer's precision.
        reference_model: a second model that the policy is compared with; None without one.
        reference_adapter: whether a frozen copy of the adapter is kept.
        reference_stays: whether the second model is in memory while training.
        sequences: sequences sampled at once; 0 without a sampler.
        candidates: the fewest candidates sampled for a prompt: the fewer, the more prompts are computed together.
        new_tokens: the most tokens drawn for a sequence.
        draw: draws the tokens; None for greedy sampling.
        on_gpu: whether it runs on a GPU. There torch's optimizers work on all parameters at once, the host's memory
            does not count, and attention and the LM head are computed in other ways than on a CPU.
    """

    policy: PolicySpec
    optimizer: Callable[[Iterable[nn.Parameter]], Any]
    batch_size: int
    accumulate: int
    prompt_tokens: int
    completion_tokens: int
    completions: int = 2
    precision: str = "32-true"
    reference_model: PolicySpec | None = None
    reference_adapter: bool = False
    reference_stays: bool = False
    sequences: int = 0
    candidates: int = 1
    new_tokens: int = 0
    draw: Draw | None = None
    on_gpu: bool = False

    @property
    def parts(self) -> int:
        """The number of parts of the run that are planned one by one."""
        return 3 + (self.reference_model is not None) + 2 * (self.sequences > 0)


def setup_of(
    trainer: Trainer,
    module: AlignmentModule,
    data: AlignmentDataModule,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    on_gpu: bool = True,
) -> Setup:
    """Reads the setup of a run; nothing is loaded.

    Args:
        trainer: the run's Trainer, with the precision and the number of micro-batches a step.
        module: the alignment module, before `configure_model`.
        data: the data module, before `setup`.
        prompt_tokens: tokens of each prompt; None takes the data's limit.
        completion_tokens: tokens of each completion; None takes the data's limit.
        on_gpu: whether to plan for a GPU.

    Raises:
        ValueError: a length is set neither here nor as a limit in the data.
    """
    reference = module.reference
    sampler = data.sampler if isinstance(data.sampler, TransformersSampler) else None
    return Setup(
        policy=module.spec,
        optimizer=module.make_optimizer,
        batch_size=data.batch_size,
        accumulate=trainer.accumulate_grad_batches,
        prompt_tokens=_length("prompt", prompt_tokens, data.max_prompt_tokens),
        completion_tokens=_length("completion", completion_tokens, data.max_completion_tokens),
        completions=3 if module.loss.needs_target else 2,
        precision=str(trainer.precision),
        reference_model=reference.initial_spec(module.spec) if isinstance(reference, ModelReference) else None,
        reference_adapter=isinstance(reference, AdapterCopy),
        reference_stays=data.reference_cache is None or data.sampler is not None,
        on_gpu=on_gpu,
        **({} if sampler is None else _sampling(trainer, sampler)),
    )


def not_counted(trainer: Trainer, data: AlignmentDataModule, setup: Setup) -> list[str]:
    """Names the parts of a run's memory that the plan does not count."""
    notes = []
    if setup.precision.endswith("-mixed"):
        notes.append(f"{setup.precision}: activations are counted in the dtype of the weights, autocast's copies not")
    if any(judge.holds_model for judge in _with_parts(data.judge)):
        notes.append("the judge's model")
    if data.sampler is not None and not setup.sequences:
        notes.append(f"sampling with {type(data.sampler).__name__}")
    if trainer.world_size > 1:
        notes.append("buffers for the exchange between devices; nothing is counted as spread over devices")
    return notes


def _with_parts(judge: Judge | None) -> Iterator[Judge]:
    """Yields a judge and the judges that it is made of."""
    if judge is not None:
        yield judge
        for part in judge.parts:
            yield from _with_parts(part)


def _length(what: str, length: int | None, limit: int | None) -> int:
    length = length or limit
    if length is None:
        raise ValueError(
            f"how long is a {what}? The data's `max_{what}_tokens` is null: give --{what}_tokens, "
            "the longest that you expect"
        )
    return length


def _sampling(trainer: Trainer, sampler: TransformersSampler) -> dict[str, Any]:
    """Rounds, the boundary and the win rate each sample a number of candidates of their own: the fewest count."""
    counts = [sampler.num_candidates]
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, BoundaryCallback) and callback.num_candidates:
            counts.append(callback.num_candidates)
        elif isinstance(callback, WinRateCallback):
            counts.append(1)
    is_greedy = sampler.temperature == 0  # then a single candidate is drawn and stands for all
    return {
        "sequences": sampler.batch_size,
        "candidates": 1 if is_greedy else min(counts),
        "new_tokens": sampler.max_new_tokens,
        "draw": None if is_greedy else Draw(sampler.temperature, sampler.top_k, sampler.top_p),
    }
