"""From a :class:`PolicySpec` to a tokenizer and a model that is ready to train."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.source import is_local, locate_model
from lit_align.policy.spec import LoraSpec, PolicySpec

_REPACKING = "support_avx512bf16_for_cpu"


def load_tokenizer(spec: PolicySpec) -> PreTrainedTokenizerBase:
    """See :meth:`PolicySpec.load_tokenizer`."""
    name = locate_model(spec.model)
    try:
        with quiet_libraries():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **_hub_options(spec))
    except OSError as error:
        raise FileNotFoundError(f"No tokenizer could be loaded from {spec.model!r}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if spec.chat_template is not None:
        tokenizer.chat_template = _template(spec.chat_template)
    return tokenizer


def load_model(spec: PolicySpec) -> nn.Module:
    """See :meth:`PolicySpec.load_model`."""
    _check(spec)
    name = locate_model(spec.model)
    with quiet_libraries():
        model = _load_base(spec, name, _load_config(spec, name))
        if spec.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return _with_adapter(spec, model).train()  # dropout in the base is 0, so only an adapter's is on


def _check(spec: PolicySpec) -> None:
    if spec.lora is not None and spec.adapter is not None:
        raise ValueError(
            "`lora` asks for fresh adapters and `adapter` for a saved one, which brings its own settings: "
            "set one of the two."
        )
    if spec.quantization is not None and spec.lora is None and spec.adapter is None:
        raise ValueError(
            f'quantization: "{spec.quantization}" keeps the base in 4 bits, which cannot be trained itself: '
            "set `lora` (QLoRA), or drop the quantization to train all weights."
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


def _load_config(spec: PolicySpec, name: str) -> PretrainedConfig:
    """The model's config with all dropout set to 0."""
    try:
        config = AutoConfig.from_pretrained(name, **_hub_options(spec))
    except OSError as error:
        raise FileNotFoundError(
            f"The model {spec.model!r} could not be loaded. Expected a hub id (and the network, or the model in "
            f"the local hub cache), a folder, a GGUF file, or package://PACKAGE/FILE. {error}"
        ) from error
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map")
    masked = any(architecture.endswith("ForMaskedLM") for architecture in config.architectures or [])
    if not causal or masked or config.is_encoder_decoder:
        raise ValueError(
            f"{spec.model!r} is no causal language model (its config says {config.model_type!r}, architectures "
            f"{config.architectures}): the policy must be a decoder that writes text left to right."
        )
    _switch_off_dropout(config)
    return config


def _switch_off_dropout(config: PretrainedConfig) -> None:
    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _switch_off_dropout(value)
        elif isinstance(value, float) and any(noise in key for noise in ("drop", "jitter")):
            setattr(config, key, 0.0)


def _load_base(spec: PolicySpec, name: str, config: PretrainedConfig) -> PreTrainedModel:
    dtype = "auto" if spec.dtype == "auto" else getattr(torch, spec.dtype)
    options: dict[str, Any] = {"dtype": dtype, "config": config, **_hub_options(spec)}
    if spec.attn_implementation is not None:
        options["attn_implementation"] = spec.attn_implementation
    if spec.quantization == "nf4":
        options["quantization_config"] = _nf4(config.dtype if spec.dtype == "auto" else dtype)
    loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"The files of {spec.model!r} lack {len(missing)} weights that a {type(model).__name__} needs, such as "
            f"{missing[0]!r}: they are no whole causal language model (perhaps a classifier or a bare backbone?)."
        )
    _keep_nf4_trainable_on_cpu(model)
    return model


def _nf4(compute_dtype: Any) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            'quantization: "nf4" needs the package `bitsandbytes`: pip install bitsandbytes'
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype or torch.float32,
    )


def _keep_nf4_trainable_on_cpu(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in place at the first forward in eval mode.

    On CPUs with avx512_bf16 that repacked form has no autograd: after one generation no adapter would
    get a gradient any more.
    """
    for module in model.modules():
        if hasattr(module, _REPACKING):
            setattr(module, _REPACKING, False)


def _with_adapter(spec: PolicySpec, model: PreTrainedModel) -> nn.Module:
    if spec.adapter is not None:
        return _saved_adapter(spec.adapter, model)
    if spec.lora is not None:
        return _fresh_adapter(spec.lora, model)
    model.requires_grad_(True)
    return model


def _fresh_adapter(lora: LoraSpec, model: PreTrainedModel) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated int; a ratio is all that it enters
        lora_dropout=lora.dropout,
        target_modules=copy.copy(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _saved_adapter(adapter: str, model: PreTrainedModel) -> nn.Module:
    """The saved adapter, trainable. Its dropout is set to 0: it was SFT's, and DPO's convention is none."""
    from peft import PeftConfig, PeftModel

    if is_local(adapter) and not (Path(adapter).expanduser() / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"`adapter` must be a folder that peft saved, but {Path(adapter).expanduser().absolute()} holds no "
            "adapter_config.json."
        )
    name = str(Path(adapter).expanduser()) if is_local(adapter) else adapter
    config = PeftConfig.from_pretrained(name)
    if config.is_prompt_learning:
        raise ValueError(
            f"The adapter {adapter!r} is of type {config.peft_type}, which adds virtual tokens. Only adapters that "
            "change layers, such as LoRA, can be trained here."
        )
    if hasattr(config, "lora_dropout"):
        config.lora_dropout = 0.0
    return PeftModel.from_pretrained(model, name, is_trainable=True, config=config)
