"""Runs training and sampling without computing, and counts the memory that they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_align.batch import Padded
from lit_align.plan.policy import count_frozen, empty_policy
from lit_align.plan.sampling import sample
from lit_align.plan.setup import Setup
from lit_align.plan.tracker import GRADIENTS, OPTIMIZER, REFERENCE, MemoryTracker, is_adapter
from lit_align.policy.forward import CompletionForward
from lit_align.training.float32_copies import over_float32, take_gradients

FORWARD = "forward"
BACKWARD = "backward"
STEP = "optimizer step"
PREFILL = "prefill"
SAMPLING = "sampling"
REFERENCE_PASS = "reference pass"
_MAP_TO_8_BITS = torch.empty(256, device="meta")


@dataclass(frozen=True)
class Memory:
    """The memory that a run with some setup holds.

    Args:
        trained: number of parameters that the optimizer changes.
        frozen: number of all others.
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
        return max(self.totals.values())


def simulate(setup: Setup, progress: Callable[[], object] = lambda: None) -> Memory:
    """Computes the memory of a run from the model's config.

    Args:
        setup: the run.
        progress: called after each part of the run.
    """
    model = empty_policy(setup.policy, setup.precision)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vocabulary: int = model.config.get_text_config().vocab_size  # type: ignore[union-attr,operator]
    run = _Run(setup, MemoryTracker("meta" if setup.on_gpu else "cpu", vocabulary), progress)
    with run.tracker:
        run.tracker.hold_model(model)
        run.run(model, trained)
    moments = {name: dict(+items) for name, items in run.moments.items()}  # `+` leaves out items of 0 bytes
    return Memory(sum(parameter.numel() for parameter in trained), count_frozen(model), moments)


class _Run:
    """The parts of a run; each records the peak of its part in `moments`."""

    def __init__(self, setup: Setup, tracker: MemoryTracker, progress: Callable[[], object]) -> None:
        self.tracker = tracker
        self.moments: dict[str, Counter[str]] = {}
        self._setup = setup
        self._progress = progress
        self._forward = CompletionForward()

    def run(self, model: nn.Module, trained: list[nn.Parameter]) -> None:
        """Runs all parts, with the gradients and the optimizer's state that an earlier step has left."""
        setup = self._setup
        with self.tracker.counting_as(OPTIMIZER):
            optimizer = _make_optimizer(setup, trained)
        reference = self._make_reference(model)
        if isinstance(reference, nn.Module) and not setup.reference_stays:
            self._pass_reference(reference)
            reference = []
        with torch.no_grad(), self._part(FORWARD):  # checks whether the model takes shared rows
            self._logps(model, pairs=1)
        self._backward(torch.stack([parameter.sum().float() for parameter in trained]).sum(), optimizer)
        self._step(optimizer)
        self._train(model, optimizer)
        if setup.sequences:
            sampling, prefill = sample(setup, self.tracker, model, self._progress)
            self.moments |= {PREFILL: prefill, SAMPLING: sampling}
        if isinstance(reference, nn.Module):
            self._pass_reference(reference)

    def _make_reference(self, model: nn.Module) -> nn.Module | list[Tensor]:
        """Makes the second model, or the copies of the adapter's weights, if there are any."""
        if self._setup.reference_model is None:
            copied = [p for name, p in model.named_parameters() if self._setup.reference_adapter and is_adapter(name)]
            with self.tracker.counting_as(REFERENCE):
                return [torch.empty_like(parameter) for parameter in copied]
        reference = empty_policy(self._setup.reference_model, self._setup.precision).requires_grad_(False).eval()
        self.tracker.hold_model(reference, REFERENCE)
        return reference

    @torch.no_grad()
    def _pass_reference(self, reference: nn.Module) -> None:
        with self._part(REFERENCE_PASS):
            self._logps(reference, self._setup.batch_size)

    def _train(self, model: nn.Module, optimizer: Any) -> None:
        """Lightning frees the gradients of a step after the forward of the next; other micro-batches add to them."""
        with self._part(FORWARD):
            total = self._logps(model, self._setup.batch_size)
        if self._setup.accumulate == 1:
            optimizer.zero_grad(set_to_none=True)
        with self._part(BACKWARD):
            self._backward(total, optimizer)
            del total
        with self._part(STEP):
            self._step(optimizer)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        self.tracker.restart()
        yield
        if name not in self.moments:
            self._progress()
        self.moments[name] = max(self.moments.get(name, Counter()), self.tracker.peak, key=Counter.total)

    def _logps(self, model: Any, pairs: int) -> Tensor:
        """The sum of their log-probs."""
        masks = [
            torch.ones(pairs, length, dtype=torch.bool, device="meta")
            for length in (self._setup.prompt_tokens, self._setup.completion_tokens)
        ]
        prompt, completion = (Padded(mask.long(), mask) for mask in masks)
        with self.tracker.watching(model):
            logps = self._forward(model, prompt, [completion] * self._setup.completions)
        return torch.stack([of_completion.sum().sum() for of_completion in logps]).sum()

    def _backward(self, total: Tensor, optimizer: Any) -> None:
        total.backward()
        with self.tracker.counting_as(GRADIENTS):
            take_gradients(optimizer)

    def _step(self, optimizer: Any) -> None:
        """Steps the optimizer. For bitsandbytes' it only makes the state: their step takes no more memory."""
        with self.tracker.counting_as(OPTIMIZER):
            if not is_of_bitsandbytes(optimizer):
                optimizer.step()
                return
            for g, group in enumerate(optimizer.param_groups):
                for p, parameter in enumerate(group["params"]):
                    if not optimizer.state[parameter]:
                        optimizer.init_state(group, parameter, g, p)


def _make_optimizer(setup: Setup, trained: list[nn.Parameter]) -> Any:
    """Makes the optimizer, set to behave as on the planned device."""
    optimizer: Any = over_float32(setup.optimizer, trained)
    if is_of_bitsandbytes(optimizer):
        optimizer.is_paged = False  # all of the state counts, but not the two maps of 256 numbers
        optimizer.name2qmap = dict.fromkeys(optimizer.name2qmap, _MAP_TO_8_BITS)
    for group in optimizer.param_groups:
        if setup.on_gpu and "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True  # torch's choice on a GPU: faster, with a temporary copy of a whole state
    return optimizer


def is_of_bitsandbytes(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer keeps its state in 8 bits, by bitsandbytes."""
    return type(optimizer).__module__.startswith("bitsandbytes")
