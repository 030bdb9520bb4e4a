"""Names the broken file of a model, where a library only fails on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lit_align.policy.source import locate_model

_SAID = 300  # characters of a library's own message


@contextmanager
def naming_files(model: str, part: str) -> Iterator[None]:
    """Says which of a model's files is broken, if the block fails over it.

    Args:
        model: a folder, a GGUF file or a hub id.
        part: what the block reads, such as "tokenizer".

    Raises:
        ValueError: a file is cut short or holds something else.
    """
    try:
        yield
    except Exception as error:
        demand_whole_files(Path(locate_model(model)))
        if isinstance(error, OSError | ValueError | ImportError | RuntimeError) and not _is_validation(error):
            raise  # their texts are meant for users
        files = ", ".join(path.name for path in sorted(Path(locate_model(model)).glob("*.json"))) or "on the hub"
        why = f"{type(error).__name__}: {error}"[:_SAID]
        raise ValueError(f"the {part} of {model!r} cannot be read from its files ({files}): {why}") from error


def demand_whole_files(folder: Path) -> None:
    """Refuses a folder with a file of settings or weights that is cut short; a hub id is no folder, and passes.

    Raises:
        ValueError: there is one.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no whole JSON file ({error}): copy or download the model again") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} should hold a JSON object, but holds a {type(content).__name__}")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            why = str(error).removeprefix("Error while deserializing header: ")
            raise ValueError(
                f"{path} is broken or cut short ({why}): copy or download the model again, or take an earlier "
                "checkpoint"
            ) from error


def _is_validation(error: Exception) -> bool:
    """Whether it is the hub library's word that a setting has the wrong type, which does not name the file."""
    return type(error).__name__.startswith("StrictDataclass")
