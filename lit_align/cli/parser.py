"""The argument parser: Lightning's, with errors short enough to read."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lit_align.cli.errors import UsageError

# jsonargparse reports a wrong value inside a class as a tree over all types it might have had.
NOISE = re.compile(
    r"^(-? ?Does not validate|Subtypes:|Errors:|Given value|-? ?Problem with given class_path"
    r"|-? ?Expected a <class 'NoneType'>)"
)
OTHER_TYPE = re.compile(r"^(expected (int|float|bool|list|dict|str)$|Expected a path but)")
LARGEST_SEED = 2**32 - 1  # numpy's
KEY = re.compile(r"^-? ?Parser key \"([^\"]+)\":\s*(.*)$")


class Parser(LightningArgumentParser):
    """Lightning's parser, but it raises :class:`UsageError` instead of printing all options and exiting."""

    def parse_args(self, args: Any = None, *positional: Any, **options: Any) -> Any:
        """As Lightning's, except that a parser inside the parser gets null, for which jsonargparse passes "None" on."""
        if not self.exit_on_error and args is not None:
            args = [re.sub(r"^(--[\w.]+)=None$", r"\1=null", word) for word in args]
        return super().parse_args(args, *positional, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside the parser: the outer one knows the whole path
            super().error(message, ex)
        from lit_align.cli.messages import explain

        raise UsageError(explain(shorten(message))) from ex


def read_seed(value: Any) -> int:
    """Reads a seed that numpy takes.

    Raises:
        ValueError: it is no whole number, or outside numpy's range.
    """
    try:
        seed = int(str(value))
    except ValueError:
        seed = -1
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"expected a whole number from 0 to {LARGEST_SEED}, got {value!r}")
    return seed


def shorten(message: str) -> str:
    r"""Shortens an error of jsonargparse to the key and the reasons.

    Example:
        >>> shorten('Parser key "a":\n  Errors:\n  - Parser key "b":\n    Expected a <class \'int\'>. Got: x')
        '`a.b`: expected int. Got: x'
    """
    keys: list[str] = []
    reasons: list[str] = []
    for line in message.splitlines():
        text = line.strip()
        match = KEY.match(text)
        if match:
            keys.append(match[1])
            text = match[2].strip()
        if text and not NOISE.match(text):
            reasons.append(_reword(text.lstrip("- ")))
    where = f"`{'.'.join(dict.fromkeys(keys))}`: " if keys else ""
    return where + "; ".join(dict.fromkeys(_drop_other_types(reasons)))


def _reword(reason: str) -> str:
    reason = re.sub(r"Expected an? <class '([\w.]+)'>", r"expected \1", reason)
    return re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", reason)


def _drop_other_types(reasons: list[str]) -> list[str]:
    """Drops the reasons of types that were not meant, unless there is no other reason."""
    return [reason for reason in reasons if not OTHER_TYPE.match(reason)] or reasons
