"""Times training steps on one GPU beside TRL's DPOTrainer at its best, in about ten minutes and one run.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --rehearse     # tiny shapes, on a CPU, too: does it run?

Two random Llamas, of 1.5 billion parameters in bfloat16 and of 8 billion in NF4, with LoRA of rank 16 on all linear
layers. TRL gets the reference precomputed, its fused head, Liger's kernels and the fastest attention that are
installed; both sides recompute activations where the model is large. Prints a table and writes JSON; what is left out
for want of a package is said. It needs no network, and 17 GB of disk for the larger model.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import machine, table, write_json

from lit_align.doctor.environment import describe, sdpa_kernels
from lit_align.doctor.findings import Bench
from lit_align.doctor.floor import product_rate
from lit_align.doctor.models import RandomLlama
from lit_align.doctor.run import silence
from lit_align.doctor.speed import RANK, LitStep, Load, repeat, trl_seconds
from lit_align.policy import CompletionForward, LoraSpec, PolicySpec, load_model
from lit_align.policy.nf4 import keep_trainable_on_cpu
from lit_align.policy.quantized import quantization_settings

GIB = 1 << 30
SHAPES = ((400, 80), (150, 250), (1024, 512))
"""Tokens of a prompt and of each completion."""
STEPS = 5


@dataclass(frozen=True)
class Subject:
    """A model to train.

    Args:
        name: for the table.
        size: of the random Llama.
        quantization: of its weights; None is bfloat16.
        recompute: whether activations are recomputed in the backward.
        pairs: pairs of a step.
    """

    name: str
    size: RandomLlama
    quantization: Any = None
    recompute: bool = False
    pairs: int = 8


SUBJECTS = (
    Subject("1.5B bfloat16", RandomLlama(1536, 28, 151936, 8960, 12, 2)),
    Subject("8B NF4", RandomLlama(4096, 32, 128256, 14336, 32, 8, tied=False), "nf4", recompute=True, pairs=4),
)
TINY = RandomLlama(96, 2, 512, 192, 4, 2)
REHEARSED = (
    Subject("tiny bfloat16", TINY, pairs=2),
    Subject("tiny NF4", replace(TINY, tied=False), "nf4", recompute=True, pairs=2),
)


def main() -> int:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.rehearse:
        sys.exit("There is no GPU here. --rehearse runs the same with tiny shapes on a CPU.")
    kernels = "liger" if device.type == "cuda" and find_spec("liger_kernel") is not None else None
    attention = fastest_attention(device)
    missing = list(what_is_missing(device))
    for line in missing:
        print(line, file=sys.stderr)
    rate = product_rate(torch.bfloat16, device)
    results: list[dict[str, Any]] = []
    deadline = time.monotonic() + options.seconds
    for subject in REHEARSED if options.rehearse else SUBJECTS:
        with tempfile.TemporaryDirectory() as name:
            bench = Bench(device, Path(name), 10.0)
            subject.size.save(bench.folder / "model", torch.bfloat16, device)
            free()
            for load in loads(subject, options.rehearse):
                if time.monotonic() > deadline:
                    what = f"{subject.name}, {load.prompt} + 2x{load.completion}"
                    print(f"left out: {what}: {options.seconds:.0f} s are over", file=sys.stderr)
                    continue
                results.append(measure(subject, load, bench, rate, kernels, attention))
                print(" ".join(row_of(results[-1])), file=sys.stderr, flush=True)
    content = {
        "benchmark": "gpu", "rehearsal": options.rehearse, "machine": machine(torch.get_num_threads()),
        "environment": describe(device), "missing": missing, "kernels": kernels, "attention": attention,
        "multiply_adds_per_second": rate, "results": results,
    }  # fmt: skip
    write_json(options.output, content)
    print(table(HEADER, [row_of(result) for result in results]))
    return 0


def loads(subject: Subject, rehearse: bool) -> Iterator[Load]:
    for prompt, completion in SHAPES:
        by = 10 if rehearse else 1
        yield Load(subject.size, subject.pairs, prompt // by, completion // by)


def what_is_missing(device: torch.device) -> Iterator[str]:
    if find_spec("trl") is None:
        yield "left out: TRL, which is not installed (pip install 'lit-align[parity]')"
    if find_spec("liger_kernel") is None:
        yield "left out: Liger's kernels on both sides (pip install 'lit-align[liger]')"
    if device.type == "cuda" and fastest_attention(device) == "sdpa":
        yield f"left out: flash_attention_2, which is not installed; sdpa has {', '.join(sdpa_kernels(device))}"


def fastest_attention(device: torch.device) -> str:
    return "flash_attention_2" if device.type == "cuda" and find_spec("flash_attn") is not None else "sdpa"


def measure(subject: Subject, load: Load, bench: Bench, rate: float, kernels: Any, attention: str) -> dict[str, Any]:
    """Measures both sides on one shape; a side that fails says why in its place."""
    sides: dict[str, Callable[[], tuple[list[float], int]]] = {
        "lit_align": lambda: lit_side(subject, load, bench, kernels)
    }
    if find_spec("trl") is not None:
        sides["trl"] = lambda: trl_side(subject, load, bench, kernels, attention)
    result: dict[str, Any] = {"model": subject.name, "pairs": load.pairs, "prompt": load.prompt,
                              "completion": load.completion}  # fmt: skip
    for name, run in sides.items():
        result[name] = side_of(run, bench)
        free()
    for name in sides:
        if "seconds" in result[name]:
            result[name]["pairs_per_second"] = load.pairs / result[name]["seconds"]
            result[name]["of_floor"] = result["lit_align"].get("multiply_adds", 0) / rate / result[name]["seconds"]
    return result


def side_of(run: Callable[[], Any], bench: Bench) -> dict[str, Any]:
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    try:
        with silence():
            seconds, work = run()
    except Exception as error:  # such as out of memory: the other side and the other shapes go on
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    peak = torch.cuda.max_memory_allocated(bench.device) if bench.on_gpu else None
    return {"seconds": statistics.median(seconds), "all_seconds": seconds, "peak": peak, "multiply_adds": work}


def lit_side(subject: Subject, load: Load, bench: Bench, kernels: Any) -> tuple[list[float], int]:
    spec = PolicySpec(
        str(bench.folder / "model"), dtype="bfloat16", quantization=subject.quantization, kernels=kernels,
        gradient_checkpointing=subject.recompute, lora=LoraSpec(r=RANK, alpha=2 * RANK),
    )  # fmt: skip
    model = load_model(spec).to(bench.device)
    step = LitStep(model, load.batch().to(bench.device), CompletionForward())
    return list(repeat(step, bench, 1.0)), load.work(model)


def trl_side(subject: Subject, load: Load, bench: Bench, kernels: Any, attention: str) -> tuple[list[float], int]:
    from transformers import AutoModelForCausalLM

    quantized: dict[str, Any] = {}
    if subject.quantization is not None:
        quantized["quantization_config"] = quantization_settings(subject.quantization, torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        bench.folder / "model", dtype=torch.bfloat16, attn_implementation=attention, device_map={"": bench.device},
        **quantized,
    )  # fmt: skip
    keep_trainable_on_cpu(model)
    settings: dict[str, Any] = {"use_liger_kernel": kernels is not None, "gradient_checkpointing": subject.recompute}
    if subject.recompute:
        settings["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    return trl_seconds(model, load, bench, STEPS, **settings), load.work(model)


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


HEADER = ("model", "tokens", "pairs/s", "TRL", "faster", "GiB", "TRL GiB", "of products", "TRL of products")


def row_of(result: dict[str, Any]) -> list[str]:
    lit = result["lit_align"]
    trl = result.get("trl", {"error": "left out"})
    ratio = f"{trl['seconds'] / lit['seconds']:.2f}x" if "seconds" in trl and "seconds" in lit else ""
    cells = [result["model"], f"{result['prompt']} + 2x{result['completion']}"]
    speeds = [f"{side['pairs_per_second']:.3g}" if "seconds" in side else side["error"] for side in (lit, trl)]
    peaks = [f"{side['peak'] / GIB:.1f}" if side.get("peak") else "" for side in (lit, trl)]
    shares = [f"{side['of_floor']:.0%}" if "seconds" in side else "" for side in (lit, trl)]
    return [*cells, *speeds, ratio, *peaks, *shares]


def _options(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="tiny models and shapes, on any machine")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin no shape after this many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/gpu.json"))
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
