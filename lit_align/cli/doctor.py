"""`lit-align doctor`: is what lit-align computes here right, and fast?"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from lit_align import run_folder
from lit_align.cli.examples import command_parser
from lit_align.console import note

ON_GPU = 480.0
ON_CPU = 120.0
EXAMPLES = """examples:
  lit-align doctor --json doctor.json
  lit-align doctor --only logps fit --seconds 60
"""


def run(args: Sequence[str]) -> None:
    """Parses the arguments of `doctor`, makes the checks and prints what they find.

    Raises:
        SystemExit: a check failed.
    """
    parsed = _parser().parse_args(list(args))
    from lit_align.doctor.environment import bench_device, describe, environment_lines
    from lit_align.doctor.report import all_right, as_record, finding_line, verdict
    from lit_align.doctor.run import choose, examine

    checks = choose(parsed.only)
    device = bench_device(parsed.device)
    seconds = parsed.seconds or (ON_GPU if device.type == "cuda" else ON_CPU)
    began = time.monotonic()
    environment = describe(device)
    print("\n".join(environment_lines(environment)), end="\n\n")
    width = max(len(check.name) for check in checks)
    findings = examine(checks, device, seconds, end=lambda finding: note(finding_line(finding, width)))
    took = time.monotonic() - began
    print(f"\n{verdict(findings, took)}")
    if parsed.json is not None:
        run_folder.write_json(parsed.json, as_record(environment, findings, took))
        print(f"Written: {parsed.json}")
    if not all_right(findings):
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "doctor",
        "Checks on this machine, with small random models and no network, that what lit-align computes is right and "
        "fast: log-probs, a whole fit and its resume, memory, speed. The exit code is 1 if something is wrong.",
        EXAMPLES,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to a JSON file, too")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="checks or groups: logps, fit, memory, speed")
    parser.add_argument(
        "--seconds", type=_positive, metavar="N",
        help=f"skip what would take longer; {ON_GPU:.0f} on a GPU, {ON_CPU:.0f} on a CPU",
    )  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to check; a GPU if there is one")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return value
