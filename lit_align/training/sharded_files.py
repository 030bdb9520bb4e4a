"""Checkpoints that are folders: each device writes its parts of the tensors, and reads those that it needs.

`parts of the tensors` are files of `torch.distributed.checkpoint`; everything else is in `meta.pt`, with empty tensors
of the right shape and dtype in the place of the others.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_align.ranks import shard

META = "meta.pt"
FOLDER = "sharded_folder"
"""The key, in the content of a folder that was read, of its path."""


def is_sharded(path: Path) -> bool:
    """Whether a path is a checkpoint that is a folder."""
    return (path / META).is_file()


def save_parts(checkpoint: Mapping[str, Any], path: Path, previous: Path | None, barrier: Callable[[], Any]) -> None:
    """Writes a folder whole or not at all. All devices must call it.

    Args:
        checkpoint: with `DTensor`s, of which each device writes its part.
        path: the folder, which may exist.
        previous: a path at which the folder that was at `path` is kept; None deletes it.
        barrier: waits for the other devices.
    """
    part = path.with_name(f"{path.name}.part")
    first = shard()[0] == 0
    if first:
        _remove(part)
        part.mkdir(parents=True)
    barrier()
    tensors: dict[str, Tensor] = {}
    rest = _without_parts(checkpoint, "", tensors)
    dcp.save(tensors, checkpoint_id=part)
    if first:
        torch.save(rest, part / META)
        if previous is not None and path.exists():
            _remove(previous)
            path.rename(previous)
        _remove(path)
        part.rename(path)
    barrier()


def read_meta(path: Path) -> dict[str, Any]:
    """The content of a folder, with empty tensors where :func:`read_parts` finds the values."""
    return {**read_values(path), FOLDER: str(path)}


def read_values(path: Path) -> Any:
    """The content of a checkpoint, a file or a folder, for its plain values: of a folder without the tensors."""
    return torch.load(path / META if path.is_dir() else path, map_location="cpu", mmap=True, weights_only=True)


def read_parts(folder: str, prefix: str, saved: Mapping[str, Any], likes: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fills in the empty tensors of a folder's content. All devices must call it, each reads its own parts.

    Args:
        folder: of the checkpoint.
        prefix: the keys that lead to `saved` in the content, with / between them.
        saved: values by their key, with / between the keys of nested ones.
        likes: tensors that are spread as those to read shall be, by the same keys.
    """
    parts = {
        f"{prefix}/{key}": torch.empty_like(likes[key], dtype=value.dtype, requires_grad=False)
        for key, value in saved.items()
        if _is_empty(value)
    }
    dcp.load(parts, checkpoint_id=folder)
    return {key: parts.get(f"{prefix}/{key}", value) for key, value in saved.items()}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, a file or a folder, with whole trained weights and without an optimizer's tensors.

    No other process takes part.
    """
    if not is_sharded(path):
        return cast(dict[str, Any], read_values(path))
    content = read_meta(path)
    weights = content["state_dict"]
    empty = {f"state_dict/{name}": torch.empty_like(v, device="cpu") for name, v in weights.items() if _is_empty(v)}
    dcp.load(empty, checkpoint_id=path, no_dist=True)
    content["state_dict"] = {name: empty.get(f"state_dict/{name}", value) for name, value in weights.items()}
    return content


def _without_parts(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """A nested value with empty tensors in the place of `DTensor`s, which are put into `tensors` by their keys."""
    if isinstance(value, DTensor):
        tensors[key] = value.detach()
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, dict):
        return {name: _without_parts(item, f"{key}/{name}".lstrip("/"), tensors) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_without_parts(item, f"{key}/{n}", tensors) for n, item in enumerate(value)])
    return value


def _is_empty(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
