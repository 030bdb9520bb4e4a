"""The command line: `lit-align`."""

from lit_align.cli.entry import main

__all__ = ["main"]
