"""Finds changes that make a run fit its card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from lit_align.plan.setup import Setup
from lit_align.plan.simulate import FORWARD, PREFILL, REFERENCE_PASS, SAMPLING, Memory, is_of_bitsandbytes, simulate
from lit_align.policy.spec import LoraSpec

CUDA_CONTEXT = 1 << 29
"""About as many bytes as CUDA itself takes on a card."""

_Proposal = tuple[str, Setup]
"""A setting as on the command line, and the setup with it."""


@dataclass(frozen=True)
class Change:
    """One change of a configuration, on top of those before it.

    Args:
        setting: the setting, as on the command line.
        peak: bytes at the peak of the run with it.
    """

    setting: str
    peak: int


def fits(peak: int, card: int) -> bool:
    """Whether a run with a peak of `peak` bytes fits a card of `card` bytes."""
    return peak + CUDA_CONTEXT <= card


def changes_to_fit(
    setup: Setup, memory: Memory, card: int, simulate_setup: Callable[[Setup], Memory] = simulate
) -> list[Change]:
    """Changes to make, one on top of the other, until the run fits. The cheapest comes first.

    A change that does not lower the peak is left out. If no change known here makes the run fit, the only one returned
    is the nearest: all of them at once.

    Args:
        setup: the run.
        memory: the memory that it takes.
        card: bytes of the card.
        simulate_setup: computes the memory of a changed setup.
    """
    if fits(memory.peak, card):
        return []
    settings, smallest = _all_at_once(setup)
    least = simulate_setup(smallest).peak
    if not fits(least, card):
        return [Change(settings, least)] if least < memory.peak else []
    changes: list[Change] = []
    tried: set[tuple[str, str]] = set()
    while not fits(memory.peak, card):
        part = memory.largest_part
        proposal = next((proposal for proposal in _proposals(setup, part) if (part, proposal[0]) not in tried), None)
        if proposal is None:
            return [Change(settings, least)]
        setting, changed = proposal
        tried.add((part, setting))
        smaller = simulate_setup(changed)
        if smaller.peak < memory.peak:
            setup = changed
            memory = smaller
            changes.append(Change(setting, memory.peak))
    return changes


def _all_at_once(setup: Setup) -> _Proposal:
    """Makes all changes, each as far as it goes."""
    settings: dict[str, str] = {}
    for part in (FORWARD, SAMPLING):
        while proposal := next(_proposals(setup, part), None):
            setting, setup = proposal
            settings[setting.split(":")[0]] = setting
    return ", ".join(settings.values()), setup


def _proposals(setup: Setup, part: str) -> Iterator[_Proposal]:
    """Changes for the largest part of the run, the cheapest first."""
    if part in (PREFILL, SAMPLING):
        if setup.sequences > 1:
            half = setup.sequences // 2
            yield f"data.sampler.batch_size: {half}", replace(setup, sequences=half)
        yield from _smaller_states(setup)
        return
    trains = part != REFERENCE_PASS
    if trains and not setup.policy.gradient_checkpointing:
        yield _change_policy(setup, gradient_checkpointing=True)
    if setup.batch_size > 1:
        half = setup.batch_size // 2
        more = setup.accumulate * 2
        setting = f"data.batch_size: {half}, trainer.accumulate_grad_batches: {more}"
        yield setting, replace(setup, batch_size=half, accumulate=more)
    if trains and setup.policy.may_offload and setup.on_gpu:
        yield _change_policy(setup, gradient_checkpointing="offload")
    yield from _smaller_states(setup)
    if setup.completion_tokens > 128:
        half = setup.completion_tokens // 2
        yield f"data.max_completion_tokens: {half}", replace(setup, completion_tokens=half)


def _smaller_states(setup: Setup) -> Iterator[_Proposal]:
    """Changes that shrink states: 8-bit optimizer state, then adapters, then a base in bfloat16 and in 4 bits."""
    policy = setup.policy
    is_8bit = is_of_bitsandbytes(setup.optimizer([nn.Parameter(torch.empty(1, device="meta"))]))
    if not is_8bit and find_spec("bitsandbytes") is not None:
        yield "model.optimizer: bitsandbytes.optim.PagedAdamW8bit", replace(setup, optimizer=_adamw_8bit)
    if policy.lora is None and policy.adapter is None:
        own_copy = setup.reference_model == policy
        adapted = replace(setup, reference_model=None) if own_copy else setup
        yield "model.policy.lora.r: 16", replace(adapted, policy=replace(policy, lora=LoraSpec()))
        return
    if policy.dtype not in ("bfloat16", "float16"):
        yield _change_policy(setup, dtype="bfloat16")
    if policy.quantization is None:
        yield _change_policy(setup, quantization="nf4")


def _change_policy(setup: Setup, **change: Any) -> _Proposal:
    ((key, value),) = change.items()
    setting = f"model.policy.{key}: {str(value).replace('True', 'true')}"
    return setting, replace(setup, policy=replace(setup.policy, **change))


def _adamw_8bit(parameters: Iterable[nn.Parameter]) -> Any:
    from bitsandbytes.optim import PagedAdamW8bit

    return PagedAdamW8bit(parameters)
