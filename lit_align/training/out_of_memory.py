"""Out of memory in a step: the micro-batch is computed in parts, and the step has the same result.

The loss itself needs little memory; the log-probs that it takes need nearly all. So the log-probs are computed part by
part, the loss sees all of them at once, and the backward takes the parts one after the other: the last one from the
graph of its forward, the others after a second forward. Each part's graph is freed before the next one is built. This
works for any loss, also for one whose pairs depend on each other or that keeps a running mean.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lit_align.batch import PairBatch
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
        start: index of the first.
        stop: index behind the last.
        rng_state: the state of the random generators before their forward.
        logps: of that forward, with its graph; None once the graph is used up, or if none was kept.
        remaining: parameters whose gradients still lack this part's share; None means all.
    """

    start: int
    stop: int
    rng_state: list[Tensor]
    logps: list[TokenLogps] | None = None
    remaining: list[nn.Parameter] | None = None


class SplitOnOOM:
    """Runs forward passes, and their backward, over as many pairs at once as fit into the memory.

    After an `OutOfMemoryError` it computes half as much at once, from then on, and repeats the failed part. The limit
    is counted in tokens of the padded rows, so that micro-batches of short pairs stay whole. The numbers are those of
    the whole micro-batch, to rounding. Only dropout is drawn anew for each part.

    Args:
        spec: the policy, whose settings an error message takes into account.

    Attributes:
        tokens: the most tokens computed at once; None if the memory has sufficed so far.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self.tokens: int | None = None
        self._spec = spec

    def logps(
        self, run: Run, batch: PairBatch, trained: Sequence[nn.Parameter] = (), backward_context: Context = nullcontext
    ) -> list[TokenLogps]:
        """Computes the result of `run` for the batch, in parts if need be.

        Args:
            run: computes the log-probs of some pairs, each pair independently of the others.
            batch: B pairs.
            trained: parameters that get gradients from `backward()`; without any, none is prepared.
                `torch.autograd.grad` does not see them.
            backward_context: a context for the forward passes within the backward, such as autocast.

        Raises:
            torch.OutOfMemoryError: a single pair does not fit.
        """
        parts, logps_of_parts = self._forward(run, batch, graph=bool(trained))
        completions = [_join(pieces) for pieces in zip(*logps_of_parts, strict=True)]
        if not trained:
            return completions

        def backward(upstream: Sequence[Tensor]) -> None:
            self._backward(run, batch, parts, upstream, trained, backward_context)

        anchor = torch.zeros((), requires_grad=True)
        values = _Gate.apply(anchor, backward, *(completion.logps for completion in completions))
        return [replace(completion, logps=value) for completion, value in zip(completions, values, strict=True)]

    def state(self, device: torch.device) -> dict[str, Any]:
        """The limit for a checkpoint, in plain types; empty if the memory has sufficed."""
        return {} if self.tokens is None else {"tokens": self.tokens, "card": _card(device)}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Takes over a limit that :meth:`state` gave; another card is tried with whole micro-batches first."""
        self.tokens = state.get("tokens") if state.get("card") == _card(device) else None

    def _forward(self, run: Run, batch: PairBatch, graph: bool) -> tuple[list[_Part], list[list[TokenLogps]]]:
        start_state = _rng_state(batch)
        while True:
            parts: list[_Part] = []
            logps_of_parts: list[list[TokenLogps]] = []
            for start, stop in self._ranges(batch, 0, len(batch)):
                part = _Part(start, stop, _rng_state(batch))
                with torch.set_grad_enabled(graph and stop == len(batch)):
                    logps = _attempt(partial(run, batch.part(start, stop)))
                if logps is None:
                    break
                part.logps = logps if graph and stop == len(batch) else None
                parts.append(part)
                logps_of_parts.append([_detach(completion) for completion in logps])
            else:
                return parts, logps_of_parts
            self._halve(batch, start, stop)
            _set_rng_state(batch, start_state)

    def _backward(
        self,
        run: Run,
        batch: PairBatch,
        parts: list[_Part],
        upstream: Sequence[Tensor],
        trained: Sequence[nn.Parameter],
        backward_context: Context,
    ) -> None:
        """Adds each part's share to the gradients.

        autograd adds to a parameter's gradient once or not at all, so after a failure only the parameters whose
        gradient is as it was before remain.
        """
        while parts:
            part = parts.pop()
            ranges = self._ranges(batch, part.start, part.stop)
            if part.logps is None and len(ranges) > 1:
                parts += [_Part(start, stop, part.rng_state, remaining=part.remaining) for start, stop in ranges]
                continue
            parameters = trained if part.remaining is None else part.remaining
            versions = [_version(parameter) for parameter in parameters]
            if _attempt(partial(_add_gradients, run, batch, part, upstream, backward_context)) is None:
                self._halve(batch, part.start, part.stop)
                part.remaining = [p for p, version in zip(parameters, versions, strict=True) if _version(p) == version]
                parts.append(part)

    def _ranges(self, batch: PairBatch, start: int, stop: int) -> list[tuple[int, int]]:
        """Cuts the pairs from `start` to `stop` into ranges of as many as the limit allows."""
        pairs = stop - start if self.tokens is None else max(self.tokens // batch.longest_row, 1)
        return [(first, min(first + pairs, stop)) for first in range(start, stop, pairs)]

    def _halve(self, batch: PairBatch, start: int, stop: int) -> None:
        if stop - start == 1:
            raise torch.OutOfMemoryError(_single_pair_message(batch.part(start, stop), self._spec))
        width = batch.longest_row
        half = (stop - start + 1) // 2
        self.tokens = width * half
        note(
            f"Out of memory: {stop - start} pairs of up to {width:,} tokens do not fit. They are repeated {half} at a "
            f"time, with the same numbers; from now on at most {self.tokens:,} tokens are computed at once. "
            "Faster: a smaller data.batch_size and a larger trainer.accumulate_grad_batches."
        )


class _Gate(torch.autograd.Function):
    """Passes values on unchanged, and hands their gradients to a function that continues the backward itself."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, backward: Callable[[Sequence[Tensor]], None], *values: Tensor) -> Any:
        """`anchor` requires gradients, so that the values do."""
        ctx.continue_backward = backward
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, ...]:
        with torch.enable_grad():
            ctx.continue_backward(upstream)
        return (None, None, *(None for _ in upstream))


@contextmanager
def explain_out_of_memory(accumulate: int) -> Iterator[None]:
    """Adds advice to an `OutOfMemoryError` when several devices compute together.

    No device may then repeat a part on its own: they exchange gradients or weights on the way.

    Args:
        accumulate: micro-batches a step.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            "Out of memory. On several devices, or under a strategy for them, a micro-batch is not halved "
            "automatically, since the devices wait for each other. To change: half the data.batch_size and "
            f"trainer.accumulate_grad_batches: {2 * accumulate}, which gives the same steps; "
            f"or model.policy.gradient_checkpointing: true. `lit-align plan` tells what fits. ({error})"
        ) from None


def _attempt(work: Callable[[], _T]) -> _T | None:
    """Returns the result of `work`, or None if the memory did not suffice; it is then as free as before."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # the error's frames hold tensors until this block ends
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _add_gradients(
    run: Run, batch: PairBatch, part: _Part, upstream: Sequence[Tensor], backward_context: Context
) -> bool:
    logps = part.logps
    part.logps = None
    if logps is None:
        with _replay_rng(batch, part.rng_state), backward_context():
            logps = run(batch.part(part.start, part.stop))
    if part.remaining is None or part.remaining:
        values = [completion.logps for completion in logps]
        gradients = [gradient[part.start : part.stop] for gradient in upstream]
        torch.autograd.backward(values, gradients, inputs=part.remaining)
    return True


def _version(parameter: nn.Parameter) -> tuple[int, int] | None:
    """A mark that changes whenever something is added to the parameter's gradient."""
    gradient = parameter.grad
    return None if gradient is None else (id(gradient), gradient._version)


def _detach(logps: TokenLogps) -> TokenLogps:
    return TokenLogps(logps.logps.detach(), logps.mask, logps.collisions)


def _join(parts: Sequence[TokenLogps]) -> TokenLogps:
    """The log-probs of some pairs behind each other."""
    collisions = [part.collisions for part in parts if part.collisions is not None]
    return TokenLogps(
        torch.cat([part.logps for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat(collisions) if collisions else None,
    )


def _rng_state(batch: PairBatch) -> list[Tensor]:
    """The random states of the host and, on a GPU, of the batch's device."""
    device = batch.prompt.ids.device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_rng_state(batch: PairBatch, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, batch.prompt.ids.device)


@contextmanager
def _replay_rng(batch: PairBatch, states: list[Tensor]) -> Iterator[None]:
    """Draws the same random numbers within the block as were drawn from these states before."""
    device = batch.prompt.ids.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _set_rng_state(batch, states)
        yield


def _card(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, {card.total_memory} bytes"


def _single_pair_message(pair: PairBatch, spec: PolicySpec) -> str:
    lengths = [int(padded.lengths[0]) for padded in (pair.prompt, pair.chosen, pair.rejected)]
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
        "`lit-align plan` tells what fits before a run."
    )
