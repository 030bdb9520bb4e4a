"""Checks of speed: a step against plain rows and against TRL's, and sampling."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from lit_align.batch import Padded, PairBatch
from lit_align.doctor.findings import Bench, Check, Failed, Observation, Skipped
from lit_align.doctor.floor import product_rate, synchronize, timed, work_of_step
from lit_align.doctor.models import RandomLlama, byte_tokenizer, pair_batches, random_pairs
from lit_align.doctor.peer import BETA, trl_trainer
from lit_align.losses import DPO
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, batch_logps, load_model, plain_logps
from lit_align.policy.logps import TokenLogps
from lit_align.sampling import SamplingRequest, TransformersSampler
from lit_align.training.pairs import ReferencePairLogps, make_pair_logps

RANK = 16
LEARNING_RATE = 1e-5
SLOWER = 1.25
"""A step that takes this many times as long as plain rows or TRL's is wrong."""


@dataclass(frozen=True)
class Load:
    """What is timed.

    Args:
        model: a random Llama.
        pairs: pairs of a step.
        prompt: tokens of each prompt.
        completion: tokens of each completion.
    """

    model: RandomLlama
    pairs: int
    prompt: int
    completion: int

    def batch(self) -> PairBatch:
        """The pairs of a step."""
        lengths = (self.prompt, self.completion, self.completion)
        (batch,) = pair_batches(random_pairs(self.pairs, lambda _: lengths, self.model.vocabulary), self.pairs)
        return batch

    def work(self, model: nn.Module) -> int:
        """The multiply-adds of a step."""
        return work_of_step(model, self.pairs, self.prompt, self.completion)["multiply_adds"]


ON_CPU = Load(RandomLlama(hidden=256, layers=4, vocabulary=16384), 2, 200, 60)
ON_GPU = Load(RandomLlama(hidden=1536, layers=16), 8, 400, 120)


def load_of(bench: Bench) -> Load:
    """What is timed on a bench's device."""
    return ON_GPU if bench.on_gpu else ON_CPU


@cache
def product_rates(device: torch.device) -> dict[str, float]:
    """The multiply-adds per second of matrix products in float32 and in bfloat16, measured once."""
    return {name: product_rate(getattr(torch, name), device) for name in ("float32", "bfloat16")}


def faster_dtype(device: torch.device) -> str:
    """The dtype in which products are faster on a device."""
    rates = product_rates(device)
    return max(rates, key=lambda name: rates[name])


def check_products(bench: Bench) -> Observation:
    """Tells in which dtype products are faster."""
    rates = product_rates(bench.device)
    ratio = rates["bfloat16"] / rates["float32"]
    found = f"bfloat16 {ratio:.2g} times as fast as float32 ({2e-12 * rates['bfloat16']:.3g} TFLOP/s)"
    return Observation(f"{found}: policy.dtype: {faster_dtype(bench.device)}", {"multiply_adds_per_second": rates})


def plain_rows(
    model: nn.Module, prompt: Padded, completions: Sequence[Padded], with_collisions: bool = False, rows: Any = None
) -> list[TokenLogps]:
    """Log-probs as :class:`CompletionForward` gives them, from a row for each completion."""
    return plain_logps(model, prompt, completions, with_collisions)


class LitStep:
    """A training step with LoRA: log-probs, DPO against a stored reference, backward and optimizer.

    Args:
        model: the policy, on its device.
        batch: its pairs.
        forward: computes the log-probs.
    """

    def __init__(self, model: nn.Module, batch: PairBatch, forward: Any) -> None:
        self._model = model
        self._batch = batch
        self._forward = forward
        self._loss = DPO(beta=BETA)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        with torch.no_grad():
            self._reference = ReferencePairLogps.of(*batch_logps(model, batch, forward))

    def __call__(self) -> None:
        """Makes one step."""
        logps = batch_logps(self._model, self._batch, self._forward)
        pairs = make_pair_logps(self._batch, logps, self._reference, with_tokens=False)
        self._loss(pairs).losses.mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def repeat(step: Callable[[], object], bench: Bench, share: float) -> Iterator[float]:
    """Times steps behind one that warms up, at least two, until a share of the bench's seconds is used up.

    Yields:
        The seconds of each.
    """
    began = time.perf_counter()
    step()
    count = 0
    while count < 2 or (time.perf_counter() - began < share * bench.seconds and count < 20):
        yield timed(step, bench.device)
        count += 1


def lit_seconds(load: Load, bench: Bench, share: float, forward: Any = None) -> dict[str, Any]:
    """Times steps of lit-align.

    Args:
        load: what to time.
        bench: where.
        share: of the bench's seconds.
        forward: computes the log-probs; None is the fast path.

    Returns:
        The median `seconds` of a step, and its `multiply_adds`.
    """
    dtype: Any = faster_dtype(bench.device)
    folder = bench.folder / "model"
    if not folder.exists():
        load.model.save(folder, getattr(torch, dtype), bench.device)
    spec = PolicySpec(str(folder), dtype=dtype, lora=LoraSpec(r=RANK, alpha=2 * RANK))
    model = load_model(spec).to(bench.device)
    step = LitStep(model, load.batch().to(bench.device), forward or CompletionForward())
    return {"seconds": statistics.median(repeat(step, bench, share)), "multiply_adds": load.work(model)}


def check_step(bench: Bench) -> Observation:
    """Times a step of the fast path and one of plain rows.

    Raises:
        Failed: the fast path is slower.
    """
    load = load_of(bench)
    fast = lit_seconds(load, bench, 0.4)
    plain = lit_seconds(load, bench, 0.5, plain_rows)
    rate = product_rates(bench.device)[faster_dtype(bench.device)]
    floor = fast["multiply_adds"] / rate
    figures = {"seconds": fast["seconds"], "plain_seconds": plain["seconds"], "floor_seconds": floor}
    ratio = plain["seconds"] / fast["seconds"]
    text = (
        f"{load.pairs / fast['seconds']:.3g} pairs/s of {load.prompt} + 2 x {load.completion} tokens, {ratio:.2g} "
        f"times plain rows, {floor / fast['seconds']:.0%} of the rate of products"
    )
    if ratio < 1 / SLOWER:
        raise Failed(f"slower than plain rows: {text}", **figures)
    return Observation(text, figures)


def check_trl(bench: Bench) -> Observation:
    """Times a step of lit-align and one of TRL's DPOTrainer.

    Raises:
        Failed: lit-align is slower.
        Skipped: TRL is not installed.
    """
    if find_spec("trl") is None:
        raise Skipped("TRL is not installed: pip install 'lit-align[parity]'")
    from transformers import AutoModelForCausalLM

    load = load_of(bench)
    ours = lit_seconds(load, bench, 0.3)["seconds"]
    dtype = getattr(torch, faster_dtype(bench.device))
    model = AutoModelForCausalLM.from_pretrained(bench.folder / "model", dtype=dtype)
    theirs = statistics.median(trl_seconds(model, load, bench, 2 if bench.seconds < 30 else 5))
    text = f"{load.pairs / ours:.3g} pairs/s, TRL {load.pairs / theirs:.3g}: {theirs / ours:.2g} times"
    if theirs < ours / SLOWER:
        raise Failed(f"slower than TRL: {text}", seconds=ours, trl_seconds=theirs)
    return Observation(text, {"seconds": ours, "trl_seconds": theirs})


def trl_seconds(model: Any, load: Load, bench: Bench, steps: int, **settings: Any) -> list[float]:
    """Times steps of TRL's trainer behind one that warms up.

    Args:
        model: a model of transformers.
        load: what to time.
        bench: where.
        steps: how many to time.
        settings: further arguments of DPOConfig.
    """
    from transformers import TrainerCallback

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize(bench.device)
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(bench.device)
            seconds[-1] += time.perf_counter()

    lengths = (load.prompt, load.completion, load.completion)
    trainer = trl_trainer(
        model,
        random_pairs(2 * load.pairs, lambda _: lengths, load.model.vocabulary),
        batch_size=load.pairs,
        steps=1 + steps,
        rank=RANK,
        learning_rate=LEARNING_RATE,
        folder=bench.folder / "trl",
        callbacks=[Clock()],
        **settings,
    )
    trainer.train()
    return seconds[1:]


def check_sampling(bench: Bench) -> Observation:
    """Times the sampling of answers, four for each prompt."""
    load = load_of(bench)
    dtype: Any = faster_dtype(bench.device)
    folder = load.model.save(bench.folder / "model", getattr(torch, dtype), bench.device)
    model = load_model(PolicySpec(str(folder), dtype=dtype, lora=LoraSpec(r=RANK))).to(bench.device)
    tokens, prompts = (128, 64) if bench.on_gpu else (24, 8)
    sampler = TransformersSampler(num_candidates=4, max_new_tokens=tokens, min_new_tokens=tokens, batch_size=256)
    ids = [pair["prompt_ids"] for pair in random_pairs(prompts, lambda _: (60, 1, 1), load.model.vocabulary)]
    request = SamplingRequest(model, byte_tokenizer(), ids, range(len(ids)), stop_ids=(), pad_id=0)
    sampler.sample(request)
    seconds = timed(partial(sampler.sample, request), bench.device)
    rate = 4 * prompts * tokens / seconds
    return Observation(f"{rate:,.0f} tokens/s, {4 * prompts} answers at once, {dtype}", {"tokens_per_second": rate})


CHECKS = (
    Check("speed/products", check_products, seconds=3.0),
    Check("speed/step", check_step, seconds=12.0),
    Check("speed/trl", check_trl, seconds=15.0),
    Check("speed/sampling", check_sampling, seconds=5.0),
)
