"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from lit_align.escape import escape


def markdown_table(rows: Sequence[Sequence[str]], aligned: bool = False) -> str:
    """Formats rows of cells as a table, with the first row as its header.

    Args:
        rows: at least one row, all of the same length. Bars and line breaks in cells do not end them.
        aligned: pads cells, so that columns line up in a terminal.

    Example:
        >>> print(markdown_table([["loss", "beta"], ["DPO", "0.1"]], aligned=True))
        | loss | beta |
        |------|------|
        | DPO  | 0.1  |
    """
    rows = [list(map(_cell, row)) for row in rows]
    widths = [max(map(len, column)) if aligned else 1 for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(text: str) -> str:
    return escape(text).replace("|", "\\|").replace("\n", "<br>")
