"""Pages of other libraries, said in a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable

from transformers import __version__ as transformers_version


def _unknown_type(found: re.Match[str]) -> str:
    return (
        f"transformers {transformers_version} does not know models of the type `{found[1]}` (`model_type` in its "
        "config.json). Is it the folder or hub id that you mean? A model newer than your transformers needs: "
        "pip install --upgrade transformers"
    )


def _no_tokenizer(found: re.Match[str]) -> str:
    return (
        "the model's folder has no tokenizer that can be read: expected a tokenizer.json in it, or a tokenizer.model "
        "and the package that reads it (pip install sentencepiece tiktoken)"
    )


_PAGES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"has model type `([^`]*)` but Transformers does not recognize"), _unknown_type),
    (re.compile(r"Couldn't instantiate the backend tokenizer from one of"), _no_tokenizer),
)


def in_short(message: str) -> str:
    """The message, or a sentence with what to do in place of a page that is known."""
    for pattern, sentence in _PAGES:
        if found := pattern.search(message):
            return sentence(found)
    return message
