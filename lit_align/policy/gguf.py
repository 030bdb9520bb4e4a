"""GGUF files, converted once to a safetensors folder in the cache.

transformers can read a GGUF file directly, but it dequantises at each start and the model then counts
as quantised: it can be neither saved nor quantised to NF4.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lit_align.files import hash_file, written_whole
from lit_align.policy.cache import cache_dir
from lit_align.policy.quiet import quiet_libraries

_LAYOUT = b"1"  # part of each folder's name: raise it when the conversion writes something else


def converted_gguf(path: Path) -> Path:
    """The folder with the weights, tokenizer and generation config of a GGUF file, converted on first use.

    The folder is named by the file's content. It appears whole or not at all, and a second process waits
    for the first one's. Weights are kept exactly: in bfloat16 or float16 if that loses nothing, else
    in float32.

    Raises:
        ModuleNotFoundError: the package `gguf` is missing.
        ValueError: transformers cannot read the file as a causal language model.
    """
    folder = cache_dir() / "gguf" / f"{path.stem}-{hash_file(path, 8, _LAYOUT).hex()}"
    if folder.exists():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"Reading {path.name} needs the package `gguf`: pip install gguf")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _convert(path, folder)
    return folder


def _convert(path: Path, folder: Path) -> None:
    with written_whole(folder) as part:
        model: Any = _read(path)
        del model.config.quantization_config  # it is dequantised: a plain model from here on
        model.hf_quantizer = None
        model.to(_smallest_exact_dtype(model)).save_pretrained(part)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(part)


def _read(path: Path) -> PreTrainedModel:
    try:
        with quiet_libraries():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
    except Exception as error:
        raise ValueError(
            f"transformers cannot read {path} as a causal language model ({type(error).__name__}: {error}). "
            "Is the file whole, and its architecture one that transformers reads from GGUF?"
        ) from error
    return model


def _smallest_exact_dtype(model: PreTrainedModel) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(p.to(dtype).float(), p) for p in model.parameters()):
            return dtype
    return torch.float32
