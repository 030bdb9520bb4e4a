"""Checks that log-probs and gradients of the fast path are those of plain rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_align.batch import PairBatch
from lit_align.doctor.findings import NO_TORCHAO, Bench, Check, Failed, Observation, Skipped
from lit_align.doctor.models import RandomLlama, move_adapters, pair_batches, random_pairs
from lit_align.policy import LoraSpec, PolicySpec, load_model, plain_logps, shared_logps
from lit_align.policy.logps import TokenLogps
from lit_align.policy.nf4 import keep_trainable_on_cpu
from lit_align.policy.quantized import quantization_settings
from lit_align.policy.quiet import quiet_libraries

MODEL = RandomLlama(hidden=96, layers=2, vocabulary=512)
LENGTHS = ((300, 150, 90), (40, 20, 33), (7, 5, 1))
"""Tokens of a prompt, its chosen and its rejected completion; the first row is a long one."""
LARGEST_LOGP = 1e-3
"""The most nats by which float32 rounding may change the log-prob of a token."""
LARGEST_GRADIENT = 1e-3
"""The largest difference between gradients in float32, as a share of their norm."""
HALF = 2.0
"""How many times as far as plain rows the fast path may be from float32, in half precision."""

LONG = 30.0
"""Seconds from which a check is made last."""

Forward = Callable[..., list[TokenLogps]]


@dataclass(frozen=True)
class Case:
    """Settings of the policy under which the fast path is compared.

    Args:
        dtype: of the weights and the products.
        settings: further arguments of :class:`PolicySpec`.
    """

    dtype: str = "float32"
    settings: tuple[tuple[str, Any], ...] = (("lora", LoraSpec(r=4)),)

    def spec(self, folder: Path) -> PolicySpec:
        """The policy."""
        return PolicySpec(str(folder), dtype=self.dtype, **dict(self.settings))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Result:
    """Log-probs [N] of all completion tokens, and the gradients of a sum of them by parameter."""

    logps: Tensor
    gradients: dict[str, Tensor]

    def distance(self, other: Result) -> tuple[float, float]:
        """The largest difference of a log-prob in nats, and the norm of the gradients' difference by their norm."""
        difference = torch.cat([(self.gradients[n] - g).flatten() for n, g in other.gradients.items()])
        norm = torch.cat([gradient.flatten() for gradient in other.gradients.values()]).norm()
        return (self.logps - other.logps).abs().max().item(), (difference.norm() / norm).item()


def compare(case: Case, bench: Bench, forward: Forward = shared_logps) -> Observation:
    """Compares the fast path under a case's settings with plain rows, peft's layers and no setting.

    In float32 they are equal to rounding. In half precision the fast path must be about as near to float32 as plain
    rows are.

    Raises:
        Failed: they differ.
    """
    folder = MODEL.save(bench.folder / "model", torch.bfloat16, scale=4.0)
    lengths = iter(LENGTHS)
    (batch,) = pair_batches(random_pairs(len(LENGTHS), lambda _: next(lengths), MODEL.vocabulary), len(LENGTHS))
    batch = batch.to(bench.device)
    with exact_products():
        found = _measure(move_adapters(load_model(case.spec(folder)).to(bench.device)), batch, forward)
        exact = _measure(_plain_model(replace(case, dtype="float32"), folder).to(bench.device), batch, plain_logps)
        logp, gradient = found.distance(exact)
        allowed_logp, allowed_gradient = LARGEST_LOGP, LARGEST_GRADIENT
        if case.dtype != "float32":
            plain = _measure(_plain_model(case, folder).to(bench.device), batch, plain_logps)
            allowed_logp, allowed_gradient = (HALF * distance for distance in plain.distance(exact))
    figures = {
        "largest_difference": logp, "allowed": allowed_logp,
        "gradient_difference": gradient, "gradient_allowed": allowed_gradient,
    }  # fmt: skip
    text = f"log-probs differ by {logp:.1e} nats, gradients by {gradient:.1e}"
    if not (logp <= allowed_logp and gradient <= allowed_gradient):
        raise Failed(f"{text} (at most {allowed_logp:.1e} and {allowed_gradient:.1e})", **figures)
    return Observation(text, figures)


@contextmanager
def exact_products() -> Iterator[None]:
    """Switches TF32 off within the block."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _plain_model(case: Case, folder: Path) -> nn.Module:
    """The case's model with peft's own layers, neither compiled nor checkpointed."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = dict(case.settings)
    dtype = getattr(torch, case.dtype)
    quantization = settings.get("quantization")
    options = {"quantization_config": quantization_settings(quantization, dtype)} if quantization else {}
    with quiet_libraries():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    keep_trainable_on_cpu(model)
    lora: LoraSpec | None = settings.get("lora")
    if lora is None:
        return model
    config = LoraConfig(r=lora.r, lora_alpha=int(lora.alpha), target_modules=lora.target_modules, task_type="CAUSAL_LM")
    return move_adapters(get_peft_model(model, config))


def _measure(model: nn.Module, batch: PairBatch, forward: Forward) -> Result:
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    model.train()
    parts = forward(model, batch.prompt, [batch.chosen, batch.rejected])
    values = torch.cat([part.logps[part.mask] for part in parts])
    (values * torch.linspace(-1, 2, len(values), device=values.device)).sum().backward()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    return Result(values.detach(), gradients)


def _compiled(bench: Bench) -> Observation:
    if bench.on_gpu:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise Skipped("torch.compile needs Triton on a GPU: pip install triton")
    elif not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise Skipped("torch.compile needs a C++ compiler on a CPU, and there is none here")
    return compare(COMPILED, bench)


_LORA = ("lora", LoraSpec(r=4))
_NF4 = ("quantization", "nf4")
COMPILED = Case(settings=(_LORA, ("compile", True)))
CASES = {
    "float32": Case(),
    "all-weights": Case(settings=()),
    "checkpointing": Case(settings=(_LORA, ("gradient_checkpointing", True))),
    "offload": Case(settings=(_LORA, ("gradient_checkpointing", "offload"))),
    "bfloat16": Case("bfloat16"),
    "nf4": Case(settings=(_LORA, _NF4)),
    "int8": Case(settings=(_LORA, ("quantization", "int8"))),
    "fp8": Case(settings=(_LORA, ("quantization", "fp8"))),
    "liger": Case(settings=(_LORA, ("kernels", "liger"))),
    "nf4-bfloat16": Case("bfloat16", (_LORA, _NF4, ("gradient_checkpointing", True))),
}


def _compared(case: Case, bench: Bench) -> Observation:
    settings = dict(case.settings)
    if settings.get("quantization") in ("int8", "fp8") and find_spec("torchao") is None:
        raise Skipped(NO_TORCHAO)
    if settings.get("kernels") and not bench.on_gpu:
        raise Skipped("Liger's kernels are for GPUs")
    if settings.get("kernels") and find_spec("liger_kernel") is None:
        raise Skipped("Liger-Kernel is not installed: pip install 'lit-align[liger]'")
    return compare(case, bench)


def _check(name: str, case: Case) -> Check:
    return Check(f"logps/{name}", partial(_compared, case), seconds=2.0)


CHECKS = (*(_check(name, case) for name, case in CASES.items()), Check("logps/compile", _compiled, seconds=70.0))
