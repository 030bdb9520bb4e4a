"""Shared parts of the judges that run a transformers model: identity, config, device."""

from __future__ import annotations

import hashlib
import json
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from lit_align.policy.broken_files import naming_files
from lit_align.policy.identity import model_identity
from lit_align.policy.source import is_local, locate_model
from lit_align.policy.spec import PolicySpec

_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt")
_SENTENCEPIECE = ("*.model",)


def identity_of(kind: str, spec: PolicySpec, **settings: Any) -> str:
    """Builds the identity `kind:model#digest` from a digest of all that a verdict depends on.

    The digest covers the contents of a folder's weights and tokenizer, or the commit of a hub id, the same of the
    adapter, the dtype, the quantisation and the judge's settings. It does not cover the path of a folder.

    Args:
        kind: the judge's name in the identity.
        spec: which model, and how to load it; its config must be on this machine or reachable.
        settings: the judge's settings, plain JSON values.

    Raises:
        FileNotFoundError: the model cannot be found.
    """
    name = locate_model(spec.model)
    _fetch(name, "config.json", spec.revision)
    if spec.adapter is not None:
        _fetch(spec.adapter, "adapter_config.json", None)
    parts = {"model": model_identity(spec), "tokenizer": _tokenizer_files(name), **settings}
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
    return f"{kind}:{Path(name).name if Path(name).is_dir() else name}#{digest}"


def _fetch(name: str, file: str, revision: str | None) -> None:
    """Makes sure that a file of a hub model is in the hub's cache, where it tells the commit."""
    if not is_local(name):
        cached_file(name, file, revision=revision or "main")


def _tokenizer_files(name: str) -> str | None:
    """Hashes the tokenizer files of a folder; None for a hub id, whose commit covers them."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    paths = set(chain.from_iterable(map(folder.glob, (*_TOKENIZER, *_SENTENCEPIECE))))
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(paths):
        content = path.read_bytes()
        digest.update(f"{path.name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def source_of(spec: PolicySpec) -> dict[str, Any]:
    """The arguments of `from_pretrained` that locate a model."""
    return {
        "pretrained_model_name_or_path": locate_model(spec.model),
        "revision": spec.revision or "main",
        "trust_remote_code": spec.trust_remote_code,
    }


def config_of(spec: PolicySpec) -> Any:
    """Loads the model's config.

    Raises:
        FileNotFoundError: it can be neither found nor fetched.
    """
    try:
        with naming_files(spec.model, "config"):
            return AutoConfig.from_pretrained(**source_of(spec))
    except OSError as error:
        raise FileNotFoundError(
            f"the judge's model {spec.model!r} could not be loaded. Expected a hub id (and the network, or the model "
            f"in the local hub cache) or a folder. {error}"
        ) from error


def torch_device(device: str | None) -> torch.device:
    """The device of that name; None takes the current GPU, or the CPU if there is none."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
