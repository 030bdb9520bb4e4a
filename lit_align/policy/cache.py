"""The folder for results that are computed once and used by later runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: `$LIT_ALIGN_CACHE`, or `~/.cache/lit-align`."""
    return Path(os.environ.get("LIT_ALIGN_CACHE") or Path.home() / ".cache" / "lit-align").expanduser()
