"""Out of memory in a step: the micro-batch is computed in parts, and nothing of what was done is lost.

A loss needs little memory, the log-probs that it is given need nearly all. So the log-probs are computed part by part,
the loss sees them together, once, and the backward takes the parts one after the other: the last one from the graph
of its forward, the others after a second forward. Each part's graph is gone before the next one's is made. That holds
for any loss, also for one whose pairs depend on each other or that keeps a running mean.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lit_align.batch import Padded, PairBatch
from lit_align.console import note
from lit_align.policy.logps import TokenLogps
from lit_align.policy.spec import PolicySpec

Run = Callable[[PairBatch], list[TokenLogps]]
"""A forward pass: the log-probs of each of the batch's completions."""

Context = Callable[[], AbstractContextManager[Any]]
_T = TypeVar("_T")


@dataclass
class _Part:
    """Some pairs of a micro-batch.

    Args:
        start: the first of them.
        stop: the one behind the last.
        noise: the random state before their forward.
        logps: from that forward, with its graph; None once that is used up, and where there was none.
        left: parameters whose gradients this part must still be added to; None means all.
    """

    start: int
    stop: int
    noise: list[Tensor]
    logps: list[TokenLogps] | None = None
    left: list[nn.Parameter] | None = None


class InParts:
    """Runs forward passes over as many pairs at once as the memory takes, and their backward.

    An `OutOfMemoryError` halves what is computed at once and repeats what failed; that size is kept from then on. It is
    counted in tokens of the padded rows, so that micro-batches of short pairs stay whole. The numbers are those of
    the whole micro-batch, to rounding. Only dropout is drawn anew for each part.

    Args:
        spec: the policy; for what an error says.

    Attributes:
        tokens: computed at once, at most; None where the memory has sufficed so far.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self.tokens: int | None = None
        self._spec = spec

    def logps(
        self, run: Run, batch: PairBatch, trained: Sequence[nn.Parameter] = (), around: Context = nullcontext
    ) -> list[TokenLogps]:
        """What `run` gives for the batch.

        Args:
            run: computes some pairs, each pair for itself.
            batch: B pairs.
            trained: parameters that get gradients from `backward()`; without any, none is prepared.
                `torch.autograd.grad` does not see them.
            around: what a forward in the backward is to be wrapped in, such as autocast.

        Raises:
            torch.OutOfMemoryError: where a single pair does not fit.
        """
        parts, found = self._forward(run, batch, graph=bool(trained))
        values = [torch.cat([one.logps.detach() for one in some]) for some in zip(*found, strict=True)]
        if trained:

            def backward(upstream: Sequence[Tensor]) -> None:
                self._backward(run, batch, parts, upstream, trained, around)

            values = list(_Gate.apply(torch.zeros((), requires_grad=True), backward, *values))
        return [_joined(value, some) for value, some in zip(values, zip(*found, strict=True), strict=True)]

    def state(self, device: torch.device) -> dict[str, Any]:
        """For a checkpoint, in plain types; empty where the memory has sufficed."""
        return {} if self.tokens is None else {"tokens": self.tokens, "card": _card(device)}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Takes over what :meth:`state` gave; another card is tried with whole micro-batches first."""
        self.tokens = state.get("tokens") if state.get("card") == _card(device) else None

    def _forward(self, run: Run, batch: PairBatch, graph: bool) -> tuple[list[_Part], list[list[TokenLogps]]]:
        start_noise = _noise(batch)
        while True:
            parts: list[_Part] = []
            found: list[list[TokenLogps]] = []
            for start, stop in self._ranges(batch, 0, len(batch)):
                part = _Part(start, stop, _noise(batch))
                with torch.set_grad_enabled(graph and stop == len(batch)):
                    logps = _attempt(partial(run, _rows(batch, start, stop)))
                if logps is None:
                    break
                part.logps = logps if graph and stop == len(batch) else None
                parts.append(part)
                found.append([_detached(one) for one in logps])
            else:
                return parts, found
            self._halve(batch, start, stop)
            _set_noise(batch, start_noise)

    def _backward(
        self,
        run: Run,
        batch: PairBatch,
        parts: list[_Part],
        upstream: Sequence[Tensor],
        trained: Sequence[nn.Parameter],
        around: Context,
    ) -> None:
        """Adds each part's share to the gradients.

        A gradient is added in whole or not at all, so that after a failure only the parameters whose gradient is as
        it was before are left to do.
        """
        while parts:
            part = parts.pop()
            ranges = self._ranges(batch, part.start, part.stop)
            if part.logps is None and len(ranges) > 1:
                parts += [_Part(start, stop, part.noise, left=part.left) for start, stop in ranges]
                continue
            candidates = trained if part.left is None else part.left
            before = [_version(parameter) for parameter in candidates]
            if _attempt(partial(_add_gradients, run, batch, part, upstream, around)) is None:
                self._halve(batch, part.start, part.stop)
                part.left = [p for p, version in zip(candidates, before, strict=True) if _version(p) == version]
                parts.append(part)

    def _ranges(self, batch: PairBatch, start: int, stop: int) -> list[tuple[int, int]]:
        """The pairs from `start` to `stop`, so many at once as are allowed."""
        pairs = stop - start if self.tokens is None else max(self.tokens // _width(batch), 1)
        return [(first, min(first + pairs, stop)) for first in range(start, stop, pairs)]

    def _halve(self, batch: PairBatch, start: int, stop: int) -> None:
        if stop - start == 1:
            raise torch.OutOfMemoryError(_single_pair(_rows(batch, start, stop), self._spec))
        width = _width(batch)
        half = (stop - start + 1) // 2
        self.tokens = width * half
        note(
            f"Out of memory: {stop - start} pairs of up to {width:,} tokens do not fit. They are repeated {half} at a "
            f"time, with the same numbers; from now on at most {self.tokens:,} tokens are computed at once. "
            "Faster: a smaller data.batch_size and a larger trainer.accumulate_grad_batches."
        )


class _Gate(torch.autograd.Function):
    """Gives values as they are, and their gradients to a function that goes on from there by itself."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, backward: Callable[[Sequence[Tensor]], None], *values: Tensor) -> Any:
        """`anchor` requires gradients, so that the values do."""
        ctx.go_on = backward
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, ...]:
        with torch.enable_grad():
            ctx.go_on(upstream)
        return (None, None, *(None for _ in upstream))


@contextmanager
def explained(accumulate: int) -> Iterator[None]:
    """Says what to do about an `OutOfMemoryError` where several devices compute together.

    There none may repeat on its own what the others do not: they exchange gradients or weights on the way.

    Args:
        accumulate: micro-batches a step.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            "Out of memory. On several devices, or under a strategy of theirs, a micro-batch is not halved by itself, "
            "since they wait for each other. To change: half the data.batch_size and "
            f"trainer.accumulate_grad_batches: {2 * accumulate}, which gives the same steps; "
            f"or model.policy.gradient_checkpointing: true. `lit-align plan` tells what fits. ({error})"
        ) from None


def _attempt(work: Callable[[], _T]) -> _T | None:
    """What `work` gives; None where the memory did not suffice, which is then as free as it was before."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # the error's frames hold tensors: they are gone only outside of this block
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _add_gradients(run: Run, batch: PairBatch, part: _Part, upstream: Sequence[Tensor], around: Context) -> bool:
    logps = part.logps
    part.logps = None
    if logps is None:
        with _same_noise(batch, part.noise), around():
            logps = run(_rows(batch, part.start, part.stop))
    if part.left is None or part.left:
        values = [one.logps for one in logps]
        torch.autograd.backward(values, [one[part.start : part.stop] for one in upstream], inputs=part.left)
    return True


def _version(parameter: nn.Parameter) -> tuple[int, int] | None:
    """Changes with everything that is added to the parameter's gradient."""
    gradient = parameter.grad
    return None if gradient is None else (id(gradient), gradient._version)


def _rows(batch: PairBatch, start: int, stop: int) -> PairBatch:
    """Some pairs of a batch, as wide as before; without the reference's log-probs, which no forward pass needs."""

    def cut(padded: Padded) -> Padded:
        return Padded(padded.ids[start:stop], padded.mask[start:stop])

    return PairBatch(
        prompt=cut(batch.prompt),
        chosen=cut(batch.chosen),
        rejected=cut(batch.rejected),
        on_policy=batch.on_policy[start:stop],
        margin=batch.margin[start:stop],
        target=None if batch.target is None else cut(batch.target),
    )


def _width(batch: PairBatch) -> int:
    """Tokens of the longest row, which holds a prompt and its completions."""
    completions = [batch.chosen, batch.rejected, *([] if batch.target is None else [batch.target])]
    return int(torch.stack([batch.prompt.lengths, *(one.lengths for one in completions)]).sum(0).max())


def _detached(one: TokenLogps) -> TokenLogps:
    return TokenLogps(one.logps.detach(), one.mask, one.collisions)


def _joined(values: Tensor, parts: Sequence[TokenLogps]) -> TokenLogps:
    collisions = [one.collisions for one in parts if one.collisions is not None]
    return TokenLogps(values, torch.cat([one.mask for one in parts]), torch.cat(collisions) if collisions else None)


def _noise(batch: PairBatch) -> list[Tensor]:
    """The random states of the host and, on a GPU, of the batch's device."""
    device = batch.prompt.ids.device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_noise(batch: PairBatch, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, batch.prompt.ids.device)


@contextmanager
def _same_noise(batch: PairBatch, states: list[Tensor]) -> Iterator[None]:
    """Draws inside the block what was drawn from these states before."""
    now = _noise(batch)
    _set_noise(batch, states)
    try:
        yield
    finally:
        _set_noise(batch, now)


def _card(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, {card.total_memory} bytes"


def _single_pair(pair: PairBatch, spec: PolicySpec) -> str:
    lengths = [int(one.lengths[0]) for one in (pair.prompt, pair.chosen, pair.rejected)]
    changes = []
    if not spec.gradient_checkpointing:
        changes += ["model.policy.gradient_checkpointing: true"]
    elif spec.may_offload:
        changes += ["model.policy.gradient_checkpointing: offload"]
    changes += ["smaller data.max_prompt_tokens and data.max_completion_tokens"]
    if spec.lora is None and spec.adapter is None:
        changes += ["model.policy.lora.r: 16"]
    elif spec.quantization is None:
        changes += ["model.policy.quantization: nf4"]
    return (
        f"Out of memory with a single pair: a prompt of {lengths[0]:,} tokens, a chosen completion of {lengths[1]:,} "
        f"and a rejected one of {lengths[2]:,}. To change: {'; or '.join(changes)}. "
        "`lit-align plan` tells before a run what fits."
    )
