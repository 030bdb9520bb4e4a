"""Puts an exported folder on the hub."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path, PurePath

from lit_align.trained.loading import ADAPTER

TOKEN = "HF_TOKEN"


def demand_token() -> str:
    """The hub's token, from the environment alone.

    Raises:
        ValueError: there is none.
    """
    token = os.environ.get(TOKEN)
    if not token:
        raise ValueError(f"--push needs a token of the hub that may write: set the environment variable {TOKEN}")
    return token


def push(folder: Path, repo: str, private: bool = True) -> str:
    """Makes a repository on the hub and uploads a model folder into it.

    An adapter on a base that is a local path names that base on the hub by its last part alone.

    Args:
        folder: a model folder.
        repo: its name, "OWNER/NAME"; it must not exist.
        private: whether only its owner sees it.

    Returns:
        The address of the repository.

    Raises:
        ValueError: there is no token in the environment.
        FileExistsError: the repository exists.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=demand_token())
    if api.repo_exists(repo):
        raise FileExistsError(f"{repo} is on the hub already, and export overwrites nothing: choose another name")
    with tempfile.TemporaryDirectory() as scratch:
        named = _without_path(folder / ADAPTER, Path(scratch))
        address = api.create_repo(repo, private=private)
        api.upload_folder(folder_path=folder, repo_id=repo, ignore_patterns=[] if named is None else [ADAPTER])
        if named is not None:
            api.upload_file(path_or_fileobj=named, path_in_repo=ADAPTER, repo_id=repo)
    return str(address)


def _without_path(path: Path, scratch: Path) -> Path | None:
    """A copy of an adapter's settings without the path of its base; None if there is no such path."""
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    base = settings.get("base_model_name_or_path") or ""
    if not Path(base).is_absolute():
        return None
    settings["base_model_name_or_path"] = PurePath(base).name
    named = scratch / ADAPTER
    named.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return named
