"""Runs training and sampling on the meta device and counts what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lit_align.float32_copies import copies_of, over_float32, take_gradients
from lit_align.plan.model import blank_rows, config_of, dtype_of, empty_policy, kernels_of, with_segments
from lit_align.plan.sampling import Samples, sample
from lit_align.plan.tracker import GRADIENTS, HEAD, OPTIMIZER, REFERENCE, MemoryTracker, hold_model, is_adapter
from lit_align.policy.attention import cheaper_attention
from lit_align.policy.head import token_logps
from lit_align.policy.outputs import logits_alone
from lit_align.policy.shared_logps import stopped_before
from lit_align.policy.shared_prompt import Mask, SharedRows, attention_mask, takes_mask
from lit_align.policy.spec import PolicySpec
from lit_align.sampling.draw import Draw

FORWARD, BACKWARD, STEP = "forward", "backward", "optimizer step"
PREFILL, SAMPLING, REFERENCE_PASS = "prefill", "sampling", "reference pass"


@dataclass(frozen=True)
class Setup:
    """What memory depends on.

    Args:
        policy: the model and how it is trained.
        optimizer: makes the optimizer of the trained parameters.
        batch_size: pairs a micro-batch.
        accumulate: micro-batches a step.
        prompt_tokens: of each row.
        completion_tokens: of each completion.
        completions: of each row: chosen, rejected and, for some losses, a target.
        precision: the Trainer's.
        reference_model: a second model that the policy is compared with; None for none.
        reference_adapter: whether a frozen copy of the adapter is kept.
        reference_stays: whether the second model is in memory while training.
        sequences: sampled at once; 0 where there is no sampler.
        candidates: the fewest that are sampled for a prompt: the fewer, the more prompts are computed together.
        new_tokens: drawn for each sequence at most.
        draw: draws them; None for greedy sampling.
        on_gpu: whether it runs on a GPU, where torch's optimizers work on all parameters at once, the host's memory is
            another, and attention and the LM head are computed in other ways than on a CPU.
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


@dataclass(frozen=True)
class Memory:
    """What a setup holds.

    Args:
        trained: parameters that the optimizer changes.
        frozen: all others, a quantised weight counted as one.
        moments: for each part of a run, bytes by item at its peak.
    """

    trained: int
    frozen: int
    moments: dict[str, dict[str, int]]

    @property
    def totals(self) -> dict[str, int]:
        """Bytes at the peak of each part of a run."""
        return {name: sum(items.values()) for name, items in self.moments.items()}

    @property
    def peak(self) -> int:
        """Bytes at the peak of the run."""
        return max(self.totals.values())


def simulate(setup: Setup) -> Memory:
    """The memory of a run, counted on the meta device from the model's config alone."""
    config = config_of(setup.policy)
    model = _in_precision(empty_policy(setup.policy, config, on_gpu=setup.on_gpu), setup.precision)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tracker = MemoryTracker(config.get_text_config().vocab_size)
    moments: dict[str, Counter[str]] = {}
    with tracker, kernels_of(setup.on_gpu):
        hold_model(tracker, model)
        reference = _reference(setup, tracker, model)
        if isinstance(reference, nn.Module) and not setup.reference_stays:
            moments[REFERENCE_PASS] = _reference_pass(setup, tracker, reference)
            reference = []
        optimizer = _train(setup, tracker, model, trained, moments)
        if setup.sequences:
            samples = Samples(setup.sequences, setup.candidates, setup.prompt_tokens, setup.new_tokens, setup.draw)
            moments[PREFILL], moments[SAMPLING] = sample(samples, tracker, model)
        if setup.reference_stays and isinstance(reference, nn.Module):
            moments[REFERENCE_PASS] = _reference_pass(setup, tracker, reference)
        del optimizer
    found = {name: {item: size for item, size in items.items() if size} for name, items in moments.items()}
    count = sum(parameter.numel() for parameter in trained)
    return Memory(count, _parameters(setup.policy, config) - (count if not _has_adapter(setup) else 0), found)


def _train(
    setup: Setup, tracker: MemoryTracker, model: Any, trained: list[nn.Parameter], moments: dict[str, Counter[str]]
) -> Any:
    """Two optimizer steps: in the second one its state is there. Gives the optimizer back.

    Lightning frees the gradients of a step after the forward of the next.
    """
    optimizer = over_float32(setup.optimizer, trained)
    for copy in copies_of(optimizer).values():
        tracker.hold(copy, OPTIMIZER)
    for _ in range(2):
        for micro_batch in range(min(setup.accumulate, 2)):
            tracker.restart()
            values = _forward(setup, tracker, model)
            _raise(moments, FORWARD, tracker)
            if micro_batch == 0:
                optimizer.zero_grad(set_to_none=True)
            tracker.restart()
            values.sum().backward()
            del values
            with tracker.item(GRADIENTS):
                take_gradients(optimizer)
            _raise(moments, BACKWARD, tracker)
        tracker.restart()
        _step(setup, optimizer, tracker)
        _raise(moments, STEP, tracker)
    return optimizer


def _raise(moments: dict[str, Counter[str]], name: str, tracker: MemoryTracker) -> None:
    if name not in moments or tracker.peak.total() > moments[name].total():
        moments[name] = tracker.peak


def _forward(setup: Setup, tracker: MemoryTracker, model: Any) -> Tensor:
    """The log-probs of all completion tokens, by the layout that training uses; see `lit_align.policy.forward`."""
    batch, prompt, length, count = (
        setup.batch_size,
        setup.prompt_tokens,
        setup.completion_tokens,
        setup.completions,
    )
    shares = takes_mask(model.config) and setup.policy.attn_implementation in (None, "sdpa", "eager")
    rows, width = (batch, prompt + count * length) if shares else (batch * count, prompt + length)
    layout = blank_rows(rows, width)
    mask = attention_mask(layout, model.config, dtype_of(model)) if shares else None
    head = model.get_output_embeddings()
    with stopped_before(head) as hidden, _attention(setup, model, layout, mask):
        model(
            input_ids=layout.ids,
            attention_mask=mask,
            position_ids=layout.positions,
            use_cache=False,
            **logits_alone(model.config),
        )
    tokens = torch.empty(batch * count * length, dtype=torch.long, device="meta")
    gathered = hidden[0][tokens, tokens]
    with tracker.item(HEAD):
        return token_logps(gathered, tokens, head, model.config)[0]


def _attention(
    setup: Setup, model: nn.Module, layout: SharedRows, mask: Mask | dict[str, Mask] | None
) -> AbstractContextManager[None]:
    if setup.on_gpu or mask is None:
        return nullcontext()
    layout = with_segments(layout, setup.prompt_tokens, *[setup.completion_tokens] * setup.completions)
    return cheaper_attention(model, layout, mask)


def _step(setup: Setup, optimizer: Any, tracker: MemoryTracker) -> None:
    """Makes the optimizer's state, by the optimizer itself where it runs on the meta device."""
    if type(optimizer).__module__.startswith("bitsandbytes"):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                _bitsandbytes_state(optimizer, group, parameter, tracker)
        return
    for group in optimizer.param_groups:
        if setup.on_gpu and "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True  # what torch takes on a GPU: faster, with a temporary copy of a whole state
    with tracker.item(OPTIMIZER):
        optimizer.step()


def _bitsandbytes_state(optimizer: Any, group: dict[str, Any], parameter: Tensor, tracker: MemoryTracker) -> None:
    """Two states of 8 bits and a scale of 256 values for each; of 32 bits in small tensors."""
    if optimizer.state[parameter]:
        return
    bits, smallest = optimizer.args.optim_bits, optimizer.args.min_8bit_size
    quantised = bits == 8 and parameter.numel() >= smallest
    states = 1 if type(optimizer).__mro__[1].__name__ == "Optimizer1State" else 2
    for n in range(1, states + 1):
        made = {f"state{n}": torch.empty_like(parameter, dtype=torch.uint8 if quantised else torch.float32)}
        if quantised:
            made[f"absmax{n}"] = torch.empty(-(-parameter.numel() // 256), device="meta")
        for value in made.values():
            tracker.hold(value, OPTIMIZER)
        optimizer.state[parameter].update(made)


def _reference(setup: Setup, tracker: MemoryTracker, model: nn.Module) -> nn.Module | list[Tensor]:
    """A second model, or the copies of the adapter's weights, if any."""
    if setup.reference_model is None:
        copied = [p for name, p in model.named_parameters() if setup.reference_adapter and is_adapter(name)]
        copies = [torch.empty_like(parameter) for parameter in copied]
        for each in copies:
            tracker.hold(each, REFERENCE)
        return copies
    config = config_of(setup.reference_model)
    reference = _in_precision(empty_policy(setup.reference_model, config, trainable=False), setup.precision)
    hold_model(tracker, reference, REFERENCE)
    return reference


@torch.no_grad()
def _reference_pass(setup: Setup, tracker: MemoryTracker, reference: nn.Module) -> Counter[str]:
    tracker.restart()
    _forward(setup, tracker, reference)
    return tracker.peak


def _in_precision(model: nn.Module, precision: str) -> nn.Module:
    """As the Trainer's plugins do it: "true" half precision casts the weights, all else leaves them."""
    halves = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    return model.to(halves[precision]) if precision in halves else model


def _has_adapter(setup: Setup) -> bool:
    return setup.policy.lora is not None or setup.policy.adapter is not None


def _parameters(spec: PolicySpec, config: PretrainedConfig) -> int:
    """Of the bare base, before quantisation."""
    plain = replace(spec, quantization=None, lora=None, adapter=None, gradient_checkpointing=False)
    return sum(parameter.numel() for parameter in empty_policy(plain, config).parameters())
