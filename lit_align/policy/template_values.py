"""Writes values of variables into a chat template's text, so that every user of the tokenizer has them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

_DIRECTIVES = "aAbBcCdDeFfgGhHIjmMnprRStTuUVwWxXyYzZ"


def set_defaults(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any]) -> None:
    """Gives variables of the chat template default values, for chats that set none.

    Args:
        tokenizer: the tokenizer with the template.
        values: plain JSON values by name.

    Raises:
        ValueError: the tokenizer has no chat template, or a name cannot be a variable's.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "`chat_template_kwargs` are variables of a chat template, and the tokenizer has none: set `chat_template`."
        )
    for name in values:
        if not name.isidentifier():
            raise ValueError(
                f"expected the names in `chat_template_kwargs` to be variables of a template, got {name!r}"
            )
        if name not in str(tokenizer.chat_template):
            rank_zero_warn(f"`chat_template_kwargs` sets {name!r}, which the chat template never mentions")
    # `+%}` keeps a line break that the template begins with.
    lines = [f"{{% set {name} = {name} if {name} is defined else {value!r} +%}}" for name, value in values.items()]
    _prepend(tokenizer, "".join(lines))


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes today's date."""
    return "strftime_now" in str(tokenizer.chat_template)


def fix_date(tokenizer: PreTrainedTokenizerBase, now: datetime) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer whose chat template takes `now` as the current time; itself if it writes no date."""
    if not writes_date(tokenizer):
        return tokenizer
    dated = copy.copy(tokenizer)
    written = [(f"%{letter}", now.strftime(f"%{letter}")) for letter in _DIRECTIVES]
    without_zero = [(f"%-{letter}", now.strftime(f"%{letter}").lstrip("0") or "0") for letter in "dHIjmMSUWy"]
    filters = [f"replace({name!r}, {text!r})" for name, text in [*written, *without_zero, ("%%", "%")]]
    _prepend(dated, f"{{% macro strftime_now(format) %}}{{{{ format | {' | '.join(filters)} }}}}{{% endmacro +%}}")
    return dated


def _prepend(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):  # several by name, such as "default" and "tool_use"
        tokenizer.chat_template = {name: text + named for name, named in template.items()}
    else:
        tokenizer.chat_template = text + template
