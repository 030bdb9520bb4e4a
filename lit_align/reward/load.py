"""From a :class:`PolicySpec` to a sequence classifier with one output, and from a trained one to a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_align.files import written_whole
from lit_align.judges.inputs import encode_answer, padding_of
from lit_align.policy.load import (
    base_options,
    check_spec,
    fresh_adapter,
    load_tokenizer,
    prepare_layers,
    read_config,
    switch_off_dropout,
)
from lit_align.policy.quantized import make_trainable
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.reach import say_unreached
from lit_align.policy.source import locate_model
from lit_align.policy.spec import LoraSpec, PolicySpec
from lit_align.records import Candidate, Message
from lit_align.seeding import derive_seed

HEADS = ("score", "classifier")
_TASK = "SEQ_CLS"


def load_reward_tokenizer(spec: PolicySpec) -> PreTrainedTokenizerBase:
    """The tokenizer. Its `model_max_length` is no more than the model's positions.

    An encoder's, which has no end-of-sequence token, ends a text with its separator. A decoder's score is read at the
    last token that is no padding: it pads as the model's config says, else with a token that ends no text.
    """
    tokenizer = load_tokenizer(spec)
    config = _config(spec)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(_pad_id(tokenizer, config))
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    return tokenizer


def load_reward_model(spec: PolicySpec) -> nn.Module:
    """The classifier, ready for training: adapters attached, the rest frozen, dropout of the base off.

    A head that the files do not have starts at random, the same in every run.

    Raises:
        FileNotFoundError: where the model does not exist.
        ValueError: where no sequence classifier can be made of it, or the settings contradict each other.
    """
    if spec.adapter is not None:
        raise ValueError(
            f"a reward model takes no saved adapter, got {spec.adapter!r}: merge it into its base, name the merged "
            "folder as `model`, and set `lora` for fresh adapters"
        )
    check_spec(spec)
    with quiet_libraries():
        model = _classifier(spec)
        prepare_layers(spec, model)
        if spec.lora is not None:
            adapted = fresh_adapter(spec.lora, model, _TASK).train()
            say_unreached(adapted)
            return adapted
        return model.requires_grad_(True).train()


def save_reward_model(model: nn.Module, spec: PolicySpec, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a folder that :class:`lit_align.judges.RewardModelJudge` loads, whole or not at all.

    Adapters are merged in float32 into the base as it was before any quantisation, and the file is float32: nothing
    is rounded. Without adapters the weights are written as they were trained.

    Args:
        model: what :func:`load_reward_model` gave, trained.
        spec: what it was loaded from.
        tokenizer: goes along, with its chat template.
        folder: is replaced where it exists.
    """
    with written_whole(folder) as part, quiet_libraries():
        whole: Any = model if spec.lora is None else _merged(model, spec, spec.lora)
        whole.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        whole.save_pretrained(part)
        tokenizer.save_pretrained(part)


def _config(spec: PolicySpec) -> PretrainedConfig:
    config = read_config(spec, num_labels=1)
    has_classifier = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or hasattr(config, "auto_map")
    if not has_classifier or config.is_encoder_decoder:
        raise ValueError(
            f"{spec.model!r} (its config says {config.model_type!r}) cannot be a reward model: expected a decoder or "
            "an encoder of which transformers has a sequence classifier"
        )
    switch_off_dropout(config)
    return config


def _pad_id(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    pad_id = padding_of(config)
    if pad_id is not None and pad_id < len(tokenizer):
        return pad_id
    example = encode_answer(tokenizer, (Message("user", "a"),), Candidate("b"))[0]["input_ids"]
    ends = {tokenizer.eos_token_id, example[-1]}
    candidates = [tokenizer.pad_token_id, *tokenizer.all_special_ids, *range(len(ends) + 1)]
    return next(token for token in candidates if token is not None and token not in ends)


def _classifier(spec: PolicySpec) -> PreTrainedModel:
    """The base with a head of one output, in evaluation mode, with nothing attached."""
    config = _config(spec)
    options = base_options(spec, config, whole=HEADS)
    with isolate_rng():
        torch.manual_seed(derive_seed(0, "reward head"))
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            locate_model(spec.model), output_loading_info=True, **options
        )
    model: PreTrainedModel = loaded[0]
    _check_head(model, set(loaded[1]["missing_keys"]), spec.model)
    make_trainable(model)
    return model


def _check_head(model: PreTrainedModel, missing: set[str], name: str) -> None:
    inside = sorted(k for k in missing if k.startswith(f"{model.base_model_prefix}.") and "pooler" not in k)
    if inside:
        raise ValueError(
            f"The files of {name!r} lack {len(inside)} weights below the head of a {type(model).__name__}, such as "
            f"{inside[0]!r}: are they whole?"
        )
    # Steps of the optimizer are finer than half precision, and the output layer is tiny.
    _output_layer(model, name).float().register_forward_pre_hook(_in_float32)


def _output_layer(model: PreTrainedModel, name: str) -> nn.Linear:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    if not layers:
        raise ValueError(f"{name!r} has no linear layer with one output in its head: expected a sequence classifier")
    return layers[-1]


def _in_float32(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(value.float() for value in inputs)


def _merged(trained: nn.Module, spec: PolicySpec, lora: LoraSpec) -> PreTrainedModel:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    plain = replace(spec, quantization=None, dtype="float32", gradient_checkpointing=False)
    fresh: Any = fresh_adapter(lora, _classifier(plain), _TASK)
    weights = {name: value.detach().float().cpu() for name, value in get_peft_model_state_dict(trained).items()}
    set_peft_model_state_dict(fresh, weights)
    merged: PreTrainedModel = fresh.merge_and_unload(safe_merge=True)
    return merged
