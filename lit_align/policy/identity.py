"""The identity of a model: all that its log-probs depend on, so that stored ones are never used for another model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from lit_align.files import hash_file
from lit_align.policy.source import locate_adapter, locate_model
from lit_align.policy.spec import PolicySpec

_WEIGHTS = ("*.safetensors", "*.bin")  # in the order in which they are preferred


def model_identity(spec: PolicySpec, precision: str = "32-true") -> dict[str, Any]:
    """The weights, quantisation, dtype and saved adapter of a model, as plain JSON values.

    Weights in a folder are identified by the content of their files, those of the hub by the commit. Fresh adapters
    (`lora`) are left out, since they change nothing at the start. So are paths: a moved folder is the same.

    Args:
        spec: how the model is loaded.
        precision: the Trainer's precision, which decides the dtype of the computation.

    Raises:
        ValueError: the commit of a hub id cannot be determined.
        FileNotFoundError: a file is missing.
    """
    name = locate_model(spec.model)
    return {
        "model": _source(name, "config.json", spec.revision),
        "adapter": None if spec.adapter is None else _adapter(spec.adapter),
        "quantization": spec.quantization,
        "dtype": _stored_dtype(_file(name, "config.json", spec.revision)) if spec.dtype == "auto" else spec.dtype,
        "precision": precision,
    }


def _adapter(adapter: str) -> dict[str, str]:
    return _source(locate_adapter(adapter), "adapter_config.json", None)


def _source(name: str, config: str, revision: str | None) -> dict[str, str]:
    path = _file(name, config, revision)
    if Path(name).is_dir():
        return {"files": _content([path, *_weight_files(path.parent)])}
    if path.parent.parent.name != "snapshots":
        raise ValueError(f"the commit of {name!r} cannot be told from {path}")
    return {"hub": name, "commit": path.parent.name}


def _file(name: str, file: str, revision: str | None) -> Path:
    """The path of a model's file on this machine; a hub model is in the hub's cache, since it was loaded."""
    if Path(name).is_dir():
        return Path(name) / file
    try:
        return Path(str(cached_file(name, file, revision=revision or "main", local_files_only=True)))
    except OSError as error:
        raise FileNotFoundError(f"{file} of {name!r} is not in the hub's cache: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    """The weights and the model's own code, if it brings any."""
    weights = next((files for pattern in _WEIGHTS if (files := sorted(folder.glob(pattern)))), None)
    if weights is None:
        raise FileNotFoundError(f"expected weights ({' or '.join(_WEIGHTS)}) in {folder}, found none")
    return [*weights, *sorted(folder.glob("*.py"))]


def _content(paths: Iterable[Path]) -> str:
    """One hash of the content of all files."""
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = list(pool.map(_digest_now, paths))
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def _digest_now(path: Path) -> bytes:
    state = path.stat()
    return _digest(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _digest(path: Path, changed: int, size: int) -> bytes:
    """The hash of a file, kept until the file changes: gigabytes are read once in a process."""
    return hash_file(path)


def _stored_dtype(config: Path) -> str:
    """The dtype that "auto" stands for: the config's; without one, that of the weights, which are hashed anyway."""
    values = json.loads(config.read_text(encoding="utf-8"))
    return str(values.get("dtype") or values.get("torch_dtype") or "auto")
