"""`python -m experiments table1|table2|table3|all|report`: README.md says what each does."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from experiments.arm import Setup
from experiments.plan import TABLES, expected_seconds, with_parents
from experiments.report import write_report
from experiments.runner import Records, code_version, run


def main() -> None:
    options = _options()
    changes = json.loads(options.setup.read_text(encoding="utf-8")) if options.setup else {}
    setup = Setup(**changes)
    folder = options.results / (options.code or code_version())
    names = list(TABLES) if options.what in ("all", "report") else [options.what]
    arms = [arm for name in names for arm in TABLES[name](setup, options.seeds)]
    if options.dry_run:
        seconds = sum(expected_seconds(arm, setup) for arm in with_parents(arms))
        print(f"{len(with_parents(arms))} arms, about {seconds / 3600 / options.workers:.1f} h with {options.workers}")
        return
    failed = [] if options.what == "report" else run(arms, setup, folder, options.workers)
    path = write_report(Records(folder, setup), options.seeds, " ".join(["python -m experiments", *sys.argv[1:]]))
    print(f"Tables and plots: {path}")
    if failed:
        sys.exit("\n".join([f"{len(failed)} arms are missing; the same command tries them again.", *failed]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("what", choices=[*TABLES, "all", "report"], help="whose arms to run; report runs none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="arms at once")
    parser.add_argument("--setup", type=Path, help="JSON file with changes to experiments.arm.Setup")
    parser.add_argument("--results", type=Path, default=Path("runs/evidence"), help="a folder a version of the code")
    parser.add_argument("--code", help="go on in the folder of this version, whatever has changed since")
    parser.add_argument("--dry_run", action="store_true", help="only say how many arms, and how long")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. Finished arms are kept, the same command goes on.")
