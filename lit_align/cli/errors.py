"""The error for wrong use of the command line, and a hint for errors of imports."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_NOT_IN_MODULE = re.compile(r"module '(\w+)[\w.]*' has no attribute|No module named '(\w+)\.")


class UsageError(Exception):
    """Wrong options or values; its text is the whole message."""


def with_name_clash(message: str, folder: Path | None = None) -> str:
    """Adds to an error of an import that a user's file of that name is not the module that was found, if it is so.

    Args:
        message: of the error.
        folder: the working folder; None is the current one.
    """
    match = _NOT_IN_MODULE.search(message)
    name = (match[1] or match[2]) if match else None
    place = folder or Path.cwd()
    own = [path for path in (place / f"{name}.py", place / f"{name}") if name and path.exists()]
    imported = getattr(sys.modules.get(name or ""), "__file__", None)
    if not own or imported is None or Path(imported).is_relative_to(place):
        return message
    return (
        f"{message}\n{own[0].name} in the working folder is not that module: an installed one has its name "
        f"({imported}). Give yours a name of its own"
    )
