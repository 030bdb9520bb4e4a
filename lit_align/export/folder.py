"""Writes a model folder: weights, tokenizer with its chat template, generation settings and model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from lit_align.data.encoder import Encoder
from lit_align.files import written_whole
from lit_align.policy.load import load_generation_config, load_stop_ids
from lit_align.policy.spec import PolicySpec
from lit_align.sampling.engine import save_adapter
from lit_align.trained.loading import ADAPTER

CARD = "README.md"
WriteCard = Callable[[Path], str]


def write_model(
    target: Path,
    policy: Any,
    spec: PolicySpec,
    tokenizer: PreTrainedTokenizerBase,
    card: WriteCard,
    max_shard_size: str | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Writes a policy whole or not at all; a folder that is there is replaced.

    Args:
        target: the folder.
        policy: with an adapter only that is written, as peft does; otherwise all weights as safetensors.
        spec: what it was loaded from.
        tokenizer: the policy's, with its chat template.
        card: writes the model card of the folder that it is given.
        max_shard_size: the largest file of weights, such as "5GB"; None takes transformers' default.
        check: looks at the folder before it gets its name; an error keeps it from getting it.
    """
    with written_whole(target) as folder:
        if isinstance(policy, PeftModel):
            save_adapter(policy, folder)
            _name_base(folder / ADAPTER, spec)
        else:
            shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
            with without_bars():
                policy.save_pretrained(folder, **shards)
        tokenizer.save_pretrained(folder)
        generation_settings(spec, tokenizer).save_pretrained(folder)
        (folder / CARD).write_text(card(folder), encoding="utf-8")
        if check is not None:
            check(folder)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keeps transformers from showing progress bars within the block."""
    enabled = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            hf_logging.enable_progress_bar()


def generation_settings(spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The base's generation config, with all the tokens at which answers end in training as its ends."""
    settings = load_generation_config(spec) or GenerationConfig()
    settings._from_model_config = False  # else transformers may put the model's own values in place of these
    encoder = Encoder(tokenizer, model_stops=load_stop_ids(spec))
    settings.eos_token_id = _plain(encoder.stop_ids)
    if settings.pad_token_id is None:
        settings.pad_token_id = encoder.pad_id
    return settings


def _plain(ids: Sequence[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def _name_base(path: Path, spec: PolicySpec) -> None:
    """Makes an adapter name its base so that it is found from any working folder, and in the revision it had."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("lora_alpha") == int(settings.get("lora_alpha") or 0):
        settings["lora_alpha"] = int(settings["lora_alpha"])  # vLLM declares an integer
    base = Path(settings["base_model_name_or_path"] or "")
    if base.is_dir():
        settings["base_model_name_or_path"] = str(base.absolute())
    else:
        settings["revision"] = spec.revision
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
