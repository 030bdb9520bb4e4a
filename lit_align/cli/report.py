"""`lit-align report`: what happened in a run, or in several, as one HTML page."""

from __future__ import annotations

import argparse
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from lit_align import run_folder
from lit_align.cli.examples import command_parser
from lit_align.html_report.page import write_report

EXAMPLES = """examples:
  lit-align report runs/quickstart --open
  lit-align report runs/first runs/second --output compared.html
"""


def run(args: Sequence[str]) -> None:
    """Parses the arguments of `report` and writes the page."""
    parsed = _parser().parse_args(list(args))
    folders = [run_folder.locate_run(path) for path in parsed.runs]
    output: Path = parsed.output or (folders[0] / run_folder.REPORT if len(folders) == 1 else Path("report.html"))
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"expected --output to name an .html file, got {output}")
    write_report(folders, output)
    print(f"Report: {output} ({output.stat().st_size / 1e6:.1f} MB). It opens in any browser, without a network.")
    if parsed.open:
        webbrowser.open(output.resolve().as_uri())


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "report",
        "Writes what happened in a run, or in several side by side, as one HTML file.",
        EXAMPLES,
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run folder (runs/NAME or NAME)")
    parser.add_argument(
        "-o", "--output", type=Path, help="the file to write; report.html in the run folder, or here for several runs"
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    return parser
