"""Publishers bring the policy's current weights to a server."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_align.remote import RequestFailed, RequestRefused, Server, ServerError
from lit_align.sampling.engine import adapter_digest, save_adapter

_RETRIES = 1  # a server that cannot take an adapter says 500 as well


class Publisher(ABC):
    """Brings the policy's current weights to a server, or to all of several. Each subclass does so in its own way."""

    @abstractmethod
    def publish(self, policy: nn.Module, server: Server) -> str:
        """Makes the server hold the policy's weights as they are now.

        Returns:
            The name under which the server samples from them, and from no older ones.

        Raises:
            ServerError: the server does not take them.
        """


class LoraPublisher(Publisher):
    """Saves the LoRA adapter to a folder that the server reads, loads it under a new name, unloads the older one.

    vLLM must run with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True` and `--enable-lora`. Nothing is sent while the weights
    stay the same. Each process (rank) has a name of its own.

    Args:
        folder: the folder that adapters are written to; null makes a temporary one. The last adapter stays in it
            until the process ends.
        server_folder: the same folder as the server sees it, such as a mount in its container; null: the same path.
    """

    def __init__(self, folder: str | None = None, server_folder: str | None = None) -> None:
        if server_folder is not None and folder is None:
            raise ValueError("server_folder names `folder` as the server sees it: set both")
        self.folder = folder
        self.server_folder = server_folder
        self._digest: str | None = None
        self._name: str | None = None
        self._own: str | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def publish(self, policy: nn.Module, server: Server) -> str:
        """See :meth:`Publisher.publish`."""
        digest = adapter_digest(policy)
        if self._name is not None and digest == self._digest:
            return self._name
        self._unload(server)
        self._own = self._own or f"{os.getpid()}-{uuid.uuid4().hex[:8]}"  # here: each rank makes its own
        name = f"lit-align-{self._own}-{digest}"
        path = self._root() / name
        save_adapter(policy, path)
        seen = str(path) if self.server_folder is None else str(PurePosixPath(self.server_folder) / name)
        try:
            server.post_to_all("/load_lora_adapter", {"lora_name": name, "lora_path": seen}, _RETRIES)
        except (RequestRefused, RequestFailed) as error:
            raise ServerError(
                f"the server does not take the policy's adapter: {error}\nFor vLLM: set "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, give --enable-lora and a --max-lora-rank of at least the "
                f"policy's, and see to it that the server can read {seen} (`folder`, `server_folder`)"
            ) from error
        self._digest = digest
        self._name = name
        return name

    def _unload(self, server: Server) -> None:
        """Unloads the older adapter first: a server has few places, and drops the oldest by itself."""
        if self._name is None:
            return
        name = self._name
        self._name = None
        try:
            server.post_to_all("/unload_lora_adapter", {"lora_name": name}, 0)
        except (RequestRefused, RequestFailed) as error:
            rank_zero_warn(f"the server keeps the outdated adapter {name}, which no one asks for any more: {error}")
        shutil.rmtree(self._root() / name, ignore_errors=True)

    def _root(self) -> Path:
        if self.folder is not None:
            return Path(self.folder).expanduser().absolute()
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="lit-align-adapters-")
        return Path(self._temporary.name)
