"""Loads the tokenizer and the model that a :class:`PolicySpec` describes, ready to train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_align.policy.adapter import demand_own_base, load_adapter, saved_config
from lit_align.policy.broken_files import demand_whole_files, naming_files
from lit_align.policy.compiled import compile_layers
from lit_align.policy.internals import wrap_checkpoint_functions
from lit_align.policy.kernels import demand_kernels, use_kernels
from lit_align.policy.quantized import BITS, make_trainable, quantization_settings
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.reach import demand_saved_modules, demand_targets, layer_names, say_unreached
from lit_align.policy.source import locate_model
from lit_align.policy.spec import LoraSpec, PolicySpec
from lit_align.policy.template_values import set_defaults


def load_tokenizer(spec: PolicySpec) -> PreTrainedTokenizerBase:
    """Loads the tokenizer. If it has no padding token, it pads with its end-of-sequence token.

    Raises:
        FileNotFoundError: the model or the template's file does not exist.
    """
    name = locate_model(spec.model)
    try:
        with quiet_libraries(), naming_files(spec.model, "tokenizer"):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **_hub_options(spec))
    except OSError as error:
        raise FileNotFoundError(f"No tokenizer could be loaded from {spec.model!r}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if spec.chat_template is not None:
        tokenizer.chat_template = _template(spec.chat_template)
    if spec.chat_template_kwargs:
        set_defaults(tokenizer, spec.chat_template_kwargs)
    return tokenizer


def load_generation_config(spec: PolicySpec) -> GenerationConfig | None:
    """The model's own generation config: how it samples and where its answers end; None if it has no such file."""
    try:
        return GenerationConfig.from_pretrained(locate_model(spec.model), revision=spec.revision or "main")
    except OSError:
        demand_whole_files(Path(locate_model(spec.model)))
        return None


def load_stop_ids(spec: PolicySpec) -> tuple[int, ...]:
    """The end-of-sequence ids of the model's generation config; none if it has no such file."""
    config = load_generation_config(spec)
    ids = None if config is None else config.eos_token_id
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (int(ids),)


def load_vocabulary_size(spec: PolicySpec) -> int | None:
    """The number of rows of the model's embedding; None if its config does not say."""
    return getattr(read_config(spec).get_text_config(), "vocab_size", None)


def load_position_limit(spec: PolicySpec) -> tuple[int | None, bool]:
    """See :func:`position_limit`, of a model that is not loaded."""
    return position_limit(read_config(spec))


def position_limit(config: PretrainedConfig) -> tuple[int | None, bool]:
    """The most tokens of a row by the model's config, None if it does not say, and whether more are an error.

    They are an error if positions are rows of a table (GPT-2, OPT); with rotary positions or ALiBi they are not.
    """
    text = config.get_text_config()
    rotates = bool(getattr(text, "rope_parameters", None)) or getattr(text, "alibi", False)
    return getattr(text, "max_position_embeddings", None), not rotates


def load_model(spec: PolicySpec) -> nn.Module:
    """Loads the model, ready for training: adapters attached, the rest frozen, base dropout off.

    Raises:
        FileNotFoundError: the model or the adapter does not exist.
        ValueError: the model is no causal language model, or the settings contradict each other.
    """
    check_spec(spec)
    name = locate_model(spec.model)
    with quiet_libraries():
        model = _load_base(spec, name, load_config(spec))
        prepare_layers(spec, model)
        adapted = _with_adapter(spec, model).train()  # dropout in the base is 0, so only an adapter's is on
    if spec.adapter is not None:
        demand_own_base(spec, name)
    if spec.adapter is not None or spec.lora is not None:
        say_unreached(adapted)
    return adapted


def check_spec(spec: PolicySpec) -> None:
    """Refuses settings that contradict each other.

    Raises:
        ValueError: two settings contradict each other.
    """
    if spec.lora is not None and spec.adapter is not None:
        raise ValueError(
            "`lora` makes fresh adapters and `adapter` loads a saved one, which brings its own settings: "
            "set one of the two."
        )
    if spec.quantization is not None and spec.lora is None and spec.adapter is None:
        raise ValueError(
            f'quantization: "{spec.quantization}" keeps the base in {BITS[spec.quantization]} bits, which cannot be '
            "trained itself: set `lora`, or drop the quantization to train all weights."
        )
    if spec.quantization == "nf4" and spec.lora is not None and spec.lora.init == "orthogonal":
        raise ValueError('lora.init: "orthogonal" is not for 4-bit bases: peft would make adapters of whole numbers.')
    if spec.kernels is not None and spec.compile:
        raise ValueError(f'`compile` and kernels: "{spec.kernels}" fuse the same operations: drop one of the two.')
    if spec.quantization in ("int8", "fp8") and spec.compile:
        raise ValueError(
            f'`compile` is not for quantization: "{spec.quantization}". Set one of the two to its default.'
        )
    if spec.compile and spec.gradient_checkpointing == "offload":
        raise ValueError(
            "`compile` and `gradient_checkpointing: offload` do not go together: torch.compile cannot keep a layer's "
            "input in the host's memory. Set gradient_checkpointing to true, or compile to false."
        )


def _hub_options(spec: PolicySpec) -> dict[str, Any]:
    return {"revision": spec.revision or "main", "trust_remote_code": spec.trust_remote_code}


def _template(template: str) -> str:
    if "{" in template:
        return template
    if not Path(template).expanduser().is_file():
        raise FileNotFoundError(
            f"`chat_template` must be a Jinja file or the template's text, but {template!r} is neither."
        )
    return Path(template).expanduser().read_text(encoding="utf-8")


def read_config(spec: PolicySpec, **changes: Any) -> PretrainedConfig:
    """Reads the model's config as it is, except for `changes`.

    Raises:
        FileNotFoundError: the model has no config.
    """
    try:
        with naming_files(spec.model, "config"):
            config: PretrainedConfig = AutoConfig.from_pretrained(
                locate_model(spec.model), **changes, **_hub_options(spec)
            )
    except OSError as error:
        raise FileNotFoundError(
            f"The model {spec.model!r} could not be loaded. Expected a hub id (and the network, or the model in "
            f"the local hub cache), a folder, a GGUF file, or package://PACKAGE/FILE. {error}"
        ) from error
    return config


def load_config(spec: PolicySpec) -> PretrainedConfig:
    """Loads the model's config with all dropout set to 0. No weights are downloaded; a GGUF file is converted, once.

    Raises:
        FileNotFoundError: the model has no config.
        ValueError: the model is no causal language model.
    """
    config = read_config(spec)
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map")
    masked = any(architecture.endswith("ForMaskedLM") for architecture in config.architectures or [])
    if not causal or masked or config.is_encoder_decoder:
        raise ValueError(
            f"{spec.model!r} is no causal language model (its config says {config.model_type!r}, architectures "
            f"{config.architectures}): the policy must be a decoder that writes text left to right."
        )
    switch_off_dropout(config)
    return config


def switch_off_dropout(config: PretrainedConfig) -> None:
    """Sets everything random in a forward pass to 0, in the config and in nested ones."""
    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            switch_off_dropout(value)
        elif isinstance(value, float) and any(noise in key for noise in ("drop", "jitter")):
            setattr(config, key, 0.0)


def base_options(spec: PolicySpec, config: PretrainedConfig, whole: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of `from_pretrained` for the base: dtype, attention, quantisation.

    Args:
        spec: how it is loaded.
        config: the model's.
        whole: names of layers that are not quantised; without any, the output layer is not.
    """
    dtype = "auto" if spec.dtype == "auto" else getattr(torch, spec.dtype)
    options: dict[str, Any] = {"dtype": dtype, "config": config, **_hub_options(spec)}
    if spec.attn_implementation is not None:
        options["attn_implementation"] = spec.attn_implementation
    if spec.quantization is not None:
        compute_dtype: Any = config.dtype if spec.dtype == "auto" else dtype
        options["quantization_config"] = quantization_settings(spec.quantization, compute_dtype, whole)
    return options


def _load_base(spec: PolicySpec, name: str, config: PretrainedConfig) -> PreTrainedModel:
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **base_options(spec, config)}
    with naming_files(spec.model, "weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, **options)
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"The files of {spec.model!r} lack {len(missing)} weights that a {type(model).__name__} needs, such as "
            f"{missing[0]!r}: they are no whole causal language model (perhaps a classifier or a bare backbone?)."
        )
    if info["mismatched_keys"]:
        others = sorted(info["mismatched_keys"], key=str)
        key, in_file, by_config = others[0]
        raise ValueError(
            f"The weights of {spec.model!r} are not those of its config.json: {len(others)} have other sizes, such as "
            f"{key!r}: {tuple(in_file)} in the file, {tuple(by_config)} by the config."
        )
    make_trainable(model)
    return model


def prepare_layers(spec: PolicySpec, model: PreTrainedModel) -> None:
    """Sets gradient checkpointing for the layers of the base, and fuses or compiles them, as `spec` says."""
    if spec.kernels is not None:
        demand_kernels(spec.kernels, "cuda" if torch.cuda.is_available() else "cpu")
        use_kernels(model)
    keep_activations(spec, model)
    if spec.compile:
        compile_layers(model)


def keep_activations(spec: PolicySpec, model: PreTrainedModel) -> None:
    """Sets what a forward pass keeps for its backward, by `spec.gradient_checkpointing`."""
    if not spec.gradient_checkpointing:
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(settings)
    else:  # an older transformers
        model.gradient_checkpointing_enable(settings)
    if spec.gradient_checkpointing == "offload":
        wrap_checkpoint_functions(model, lambda run: partial(_offloaded, run))


def _offloaded(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs a layer and keeps the tensors that it saves in the host's memory."""
    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        return run(*args, **kwargs)


def _with_adapter(spec: PolicySpec, model: PreTrainedModel) -> nn.Module:
    if spec.adapter is not None:
        return load_adapter(spec.adapter, model, saved_config(spec.adapter, model))
    if spec.lora is not None:
        return fresh_adapter(spec.lora, model)
    model.requires_grad_(True)
    return model


def fresh_adapter(lora: LoraSpec, model: PreTrainedModel, task_type: str = "CAUSAL_LM") -> nn.Module:
    """Freezes the model and gives it new adapters to train.

    Args:
        lora: the adapters' settings.
        model: the base.
        task_type: peft's name for the model's task. With "SEQ_CLS" the whole output layer is trained, too.

    Raises:
        ValueError: one of `lora.target_modules` is not the name of a layer.
    """
    from peft import LoraConfig, get_peft_model

    from lit_align.policy.lora import add_in_place

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated as int; only the ratio alpha / r is used
        lora_dropout=lora.dropout,
        target_modules=copy.copy(lora.target_modules),
        target_parameters=copy.copy(lora.target_parameters),
        modules_to_save=copy.copy(lora.modules_to_save),
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        init_lora_weights=True if lora.init == "default" else lora.init,  # type: ignore[arg-type]
        task_type=task_type,
    )
    layers = layer_names(model)
    demand_saved_modules(lora.modules_to_save, model)
    try:
        adapted = get_peft_model(model, add_in_place(config, model))
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        raise ValueError(
            f"lora.target_modules, {lora.target_modules!r}, names no layer of the model. Its layers: "
            f"{', '.join(layers)}."
        ) from error
    demand_targets(lora.target_modules, adapted, layers)
    return adapted
