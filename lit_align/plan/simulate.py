"""Runs training and sampling without computing, and counts the memory that they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode

from lit_align.batch import Padded
from lit_align.plan.policy import count_frozen, empty_policy
from lit_align.plan.sampling import sample
from lit_align.plan.setup import Setup
from lit_align.plan.tracker import GRADIENTS, OPTIMIZER, REFERENCE, MemoryTracker, is_adapter
from lit_align.policy.forward import CompletionForward
from lit_align.training.float32_copies import copies_of, over_float32

FORWARD = "forward"
BACKWARD = "backward"
STEP = "optimizer step"
PREFILL = "prefill"
SAMPLING = "sampling"
REFERENCE_PASS = "reference pass"


@dataclass(frozen=True)
class Memory:
    """The memory that a run with some setup holds.

    Args:
        trained: number of parameters that the optimizer changes.
        frozen: number of all others; a quantised weight counts as one.
        moments: bytes by item at the peak of each part of the run.
    """

    trained: int
    frozen: int
    moments: dict[str, dict[str, int]]

    @property
    def totals(self) -> dict[str, int]:
        """Bytes at the peak of each part of a run."""
        return {name: sum(items.values()) for name, items in self.moments.items()}

    @property
    def largest_part(self) -> str:
        """The part of the run with the highest peak."""
        return max(self.totals, key=lambda name: self.totals[name])

    @property
    def peak(self) -> int:
        """Bytes at the peak of the run."""
        return self.totals[self.largest_part]


def simulate(setup: Setup, progress: Callable[[], object] = lambda: None) -> Memory:
    """Computes the memory of a run from the model's config.

    Args:
        setup: the run.
        progress: called after each part of the run.
    """
    model = empty_policy(setup.policy, setup.precision)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _make_optimizer(setup, trained)
    vocabulary: int = model.config.get_text_config().vocab_size  # type: ignore[union-attr,operator]
    tracker = MemoryTracker("meta" if setup.on_gpu else "cpu", vocabulary)
    run = _Run(setup, tracker, progress)
    with tracker, _GpuAttention() if setup.on_gpu else nullcontext():
        tracker.hold_model(model)
        for whole in copies_of(optimizer).values():
            tracker.hold(whole, OPTIMIZER)
        reference = run.make_reference(model)
        if isinstance(reference, nn.Module) and not setup.reference_stays:
            run.pass_reference(reference)
            reference = []
        run.train(model, optimizer)
        if setup.sequences:
            run.sample(model)
        if isinstance(reference, nn.Module):
            run.pass_reference(reference)
    moments = {name: dict(+items) for name, items in run.moments.items()}  # `+` leaves out items of 0 bytes
    return Memory(sum(parameter.numel() for parameter in trained), count_frozen(model), moments)


class _Run:
    """The parts of a run; each method records the peak of its part in `moments`."""

    def __init__(self, setup: Setup, tracker: MemoryTracker, progress: Callable[[], object]) -> None:
        self.moments: dict[str, Counter[str]] = {}
        self._setup = setup
        self._tracker = tracker
        self._progress = progress
        self._forward = CompletionForward()

    def make_reference(self, model: nn.Module) -> nn.Module | list[Tensor]:
        """Makes the second model, or the copies of the adapter's weights, if there are any."""
        if self._setup.reference_model is None:
            copied = [p for name, p in model.named_parameters() if self._setup.reference_adapter and is_adapter(name)]
            with self._tracker.counting_as(REFERENCE):
                return [torch.empty_like(parameter) for parameter in copied]
        reference = empty_policy(self._setup.reference_model, self._setup.precision).requires_grad_(False).eval()
        self._tracker.hold_model(reference, REFERENCE)
        return reference

    @torch.no_grad()
    def pass_reference(self, reference: nn.Module) -> None:
        with self._part(REFERENCE_PASS):
            self._logps(reference, self._setup.batch_size)

    def train(self, model: nn.Module, optimizer: Any) -> None:
        """Runs a step of one pair, which leaves gradients and the optimizer's state, and a full one.

        Lightning frees the gradients of a step after the forward of the next; other micro-batches add to them.
        """
        with self._part(FORWARD):  # begins with the check whether the model takes shared rows
            total = self._logps(model, pairs=1)
        self._add_gradients(total, optimizer)
        self._step(optimizer)
        with self._part(FORWARD):
            total = self._logps(model, self._setup.batch_size)
        if self._setup.accumulate == 1:
            optimizer.zero_grad(set_to_none=True)
        with self._part(BACKWARD):
            self._add_gradients(total, optimizer)
            del total
        with self._part(STEP):
            self._step(optimizer)

    def sample(self, model: nn.Module) -> None:
        """Samples the last token of each row of a batch, and computes the prompts of the next batch."""
        sampling, prefill = sample(self._setup, self._tracker, model, self._progress)
        self.moments |= {PREFILL: prefill, SAMPLING: sampling}

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        self._tracker.restart()
        yield
        if name not in self.moments:
            self._progress()
        self.moments[name] = max(self.moments.get(name, Counter()), self._tracker.peak, key=Counter.total)

    def _logps(self, model: Any, pairs: int) -> Tensor:
        """The sum of their log-probs."""
        setup = self._setup
        lengths = (setup.prompt_tokens, setup.completion_tokens)
        masks = [torch.ones(pairs, length, dtype=torch.bool, device="meta") for length in lengths]
        prompt, completion = (Padded(mask.long(), mask) for mask in masks)
        with self._tracker.watching(model):
            logps = self._forward(model, prompt, [completion] * setup.completions)
        return torch.stack([of_completion.sum().sum() for of_completion in logps]).sum()

    def _add_gradients(self, total: Tensor, optimizer: Any) -> None:
        _backward(total)
        with self._tracker.counting_as(GRADIENTS):
            _take_gradients(optimizer)

    def _step(self, optimizer: Any) -> None:
        """Steps the optimizer. For bitsandbytes' it only makes the state: their step takes no more memory."""
        with self._tracker.counting_as(OPTIMIZER):
            if not _is_of_bitsandbytes(optimizer):
                optimizer.step()
                return
            for g, group in enumerate(optimizer.param_groups):
                for p, parameter in enumerate(group["params"]):
                    if not optimizer.state[parameter]:
                        optimizer.init_state(group, parameter, g, p)


def _make_optimizer(setup: Setup, trained: list[nn.Parameter]) -> Any:
    """Makes the optimizer, set to behave on the meta device as on a real one."""
    optimizer: Any = over_float32(setup.optimizer, trained)
    if _is_of_bitsandbytes(optimizer):
        optimizer.is_paged = False  # all of the state counts
        optimizer.name2qmap = {name: qmap.to("meta") for name, qmap in optimizer.name2qmap.items()}
    for group in optimizer.param_groups:
        if setup.on_gpu and "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True  # torch's choice on a GPU: faster, with a temporary copy of a whole state
    return optimizer


def _is_of_bitsandbytes(optimizer: Any) -> bool:
    return type(optimizer).__module__.startswith("bitsandbytes")


def _take_gradients(optimizer: Any) -> None:
    """Does the same as `training.float32_copies.take_gradients`.

    torch refuses a planned tensor on a CPU as the gradient of a weight on the meta device.
    """
    for parameter, copy in copies_of(optimizer).items():
        if parameter.grad is not None:
            gradient: Tensor = parameter.grad.float()
            parameter.grad = None
            if copy.grad is None:
                copy.grad = getattr(gradient, "content", gradient)


def _backward(total: Tensor) -> None:
    """Does the same as `total.backward()`, which would switch off function modes in recomputed layers."""
    options = {"allow_unreachable": True, "accumulate_grad": True}
    _engine_run_backward((total,), (torch.ones_like(total),), False, False, (), **options)


class _GpuAttention(TorchFunctionMode):
    """Makes attention use the fused kernel, as on GPUs; the meta device would take the unfused one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        attention = _attention if func is F.scaled_dot_product_attention else func
        return attention(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # torch, too, makes it again in each layer
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = attention(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return output
