"""Turns texts into embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from lit_align.by_length import batches_by_length
from lit_align.checks import require_at_least_1


class Embedder(ABC):
    """Turns texts into embeddings. Subclass it and define `embed`."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds each text: [N, D]. Only directions count; no embedding may be zero."""


class TransformersEmbedder(Embedder):
    """An encoder of transformers, its last hidden states averaged over the tokens.

    Most sentence-transformers models work this way (`sentence-transformers/all-MiniLM-L6-v2`, `thenlper/gte-small`).
    For a model trained to embed by its first token set `pooling: cls`. Texts beyond the model's limit are cut at
    their end. The model is loaded with the first text.

    Args:
        model: hub id or local folder.
        revision: branch, tag or commit on the hub.
        pooling: "mean" over the tokens, or "cls", the first token.
        batch_size: texts per forward pass; texts are sorted by length first.
        max_tokens: tokens after which a text is cut; None takes the limit of the tokenizer or the model.
        prefix: put before each text, for models that want one ("passage: ").
        device: such as "cuda:1"; None takes the current GPU, or the CPU if there is none.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        pooling: str = "mean",
        batch_size: int = 32,
        max_tokens: int | None = None,
        prefix: str = "",
        device: str | None = None,
    ) -> None:
        if pooling not in ("mean", "cls"):
            raise ValueError(f"expected pooling to be 'mean' or 'cls', got {pooling!r}")
        require_at_least_1(batch_size=batch_size)
        folder = Path(model).expanduser()
        if folder.is_dir() and not (folder / "config.json").exists():
            raise FileNotFoundError(f"expected a model folder of transformers, {folder} has no config.json")
        model = str(folder) if folder.is_dir() else model
        self.pooling = pooling
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.prefix = prefix
        self._source: dict[str, Any] = {"pretrained_model_name_or_path": model, "revision": revision or "main"}
        self._device = device

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds each text: [N, D] float32."""
        rows: dict[int, np.ndarray] = {}
        for batch in batches_by_length([len(text) for text in texts], self.batch_size):
            embeddings = self._forward([self.prefix + texts[i] for i in batch])
            rows.update(zip(batch, embeddings, strict=True))
        return np.stack([rows[i] for i in range(len(texts))]) if rows else np.zeros((0, 1), dtype=np.float32)

    @torch.no_grad()
    def _forward(self, texts: list[str]) -> np.ndarray:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
        tokens = tokens.to(self._torch_device)
        states = self._model(**tokens).last_hidden_state.float()
        if self.pooling == "cls":
            return states[:, 0].cpu().numpy()
        mask = tokens["attention_mask"][..., None].float()
        return ((states * mask).sum(1) / mask.sum(1)).cpu().numpy()

    @cached_property
    def _torch_device(self) -> torch.device:
        return torch.device(self._device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(**self._source)
        tokenizer.padding_side = "right"  # `cls` reads the first column
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        return AutoModel.from_pretrained(**self._source).eval().requires_grad_(False).to(self._torch_device)

    @cached_property
    def _limit(self) -> int:
        limit = self._tokenizer.model_max_length
        positions = getattr(self._model.config, "max_position_embeddings", None) or limit
        return self.max_tokens or min(limit, positions)
