"""The lines of Python that load a model folder."""

from __future__ import annotations

from pathlib import Path, PurePath

from lit_align.policy.source import PACKAGE_SCHEME, is_local

ADAPTER = "adapter_config.json"


def holds_model(folder: Path) -> bool:
    """Whether a folder holds an adapter or all weights, as peft and transformers write them."""
    return folder.is_dir() and any((folder / file).is_file() for file in (ADAPTER, "config.json"))


def loading_lines(folder: Path, name: str | None = None) -> list[str]:
    """Three lines of Python that load a model folder and its tokenizer.

    Args:
        folder: as peft or transformers wrote it.
        name: what the lines call it; None takes its path.
    """
    place = name or str(folder)
    if (folder / ADAPTER).is_file():
        imports, loader = "import peft, transformers", "peft.AutoPeftModelForCausalLM"
    else:
        imports, loader = "import transformers", "transformers.AutoModelForCausalLM"
    return [
        imports,
        f'model = {loader}.from_pretrained("{place}", dtype="auto")',
        f'tokenizer = transformers.AutoTokenizer.from_pretrained("{place}")',
    ]


def short_name(place: str) -> str:
    """A hub id as it is, and only the last part of a path."""
    return place if not place.startswith(PACKAGE_SCHEME) and not is_local(place) else PurePath(place).name
