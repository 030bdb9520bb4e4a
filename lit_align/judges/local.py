"""What the judges that run a model of transformers have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from lit_align.policy.identity import model_identity
from lit_align.policy.source import is_local, locate_model
from lit_align.policy.spec import PolicySpec

_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt")
_SENTENCEPIECE = ("*.model",)


def identity_of(kind: str, spec: PolicySpec, **settings: Any) -> str:
    """`kind:model#digest`, where the digest is of all that a verdict depends on.

    That is: the content of a folder's weights and tokenizer or a hub id's commit, the adapter's, dtype,
    quantisation and the judge's own settings. The path of a folder is not in it.

    Args:
        kind: of the judge.
        spec: which model, and how it is loaded; its config must be on this machine or reachable.
        settings: the judge's own, plain JSON values.

    Raises:
        FileNotFoundError: where the model is not there.
    """
    name = locate_model(spec.model)
    _fetch(name, "config.json", spec.revision)
    if spec.adapter is not None:
        _fetch(spec.adapter, "adapter_config.json", None)
    parts = {"model": model_identity(spec), "tokenizer": _tokenizer_files(name), **settings}
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
    return f"{kind}:{Path(name).name if Path(name).is_dir() else name}#{digest}"


def _fetch(name: str, file: str, revision: str | None) -> None:
    """Makes sure that a hub model's file, which tells its commit, is in the hub's cache."""
    if not is_local(name):
        cached_file(name, file, revision=revision or "main")


def _tokenizer_files(name: str) -> str | None:
    """One hash of a folder's tokenizer; None for a hub id, whose commit says it."""
    if not Path(name).is_dir():
        return None
    paths = sorted({path for pattern in (*_TOKENIZER, *_SENTENCEPIECE) for path in Path(name).glob(pattern)})
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def source_of(spec: PolicySpec) -> dict[str, Any]:
    """The arguments of `from_pretrained` that say where a model is."""
    return {
        "pretrained_model_name_or_path": locate_model(spec.model),
        "revision": spec.revision or "main",
        "trust_remote_code": spec.trust_remote_code,
    }


def config_of(spec: PolicySpec) -> Any:
    """The model's config.

    Raises:
        FileNotFoundError: where it can neither be found nor fetched.
    """
    try:
        return AutoConfig.from_pretrained(**source_of(spec))
    except OSError as error:
        raise FileNotFoundError(
            f"the judge's model {spec.model!r} could not be loaded. Expected a hub id (and the network, or the model "
            f"in the local hub cache) or a folder. {error}"
        ) from error


def torch_device(device: str | None) -> torch.device:
    """The device of that name; None is the current GPU where there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of texts of like length, the longest first: what does not fit fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]
