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
KEY = re.compile(r"^-? ?Parser key \"([^\"]+)\":\s*(.*)$")


class Parser(LightningArgumentParser):
    """Raises :class:`UsageError` where Lightning's parser prints all options and exits."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """As Lightning's. To a parser inside the parser, jsonargparse hands a null on as Python writes it."""
        if not self.exit_on_error and args is not None:
            args = [re.sub(r"^(--[\w.]+)=None$", r"\1=null", one) for one in args]
        return super().parse_args(args, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside the parser: the outer one tells the whole path
            super().error(message, ex)
        from lit_align.cli.messages import in_short

        raise UsageError(in_short(shortened(message))) from ex


def shortened(message: str) -> str:
    """The key and the reasons out of an error of jsonargparse.

    Example:
        >>> shortened('Parser key "a":\\n  Errors:\\n  - Parser key "b":\\n    Expected a <class \\'int\\'>. Got: x')
        '`a.b`: expected int. Got: x'
    """
    keys: list[str] = []
    reasons: list[str] = []
    for line in message.splitlines():
        text = line.strip()
        found = KEY.match(text)
        if found:
            keys.append(found[1])
            text = found[2].strip()
        if text and not NOISE.match(text):
            reasons.append(_reworded(text.lstrip("- ")))
    where = f"`{'.'.join(dict.fromkeys(keys))}`: " if keys else ""
    return where + "; ".join(dict.fromkeys(_telling(reasons)))


def _reworded(reason: str) -> str:
    reason = re.sub(r"Expected an? <class '([\w.]+)'>", r"expected \1", reason)
    return re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", reason)


def _telling(reasons: list[str]) -> list[str]:
    """The reasons without those of types that were not meant, where another one says what is wrong."""
    return [reason for reason in reasons if not OTHER_TYPE.match(reason)] or reasons
