"""Checks of memory: the plan's peak against the measured one, and a micro-batch that is too large for the card."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lit_align.batch import PairBatch
from lit_align.doctor.findings import NO_TORCHAO, Bench, Check, Failed, Observation, Skipped
from lit_align.doctor.models import RandomLlama, pair_batches, random_pairs
from lit_align.plan import Setup, simulate
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, batch_logps, load_model
from lit_align.policy.logps import TokenLogps
from lit_align.training.out_of_memory import Run, SplitOnOOM

SMALL = RandomLlama(hidden=192, layers=4, vocabulary=4096)
LARGE = RandomLlama(hidden=1024, layers=12, vocabulary=32768)
PROMPT = 192
COMPLETION = 96
NEAR = 0.15
"""How far the plan's peak may be from the measured one, as a share of it."""
EQUAL = 1e-4
"""How far gradients of parts may be from those of the whole, as a share of their norm: rounding in float32."""
MIB = 1 << 20


def check_plan(spec: dict[str, Any], bench: Bench) -> Observation:
    """Compares the plan's peak of two training steps with what the allocator gave out.

    Args:
        spec: settings of the policy.
        bench: where.

    Raises:
        Failed: they are too far apart.
        Skipped: the quantisation's package is not installed.
    """
    if spec.get("quantization") == "int8" and find_spec("torchao") is None:
        raise Skipped(NO_TORCHAO)
    size = LARGE if bench.on_gpu else SMALL
    policy = PolicySpec(str(size.save(bench.folder / "model", device=bench.device)), **spec)
    planned = simulate(Setup(policy, _adamw, 2, 1, PROMPT, COMPLETION, on_gpu=bench.on_gpu)).peak
    measured = measured_peak(policy, _batch(2, size, bench), bench)
    figures = {"planned": planned, "measured": measured}
    text = f"planned {planned / MIB:.1f} MiB, measured {measured / MIB:.1f} MiB"
    if abs(planned / measured - 1) > NEAR:
        raise Failed(f"{text}: more than {NEAR:.0%} apart", **figures)
    return Observation(text, figures)


def measured_peak(policy: PolicySpec, batch: PairBatch, bench: Bench) -> int:
    """The most bytes that a policy and two training steps on a batch take, by the allocator's own account."""
    gc.collect()
    before = torch.cuda.memory_allocated(bench.device) if bench.on_gpu else 0
    model = load_model(policy).to(bench.device)
    work = partial(_two_steps, model, batch)
    if not bench.on_gpu:
        return _bytes_of(model) + _allocated_by(work)
    torch.cuda.reset_peak_memory_stats(bench.device)
    work()
    return torch.cuda.max_memory_allocated(bench.device) - before


def _two_steps(model: nn.Module, batch: PairBatch) -> None:
    optimizer = _adamw(parameter for parameter in model.parameters() if parameter.requires_grad)
    forward = CompletionForward()
    for _ in range(2):
        loss = torch.stack([part.sum().sum() for part in batch_logps(model, batch, forward)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del loss


def _bytes_of(model: nn.Module) -> int:
    tensors: list[Tensor] = [*model.buffers()]
    for parameter in model.parameters():
        parts = getattr(parameter, "tensor_data_names", None)  # of a weight that torchao has packed
        tensors += [parameter] if parts is None else [getattr(parameter, name) for name in parts]
        state = getattr(parameter, "quant_state", None)  # scales of NF4, and their own
        tensors += [] if state is None else [state.absmax, state.state2.absmax]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _allocated_by(work: Callable[[], None]) -> int:
    """The most bytes that are allocated on the CPU at once while `work` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    results: Any = profiled.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = 0
    peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def check_split(bench: Bench) -> Observation:
    """Computes a micro-batch on a card that is made too small for it, and compares with the whole."""
    if not bench.on_gpu:
        raise Skipped("a CPU has no limit to run into")
    spec = PolicySpec(str(LARGE.save(bench.folder / "model", device=bench.device)), lora=LoraSpec(r=4))
    model = load_model(spec).to(bench.device)
    batch = _batch(8, LARGE, bench)
    run = partial(_forward, model, CompletionForward())
    whole, peak = _peak_of(partial(_gradients, model, batch, run, SplitOnOOM(spec)), bench)
    _, floor = _peak_of(partial(_gradients, model, batch.part(0, 2), run, SplitOnOOM(spec)), bench)
    split = SplitOnOOM(spec)
    with card_of((peak + floor) // 2, bench.device):
        return compare_split(split, _gradients(model, batch, run, split), whole)


def compare_split(split: SplitOnOOM, gradients: Tensor, whole: Tensor) -> Observation:
    """Compares the gradients of a micro-batch that was computed in parts with those of the whole.

    Raises:
        Failed: it was not split, or the gradients differ.
    """
    if split.tokens is None:
        raise Failed("the card was too small, and the micro-batch was not split")
    difference = ((gradients - whole).norm() / whole.norm()).item()
    if not difference <= EQUAL:
        raise Failed(f"in parts the gradients differ by {difference:.1e}", difference=difference)
    return Observation(
        f"split to {split.tokens:,} tokens at once; gradients differ by {difference:.1e}", {"difference": difference}
    )


@contextmanager
def card_of(size: int, device: torch.device) -> Iterator[None]:
    """Lets this process have `size` bytes of the card within the block; beyond, torch is out of memory."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(device).total_memory, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _peak_of(work: Callable[[], Tensor], bench: Bench) -> tuple[Tensor, int]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)
    result = work()
    return result, torch.cuda.max_memory_reserved(bench.device)


def _forward(model: nn.Module, forward: CompletionForward, batch: PairBatch) -> list[TokenLogps]:
    return batch_logps(model, batch, forward)


def _gradients(model: nn.Module, batch: PairBatch, run: Run, split: SplitOnOOM) -> Tensor:
    """All gradients of the log-probs of a batch, one behind the other."""
    model.zero_grad()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chosen, rejected = split.logps(run, batch, trained)
    (chosen.sum() - rejected.sum()).sum().backward()
    return torch.cat([p.grad.flatten() for p in trained if p.grad is not None])


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


def _batch(pairs: int, size: RandomLlama, bench: Bench) -> PairBatch:
    lengths = (PROMPT, COMPLETION, COMPLETION)
    (batch,) = pair_batches(random_pairs(pairs, lambda _: lengths, size.vocabulary), pairs)
    return batch.to(bench.device)


_LORA = {"lora": LoraSpec(r=8)}
PLANS: dict[str, dict[str, Any]] = {
    "lora": _LORA,
    "bfloat16": {**_LORA, "dtype": "bfloat16", "gradient_checkpointing": True},
    "nf4": {**_LORA, "dtype": "bfloat16", "quantization": "nf4", "gradient_checkpointing": True},
    "int8": {**_LORA, "dtype": "bfloat16", "quantization": "int8", "gradient_checkpointing": True},
}
CHECKS = (
    *(Check(f"memory/plan-{name}", partial(check_plan, spec), seconds=8.0) for name, spec in PLANS.items()),
    Check("memory/too-large", check_split, seconds=1.0),
)
