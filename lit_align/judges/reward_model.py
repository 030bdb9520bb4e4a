"""The judge that is a sequence-classification model with one output."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_align.by_length import batches_by_length
from lit_align.checks import require_at_least_1
from lit_align.judges.answers import answers_of, scores_by_set
from lit_align.judges.base import PointwiseJudge, blaming
from lit_align.judges.inputs import Inputs, encode_answer, padding_of
from lit_align.judges.local import config_of, identity_of, source_of, torch_device
from lit_align.judges.vote_arrays import ABSTAINED
from lit_align.policy.adapter import load_adapter, read_weights
from lit_align.policy.nf4 import keep_trainable_on_cpu, nf4_settings
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.source import locate_adapter
from lit_align.policy.spec import PolicySpec
from lit_align.records import Candidate, CandidateSet, Prompt

_FILL = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0}
"""The model's inputs, with what fills up a shorter row."""


class RewardModelJudge(PointwiseJudge):
    """Scores with a reward model: any sequence-classification model with one output.

    The chat goes through the tokenizer's chat template where it has one; otherwise prompt and answer
    are a text pair. Equal answers are scored once. A score that is not finite is an abstention. The model loads
    at the first score.

    Args:
        model: hub id or local folder.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; "auto" is that of the file.
        batch_size: answers scored at once; batches are sorted by length.
        max_length: tokens of prompt and answer together; a longer text loses its start, with a warning.
            None takes the limit of the tokenizer or the model.
        device: such as "cuda:1"; None is the current GPU where there is one.
        trust_remote_code: run code that the model brings along.
        quantization: "nf4" loads the body in 4 bits; the layers that make the score stay as they are.
        adapter: folder or hub id of a saved LoRA adapter (with its trained output layer) on top of `model`.
    """

    cacheable = True
    gives_probabilities = True  # by Bradley-Terry
    holds_model = True

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        batch_size: int = 16,
        max_length: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        quantization: Literal["nf4"] | None = None,
        adapter: str | None = None,
    ) -> None:
        require_at_least_1(batch_size=batch_size)
        self.spec = PolicySpec(
            model, revision, dtype, quantization, adapter=adapter, trust_remote_code=trust_remote_code
        )
        self.batch_size = batch_size
        self.max_length = max_length
        self._device = device
        self._warned = False

    @cached_property
    def identity(self) -> str:  # type: ignore[override]
        """Told from the model's files, so asking for it the first time reads them."""
        return identity_of("reward_model", self.spec, max_length=self.max_length, pads_as="config")

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """The model's outputs.

        Raises:
            FileNotFoundError: where the model is not there.
            ValueError: where it is no reward model.
        """
        answers = list(dict.fromkeys(answers_of(sets)))
        texts = [self._encode(*answer) for answer in answers]
        scores = [ABSTAINED] * len(texts)
        for batch in batches_by_length([len(text["input_ids"]) for text in texts], self.batch_size):
            for i, score in zip(batch, self._forward([texts[i] for i in batch]), strict=True):
                scores[i] = score if math.isfinite(score) else ABSTAINED
        return scores_by_set(sets, dict(zip(answers, scores, strict=True)))

    def demand_model(self) -> None:
        config_of(self.spec)

    def release(self) -> None:
        self.__dict__.pop("_model", None)

    @torch.no_grad()
    def _forward(self, texts: list[Inputs]) -> list[float]:
        pad_id = self._pad_id([text["input_ids"][-1] for text in texts])
        self._model.config.get_text_config().pad_token_id = pad_id
        width = max(len(text["input_ids"]) for text in texts)
        fill = {**_FILL, "input_ids": pad_id}
        columns: dict[str, torch.Tensor] = {}
        for name in texts[0]:
            rows = [text[name] + [fill[name]] * (width - len(text[name])) for text in texts]
            columns[name] = torch.tensor(rows, device=self._at)
        return self._model(**columns).logits[:, 0].float().tolist()

    def _pad_id(self, last_ids: Sequence[int]) -> int:
        """The token that fills up shorter rows: the padding of the config, if it has one.

        A causal body is read at the last token that is not this one. Without a padding in the config it is read at the
        last token, and any id that ends no row can fill up.
        """
        pad_id = padding_of(self._config)
        return pad_id if pad_id is not None else min(set(range(len(last_ids) + 1)) - set(last_ids))

    def _encode(self, prompt: Prompt, answer: Candidate) -> Inputs:
        with blaming(self, prompt):  # a template may refuse a role
            inputs, tokens = encode_answer(self._tokenizer, prompt, answer, self._limit)
        if tokens > self._limit:
            self._warn_of_cut(tokens)
        self._require_embedded(inputs["input_ids"])
        return inputs

    def _require_embedded(self, ids: Sequence[int]) -> None:
        rows = len(next(self._model.get_input_embeddings().parameters()))
        if max(ids) >= rows:
            raise ValueError(
                f"an answer or its prompt holds the token {self._tokenizer.convert_ids_to_tokens(max(ids))!r} (id "
                f"{max(ids)}), and the embedding of {self.spec.model} has {rows} rows: take the tokenizer that the "
                "reward model was trained with"
            )

    def _warn_of_cut(self, tokens: int) -> None:
        if not self._warned:
            rank_zero_warn(
                f"{self.spec.model}: an answer with its prompt has {tokens} tokens and the limit is {self._limit}; "
                "the start of longer texts is cut away from here on"
            )
        self._warned = True

    @cached_property
    def _at(self) -> torch.device:
        return torch_device(self._device)

    @cached_property
    def _config(self) -> Any:
        return config_of(self.spec)

    @cached_property
    def _tokenizer(self) -> Any:
        _ = self._config  # says in plain words where there is no such model
        return AutoTokenizer.from_pretrained(**source_of(self.spec), truncation_side="left")

    @cached_property
    def _model(self) -> Any:
        config = copy.deepcopy(self._config)  # loading in 4 bits writes into it
        if self.spec.adapter is not None:
            config.num_labels = 1  # the base of an adapter does not know yet what it is for
        if config.num_labels != 1:
            raise ValueError(
                f"{self.spec.model} has {config.num_labels} outputs; a reward model has one "
                "(num_labels: 1 in its config)"
            )
        with quiet_libraries():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                **source_of(self.spec),
                config=config,
                dtype=self.spec.dtype,
                output_loading_info=True,
                **self._in_4_bits(config),
            )
            keep_trainable_on_cpu(model)
            if self.spec.adapter is not None:
                model = _with_adapter(model, self.spec.adapter, info["missing_keys"])
            elif info["missing_keys"]:
                raise ValueError(
                    f"the files of {self.spec.model} lack {sorted(info['missing_keys'])}, which a "
                    f"{type(model).__name__} needs: they are no reward model (perhaps a causal language model?)"
                )
        return model.eval().requires_grad_(False).to(self._at)

    def _in_4_bits(self, config: Any) -> dict[str, Any]:
        if self.spec.quantization is None:
            return {}
        with torch.device("meta"):
            empty = AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=self.spec.trust_remote_code
            )
        settings = nf4_settings(config.dtype if self.spec.dtype == "auto" else getattr(torch, self.spec.dtype))
        # All but the body: a score is worth its few bytes. By default transformers only keeps the last layer.
        settings.llm_int8_skip_modules = [n for n, _ in empty.named_children() if n != empty.base_model_prefix]
        return {"quantization_config": settings, "device_map": {"": self._at}}

    @cached_property
    def _limit(self) -> int:
        if self.max_length is not None:
            return self.max_length
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return min(self._tokenizer.model_max_length, positions or self._tokenizer.model_max_length)


def _with_adapter(model: Any, adapter: str, missing: set[str]) -> Any:
    """The model under its adapter.

    Raises:
        ValueError: where neither the base nor the adapter has what makes the score, or the adapter does not fit.
    """
    from peft import PeftConfig

    saved = read_weights(adapter)
    lacking = [key for key in sorted(missing) if not _ends_with(saved, key)]
    if lacking:
        raise ValueError(
            f"neither the base nor the adapter {adapter!r} has the weights {lacking}, which make the score: save the "
            "adapter with its output layer (peft does so for task_type SEQ_CLS)"
        )
    config = PeftConfig.from_pretrained(locate_adapter(adapter))
    config.inference_mode = True
    return load_adapter(adapter, model, config)


def _ends_with(names: Iterable[str], ending: str) -> bool:
    return any(name.endswith(ending) for name in names)
