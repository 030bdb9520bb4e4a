"""The floor of a training step: the time of its multiply-adds at the rate of a plain matrix product on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

PRODUCT = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices whose product gives the rate."""
PRODUCTS = 25


def work_of_step(model: Any, pairs: int, prompt: int, completion: int) -> dict[str, int]:
    """Counts the multiply-adds that one step cannot avoid, and the model's parameters.

    Every token of a pair passes each layer once, forward and backward; the head sees only completion tokens; attention
    counts only without the mask. Only trained weights have a gradient. The recomputation of gradient checkpointing is
    not counted.

    Args:
        model: with LoRA or without; a quantised layer counts as many weights as it unpacks to.
        pairs: pairs of the step.
        prompt: tokens of each prompt.
        completion: tokens of each completion.

    Returns:
        The `multiply_adds` of a step, the number of `parameters`, and of `trained` parameters.
    """
    head = model.get_output_embeddings()
    tokens = pairs * (prompt + 2 * completion)
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            passes = 3 if module.weight.requires_grad else 2
            rows = 2 * pairs * completion if module is head else tokens
            total += passes * rows * module.in_features * module.out_features
    config = model.config
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head_width
    attended = prompt * (prompt + 1) // 2 + 2 * (completion * prompt + completion * (completion + 1) // 2)
    total += config.num_hidden_layers * 6 * width * pairs * attended  # two products forward, four backward
    parameters = list(model.parameters())
    return {
        "multiply_adds": total,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }


def product_rate(dtype: torch.dtype, device: torch.device | str, products: int = PRODUCTS) -> float:
    """Measures the multiply-adds per second of a product of square matrices, as the median of several."""
    size = PRODUCT[torch.device(device).type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    return size**3 / statistics.median(timed(lambda: a @ b, device) for _ in range(products))


def timed(work: Callable[[], object], device: torch.device | str) -> float:
    """The seconds that `work` takes on the device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device | str) -> None:
    """Waits until a GPU has done its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
