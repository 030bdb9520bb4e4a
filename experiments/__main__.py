"""`python -m experiments table1 ... table6|all|report|keep`: runs arms and writes the report, see README.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from experiments.kept import FOLDER, keep, write_kept
from experiments.plan import TABLES, arms_of, expected_seconds
from experiments.report import write_report
from experiments.runner import Records, code_version, run
from experiments.schedules import SCHEDULES
from experiments.setup import Setup


def main() -> None:
    options = _options()
    changes = json.loads(options.setup.read_text(encoding="utf-8")) if options.setup else {}
    setup = Setup(**changes)
    folder = options.results / (options.code or code_version())
    names = [name for name in options.what if name in TABLES] or list(TABLES)
    arms = arms_of(names, setup, options.seeds)
    if options.schedules:
        arms = [arm for arm in arms if arm.scouts or arm.schedule in options.schedules]
    if options.dry_run:
        seconds = sum(expected_seconds(arm, setup) for arm in arms)
        print(f"{len(arms)} arms, about {seconds / 3600 / options.workers:.1f} h with {options.workers}")
        return
    if "keep" in options.what:
        if changes:
            sys.exit(
                "keep is for the usual setup: figures of another model do not belong beside those in docs/evidence"
            )
        keep(Records(folder, setup).read(arms))
        write_kept(folder / "kept.md")
        print(f"Figures of all rounds: {FOLDER}; their tables: {folder / 'kept.md'}")
        return
    failed = [] if "report" in options.what else run(arms, setup, folder, options.workers)
    planned = arms_of(TABLES, setup, options.seeds)
    path = write_report(Records(folder, setup), planned, " ".join(["python -m experiments", *sys.argv[1:]]))
    print(f"Tables and plots: {path}")
    if failed:
        sys.exit("\n".join([f"{len(failed)} arms are missing; the same command tries them again.", *failed]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument(
        "what",
        nargs="+",
        choices=[*TABLES, "all", "report", "keep"],
        help="which arms to run; report runs none, keep adds their figures to docs/evidence",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="default: three, six for Table 3")
    parser.add_argument(
        "--schedules",
        choices=list(SCHEDULES),
        nargs="+",
        help="only arms of these schedules, and those that evaluate starts",
    )
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="how many arms to run at once")
    parser.add_argument("--setup", type=Path, help="JSON file with changes to experiments.setup.Setup")
    parser.add_argument(
        "--results", type=Path, default=Path("runs/evidence"), help="one folder per version of the code"
    )
    parser.add_argument("--code", help="continue in the folder of this version, even if the code has changed")
    parser.add_argument("--dry_run", action="store_true", help="only print the number of arms and the expected time")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. Finished arms are kept; the same command continues.")
