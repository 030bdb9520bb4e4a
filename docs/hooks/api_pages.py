"""The API reference: one page for each home of public names, from the docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType

from public import as_markdown, homes


def pages() -> Iterator[tuple[str, str]]:
    """The pages of the API, and their list."""
    rows = []
    listed: set[int] = set()
    for home in reversed(homes()):  # a name stands where its room is; the package itself lists what is left
        names = [name for name in home.__all__ if id(getattr(home, name)) not in listed]
        listed |= {id(getattr(home, name)) for name in names}
        path = f"{home.__name__.replace('.', '_')}.md"
        rows.append(f"| [{home.__name__}]({path}) | {_summary(home)} |")
        yield f"reference/api/{path}", _page(home, names)
    table = "\n".join(reversed(rows))
    lead = "Everything that the command line does is a few lines of Python. Names are imported from these homes:"
    yield "reference/api/index.md", f"# API\n\n{lead}\n\n| import from | |\n|---|---|\n{table}\n"


def _page(home: ModuleType, names: list[str]) -> str:
    blocks = "\n\n".join(f"::: {home.__name__}.{name}" for name in names)
    return f"# {home.__name__}\n\n{_summary(home)}\n\n{blocks}\n"


def _summary(home: ModuleType) -> str:
    return as_markdown(" ".join((inspect.getdoc(home) or "").split("\n\n")[0].split()), "../../")
