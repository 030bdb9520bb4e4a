"""Times one training step of lit-align and of TRL's DPOTrainer at its best, or of lit-align without its fast paths.

    python benchmarks/step.py --peer trl
    python benchmarks/step.py --peer plain

A step is forward, loss, backward and optimizer, with LoRA on all linear layers and the reference computed in advance
on both sides. Each side trains in its own process; the processes take turns of a few consecutive steps. The floor is
the time of the step's multiply-adds at the rate of a plain matrix product, measured between the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ALLOCATORS, Shape, machine, measured_environment, table, write_json

from lit_align.doctor.models import RandomLlama

SHAPES = {
    shape.name: shape
    for shape in (Shape("long-answers", 150, 250), Shape("multi-turn", 400, 80), Shape("chat", 60, 120))
}
WARM_UP = 1
GB = 1e9
BUSY = 0.5
"""Load average above which timings are not reliable."""
ALLOCATOR_HELP = "kept: glibc keeps freed memory on both sides; system: the default, which lit-align changes by itself"
SIDE = Path(__file__).with_name("side.py")


def main() -> int:
    options = _options()
    before = machine(options.threads)
    with tempfile.TemporaryDirectory() as name:
        model = options.model or str(_random_model(options, Path(name)))
        results: list[dict[str, Any]] = []
        for shape in options.shapes:
            results.append(measure(shape, model, options))
            _write(options, before, results)
    peer = {"trl": "TRL", "plain": "plain"}[options.peer]
    header = ["pair (tokens)", "lit-align s", f"{peer} s", "pairs/s", f"{peer} pairs/s", "faster", "memory GB"]
    header += [f"{peer} GB", "memory ratio", "floor s", "of floor", f"{peer} of floor"]
    print(table(header, [_row(result) for result in results]))
    if before["load_average"][0] > BUSY:
        print(f"The machine was busy: load average {before['load_average'][0]:.1f} before the run.")
    return 0


def _write(options: argparse.Namespace, before: dict[str, Any], results: list[dict[str, Any]]) -> None:
    content = {
        "benchmark": "step",
        "peer": options.peer,
        "machine": before,
        "load_average_after": machine(options.threads)["load_average"],
        "options": vars(options),
        "model": options.model or RandomLlama(**_sizes(options)),
        "results": results,
    }
    write_json(options.output, content)


def measure(shape: Shape, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures both sides on one shape, in turns."""
    settings = {
        "model": model,
        "prompt": shape.prompt,
        "completion": shape.completion,
        "pairs": options.pairs,
        "rank": options.rank,
        "dtype": options.dtype,
        "threads": options.threads,
        "allocator": options.allocator,
        "compile": options.compile,
        "steps": (WARM_UP + options.repeats) * options.consecutive,
    }
    with Side("lit-align", settings) as lit, Side(options.peer, settings) as peer:
        seconds: dict[str, list[float]] = {"lit_align": [], "peer": []}
        rates = []
        for turn in range(WARM_UP + options.repeats):
            rates.append(lit.ask("rate")["rate"])
            for key, side in (("lit_align", lit), ("peer", peer)):
                times = [side.ask("step")["seconds"] for _ in range(options.consecutive)]
                if turn >= WARM_UP:
                    seconds[key] += times
                print(f"{shape.name} {turn}: {key} {' '.join(map('{:.2f}'.format, times))} s", file=sys.stderr)
        lit.peak = lit.answer()
        peer.peak = peer.answer()
        return _result(shape, options, seconds, rates, lit, peer)


class Side:
    """A process of `side.py`, which trains one step for each request."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.peak: dict[str, Any] = {}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, str(SIDE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=measured_environment(settings["threads"], settings["allocator"]),
            text=True,
        )
        self._send(json.dumps({**settings, "side": name}))
        self.start = self.answer()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, request: str) -> dict[str, Any]:
        self._send(request)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Waits for the next answer.

        Raises:
            RuntimeError: the process ended without one; the message has the end of its output.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"The side {self.name!r} ended early. It printed:\n{self._log.read()[-4000:]}")
        content: dict[str, Any] = json.loads(line)
        return content

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def _result(
    shape: Shape,
    options: argparse.Namespace,
    seconds: dict[str, list[float]],
    rates: list[float],
    lit: Side,
    peer: Side,
) -> dict[str, Any]:
    rate = statistics.median(rates)
    floor = lit.start["work"]["multiply_adds"] / rate
    sides = {}
    for key, side in (("lit_align", lit), ("peer", peer)):
        median = statistics.median(seconds[key])
        sides[key] = {
            "seconds": median,
            "all_seconds": seconds[key],
            "pairs_per_second": options.pairs / median,
            "resident_before_training": side.start["resident"],
            "peak_memory": side.peak["peak_device"] or side.peak["peak"],
            "peak_host_memory": side.peak["peak"],
            "of_floor": median / floor,
        }
    return {
        "shape": shape,
        **sides,
        "speed_ratio": sides["peer"]["seconds"] / sides["lit_align"]["seconds"],
        "memory_ratio": sides["lit_align"]["peak_memory"] / sides["peer"]["peak_memory"],
        "work": lit.start["work"],
        "multiply_adds_per_second": rate,
        "all_rates": rates,
        "floor_seconds": floor,
    }


def _row(result: dict[str, Any]) -> list[str]:
    lit = result["lit_align"]
    peer = result["peer"]
    return [
        str(result["shape"]),
        f"{lit['seconds']:.3g}",
        f"{peer['seconds']:.3g}",
        f"{lit['pairs_per_second']:.3g}",
        f"{peer['pairs_per_second']:.3g}",
        f"{result['speed_ratio']:.2f}x",
        f"{lit['peak_memory'] / GB:.2f}",
        f"{peer['peak_memory'] / GB:.2f}",
        f"{result['memory_ratio']:.2f}x",
        f"{result['floor_seconds']:.3g}",
        f"{lit['of_floor']:.2f}x",
        f"{peer['of_floor']:.2f}x",
    ]


def _sizes(options: argparse.Namespace) -> dict[str, Any]:
    return {"hidden": options.hidden, "layers": options.layers, "vocabulary": options.vocabulary}


def _random_model(options: argparse.Namespace, folder: Path) -> Path:
    script = "import json, sys; from pathlib import Path; from lit_align.doctor.models import RandomLlama; "
    script += "RandomLlama(**json.loads(sys.argv[1])).save(Path(sys.argv[2]))"
    command = [sys.executable, "-c", script, json.dumps(_sizes(options)), str(folder)]
    subprocess.run(command, check=True, env=measured_environment(options.threads), cwd=SIDE.parent)
    return folder


def _shape(text: str) -> Shape:
    if text in SHAPES:
        return SHAPES[text]
    prompt, _, completion = text.partition("+2x")
    if not (prompt.isdigit() and completion.isdigit() and int(prompt) > 0 and int(completion) > 0):
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(SHAPES)}, or tokens such as 150+2x250, got {text!r}"
        )
    return Shape(text, int(prompt), int(completion))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", choices=["trl", "plain"], default="trl", help="plain: lit-align itself without its fast paths"
    )
    parser.add_argument("--model", help="folder or hub id of a model; default: a random Llama of 31M parameters")
    parser.add_argument("--hidden", type=int, default=RandomLlama.hidden, help="width of the random Llama")
    parser.add_argument("--layers", type=int, default=RandomLlama.layers, help="layers of the random Llama")
    parser.add_argument("--vocabulary", type=int, default=RandomLlama.vocabulary, help="tokens of the random Llama")
    parser.add_argument(
        "--shapes",
        type=_shape,
        nargs="+",
        default=list(SHAPES.values()),
        help=f"any of {', '.join(SHAPES)}, or tokens such as 150+2x250; default: these three",
    )
    parser.add_argument("--pairs", type=int, default=4, help="pairs per step")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns per side, after one warm-up turn")
    parser.add_argument("--consecutive", type=int, default=3, help="consecutive steps per turn")
    parser.add_argument("--rank", type=int, default=16, help="rank of the LoRA adapters on all linear layers")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the base model")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides; not with --peer plain")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--allocator", choices=list(ALLOCATORS), default="kept", help=ALLOCATOR_HELP)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/step.json"))
    options = parser.parse_args()
    if options.compile and options.peer == "plain":
        parser.error("--compile does not work with --peer plain, which is never compiled: leave one of them out")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
