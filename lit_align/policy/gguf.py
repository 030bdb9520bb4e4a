"""GGUF files, converted once to a safetensors folder in the cache.

transformers can read a GGUF file directly, but it dequantises at each start and the model then counts
as quantised: it can be neither saved nor quantised to NF4.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lit_align.policy.cache import cache_dir
from lit_align.policy.quiet import quiet_libraries

_LAYOUT = "1"  # part of each folder's name: raise it when the conversion writes something else


def converted_gguf(path: Path) -> Path:
    """The folder with the weights, tokenizer and generation config of a GGUF file, converted on first use.

    The folder is named by the file's content. It appears whole or not at all, and a second process waits
    for the first one's. Weights are kept exactly: in bfloat16 or float16 if that loses nothing, else
    in float32.

    Raises:
        ModuleNotFoundError: the package `gguf` is missing.
        ValueError: transformers cannot read the file as a causal language model.
    """
    folder = cache_dir() / "gguf" / f"{path.stem}-{_fingerprint(path)}"
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
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        model: Any = _read(path)
        del model.config.quantization_config  # it is dequantised: a plain model from here on
        model.hf_quantizer = None
        model.to(_smallest_exact_dtype(model)).save_pretrained(temporary)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(temporary)
        temporary.chmod(0o755)  # mkdtemp's folder is private; a cache may be shared
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def _fingerprint(path: Path) -> str:
    digest = hashlib.blake2b(_LAYOUT.encode(), digest_size=8)
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
