"""What is public: the homes of lit-align's names, and the classes that a config may name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from types import ModuleType

import callbacks
import lit_align

NOT_FOR_CODE = {"cli"}
"""Rooms that are used from the command line alone."""


def homes() -> list[ModuleType]:
    """The modules that users import names from, the package first."""
    rooms = [info.name for info in pkgutil.iter_modules(lit_align.__path__) if info.name not in NOT_FOR_CODE]
    modules = [importlib.import_module(f"lit_align.{name}") for name in rooms]
    return [lit_align, *(module for module in modules if getattr(module, "__all__", ())), callbacks]


def classes_of(base: type) -> list[tuple[str, type]]:
    """The public concrete classes of a kind, each with its class path, in the order of their names."""
    found: dict[type, str] = {}
    for home in homes()[1:]:
        for name in home.__all__:
            value = getattr(home, name)
            if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value):
                found.setdefault(value, f"{home.__name__}.{name}")
    return sorted(((path, kind) for kind, path in found.items() if kind is not base), key=lambda pair: pair[0])


def as_markdown(text: str, up: str) -> str:
    """A docstring's text as Markdown: roles become code, pages of the docs become links.

    Args:
        text: the docstring, or a part of it.
        up: the way from the page to the docs folder, such as "../".
    """
    text = re.sub(r":(?:class|func|meth|mod|attr):`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"\bdocs/(\w+)\.md\b", rf"[\1]({up}\1.md)", text)


def first_paragraph(kind: type, up: str) -> str:
    """The first paragraph of a class's docstring as Markdown."""
    return as_markdown(" ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split()), up)
