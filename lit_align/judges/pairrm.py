"""PairRM (Jiang et al. 2023, arXiv 2306.02561): the paper's judge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_align.by_length import batches_by_length
from lit_align.checks import require_at_least_1
from lit_align.judges.base import Comparison, PairwiseJudge
from lit_align.judges.local import config_of, identity_of, source_of, torch_device
from lit_align.judges.vote_arrays import mean_of_opponents
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.spec import PolicySpec
from lit_align.records import prompt_text

MARKERS = {"source_prefix_id": "<|source|>", "cand1_prefix_id": "<|candidate1|>", "cand2_prefix_id": "<|candidate2|>"}
"""The keys of the config that hold the markers' ids, and the markers."""

_FORGED = re.compile(r"<(?=\|(?:source|candidate[12]?)\|>)")


class _Encoded(NamedTuple):
    ids: list[int]
    markers: tuple[int, int, int]


class PairRM(PairwiseJudge):
    """Compares two answers with PairRM, which reads prompt and both answers at once.

    Its logit is that of a Bradley-Terry model (it was trained with -log sigmoid(logit)), so `compare` gives
    sigmoid(logit), which keeps the published rule that the first answer wins if the logit is above 0. As the logit
    depends on which answer comes first, both orders are compared. `cross_votes` gives the mean probability of both
    orders, which is above 0.5 exactly if their mean logit is above 0. `score` ranks the K candidates of a prompt by
    their mean logit against the others in both orders, 0 for a single candidate.

    A chat of several turns is given as `role: content` lines. A marker inside a text is broken with a space, so that
    no answer can pose as another.

    Args:
        model: hub id or local folder of weights in the layout of llm-blender/PairRM-hf.
        revision: branch, tag or commit on the hub.
        dtype: dtype of the encoder's weights; "auto" takes that of the file. The head computes in float32.
        batch_size: comparisons per forward pass; comparisons are sorted by length first.
        source_max_length: the most tokens of the prompt; a longer one is cut at its end.
        max_length: the most tokens of prompt and both answers; each answer may take half of what the prompt leaves,
            and a longer one is cut at its end. A warning reports the first cut; `cuts` counts all.
        device: such as "cuda:1"; None takes the current GPU, or the CPU if there is none.

    Attributes:
        cuts: how many prompts ("prompt") and answers ("answer") were cut.

    Raises:
        ValueError: the limits leave no room for the answers.
    """

    holds_model = True

    def __init__(
        self,
        model: str = "llm-blender/PairRM-hf",
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        batch_size: int = 8,
        source_max_length: int = 1224,
        max_length: int = 2048,
        device: str | None = None,
    ) -> None:
        require_at_least_1(batch_size=batch_size)
        if source_max_length < 4 or max_length - source_max_length < 8:
            raise ValueError(
                "expected source_max_length of at least 4 and max_length at least 8 above it, so that the answers "
                f"have room, got {source_max_length} and {max_length}"
            )
        self.spec = PolicySpec(model, revision, dtype)
        self.batch_size = batch_size
        self.source_max_length = source_max_length
        self.max_length = max_length
        self.cuts: Counter[str] = Counter()
        self._device = device

    @cached_property
    def identity(self) -> str:  # type: ignore[override]
        """Names the model by a digest of its files, which are read when it is first asked for."""
        return identity_of("pairrm", self.spec, lengths=[self.source_max_length, self.max_length])

    def demand_model(self) -> None:
        config_of(self.spec)

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """Computes sigmoid(logit) of each comparison, with the answers in the given order.

        Raises:
            FileNotFoundError: the model cannot be found.
            ValueError: its files have another layout.
        """
        parts: dict[tuple[str, str, int], list[int]] = {}
        encoded = [self._encode(comparison, parts) for comparison in comparisons]
        logits = torch.full((len(encoded),), torch.nan, dtype=torch.float64)
        for batch in batches_by_length([len(inputs.ids) for inputs in encoded], self.batch_size):
            logits[batch] = self._logits([encoded[i] for i in batch])
        return logits.sigmoid().tolist()

    def ranking(self, forward: np.ndarray) -> list[float]:
        """Ranks by mean logits, recovered from the probabilities; logits beyond 34, where float64 ends, are equal."""
        probabilities = np.clip(forward, 1e-15, 1 - 1e-15)
        logits = np.log(probabilities) - np.log1p(-probabilities)
        return mean_of_opponents((logits - logits.T) / 2, alone=0.0)

    def release(self) -> None:
        self.__dict__.pop("_model", None)

    @torch.no_grad()
    def _logits(self, batch: list[_Encoded]) -> torch.Tensor:
        width = max(len(inputs.ids) for inputs in batch)
        pad_id = self._tokenizer.pad_token_id or 0  # masked, so any id does
        rows = [inputs.ids + [pad_id] * (width - len(inputs.ids)) for inputs in batch]
        ids = torch.tensor(rows, device=self._torch_device)
        lengths = torch.tensor([[len(inputs.ids)] for inputs in batch], device=self._torch_device)
        mask = (torch.arange(width, device=self._torch_device) < lengths).long()
        markers = torch.tensor([inputs.markers for inputs in batch], device=self._torch_device)
        return self._model(ids, mask, markers).double().cpu()

    def _encode(self, comparison: Comparison, parts: dict[tuple[str, str, int], list[int]]) -> _Encoded:
        """Encodes prompt, first and second answer, each with a marker in front and its own special tokens.

        Args:
            comparison: the prompt and both answers.
            parts: tokens by marker, text and limit; the new ones are added, so that no text is tokenised twice.
        """

        def part(marker: str, text: str, limit: int) -> list[int]:
            key = (marker, text, limit)
            if key not in parts:
                parts[key] = self._tokenise(*key)
            return parts[key]

        source_marker, *answer_markers = MARKERS.values()
        ids = list(part(source_marker, prompt_text(comparison.prompt), self.source_max_length))
        markers = [self._marker_position(ids, source_marker)]
        room = (self.max_length - len(ids)) // 2
        for marker, text in zip(answer_markers, (comparison.first, comparison.second), strict=True):
            answer = part(marker, text, room)
            markers.append(len(ids) + self._marker_position(answer, marker))
            ids += answer
        return _Encoded(ids, (markers[0], markers[1], markers[2]))

    def _tokenise(self, marker: str, text: str, limit: int) -> list[int]:
        marked = marker + _FORGED.sub("< ", text)
        ids: list[int] = self._tokenizer(marked)["input_ids"]
        if len(ids) <= limit:
            return ids
        kind = "prompt" if marker == MARKERS["source_prefix_id"] else "answer"
        if not self.cuts:
            rank_zero_warn(
                f"PairRM: a text ({kind}) has {len(ids)} tokens and room for {limit}; the end of longer texts is cut "
                "away from here on (`cuts` counts them)"
            )
        self.cuts[kind] += 1
        cut: list[int] = self._tokenizer(marked, truncation=True, max_length=limit)["input_ids"]
        return cut

    def _marker_position(self, part: list[int], marker: str) -> int:
        return part.index(self._tokenizer.convert_tokens_to_ids(marker))

    @cached_property
    def _torch_device(self) -> torch.device:
        return torch_device(self._device)

    @cached_property
    def _config(self) -> Any:
        config = config_of(self.spec)
        required = (*MARKERS, "n_tasks")
        if config.model_type != "deberta-v2" or any(not hasattr(config, key) for key in required):
            raise ValueError(
                f"{self.spec.model} is no PairRM in the layout of llm-blender/PairRM-hf: expected a deberta-v2 config "
                f"with {', '.join(required)}, got {config.model_type} without "
                f"{', '.join(key for key in required if not hasattr(config, key)) or 'anything missing'}"
            )
        return config

    @cached_property
    def _tokenizer(self) -> Any:
        config = self._config
        # The published file defines how text is normalised; the tokenizer class for DeBERTa does it in another way.
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(**source_of(self.spec))
        except (OSError, ValueError):  # a folder with nothing but a sentencepiece model
            tokenizer = AutoTokenizer.from_pretrained(**source_of(self.spec))
        for key, marker in MARKERS.items():
            ids = tokenizer(f"{marker}x")["input_ids"]
            if ids.count(getattr(config, key)) != 1 or tokenizer.convert_tokens_to_ids(marker) not in ids:
                raise ValueError(
                    f"the tokenizer of {self.spec.model} makes {ids} of {marker!r} and a letter; its config expects "
                    f"the marker to be token {getattr(config, key)} ({key})"
                )
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        from lit_align.judges.pairrm_model import PairRMNetwork

        with quiet_libraries():
            loaded: Any = PairRMNetwork.from_pretrained(
                **source_of(self.spec),
                config=self._config,
                dtype=self.spec.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        model, info = loaded
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            names = sorted(str(name) for name in info[fault])
            if names:
                raise ValueError(
                    f"the weights of {self.spec.model} do not fit PairRM: {len(names)} {fault.replace('_', ' ')}, such "
                    f"as {names[:3]}; expected the encoder under `pretrained_model` and the head under `head_layer`"
                )
        model.head_layer.float()
        return model.eval().requires_grad_(False).to(self._torch_device)
