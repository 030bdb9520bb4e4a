"""Loads saved adapters: with every weight in its place, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_align.policy.identity import model_identity
from lit_align.policy.source import is_local, locate_adapter
from lit_align.policy.spec import PolicySpec

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def load_adapter(adapter: str, model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Puts a saved adapter onto its base, with every weight of the adapter in its place.

    Args:
        adapter: a folder that peft saved, or a hub id.
        model: the base.
        config: the adapter's settings, as from :func:`saved_config`.

    Raises:
        FileNotFoundError: the folder holds no adapter, or only its settings.
        ValueError: the adapter's weights are not those that the base and the settings need.
    """
    from peft import get_peft_model

    of_base = {id(parameter) for parameter in model.parameters()}
    weights = read_weights(adapter)
    recorded = config.base_model_name_or_path  # peft puts this base's name in its place
    adapted: PeftModel = get_peft_model(model, config)
    problem = _fill(adapted, weights, of_base)
    if problem is not None:
        raise ValueError(
            f"The adapter {adapter!r} does not fit the model {model.name_or_path!r}: {problem}. It says that it was "
            f"made on {recorded!r}: give that model, or save the adapter anew with the version of peft that made it."
        )
    return adapted


def fill_adapter(policy: nn.Module, adapter: str) -> None:
    """Puts the weights of a saved adapter into a policy that has one of the same settings.

    Args:
        policy: the base with an adapter to train.
        adapter: a folder that peft saved, or a hub id.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: the weights are not those of the policy's adapter.
    """
    fixed = {id(parameter) for parameter in policy.parameters() if not parameter.requires_grad}
    problem = _fill(cast("PeftModel", policy), read_weights(adapter), fixed)
    if problem is not None:
        raise ValueError(f"The adapter {adapter!r} is not that of this run: {problem}. Was config.yaml changed?")


def demand_own_base(spec: PolicySpec, located: str) -> None:
    """Refuses an adapter of another base, which may fit in shape; warns if its own base is not here to compare with.

    Args:
        spec: the policy, with a saved adapter.
        located: the folder or hub id of its base.

    Raises:
        ValueError: the base that the adapter names is on this machine, and its weights are others.
    """
    from peft import PeftConfig

    assert spec.adapter is not None
    recorded = PeftConfig.from_pretrained(locate_adapter(spec.adapter)).base_model_name_or_path
    if not recorded or _short(recorded) in (_short(spec.model), _short(located)):
        return
    finding = f"The adapter {spec.adapter!r} was made on {recorded!r}, and here it is loaded onto {spec.model!r}"
    if not Path(recorded).is_dir():
        rank_zero_warn(
            f"{finding}: on other weights than its own it is noise. Is it the same model under another name?"
        )
    elif model_identity(PolicySpec(recorded))["model"] != model_identity(replace(spec, adapter=None))["model"]:
        raise ValueError(
            f"{finding}, whose weights are others: on them it is noise. Set `policy.model` to {recorded!r}, or take an "
            "adapter that was made on this model."
        )


def saved_config(adapter: str, model: PreTrainedModel) -> PeftConfig:
    """Reads the settings of a saved adapter for further training. Dropout is set to 0, which is DPO's convention.

    Args:
        adapter: a folder that peft saved, or a hub id.
        model: the base.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the adapter does not change layers.
    """
    from peft import LoraConfig, PeftConfig

    from lit_align.policy.lora import add_in_place

    config = PeftConfig.from_pretrained(locate_adapter(adapter))
    if config.is_prompt_learning:
        raise ValueError(
            f"The adapter {adapter!r} is of type {config.peft_type}, which adds virtual tokens. Only adapters that "
            "change layers, such as LoRA, can be trained here."
        )
    config.inference_mode = False
    if isinstance(config, LoraConfig):
        config.lora_dropout = 0.0
        add_in_place(config, model)
    return config


def read_weights(adapter: str) -> dict[str, Tensor]:
    """Reads a saved adapter's weights, by the names that peft gives them.

    Args:
        adapter: a folder that peft saved, or a hub id.

    Raises:
        FileNotFoundError: the folder holds no adapter, or only its settings.
        ValueError: the file cannot be read.
    """
    from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights

    name = locate_adapter(adapter)
    files = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
    if is_local(adapter) and not any(Path(name, file).is_file() for file in files):
        raise FileNotFoundError(
            f"The adapter {adapter!r} has settings but no weights: expected {' or '.join(files)} beside its "
            "adapter_config.json. Copy the whole folder that peft's `save_pretrained` wrote."
        )
    try:
        return dict(load_peft_weights(name, device="cpu"))
    except (OSError, ValueError):
        raise  # these say what is wrong
    except Exception as error:
        raise ValueError(f"The weights of the adapter {adapter!r} cannot be read: {error}") from error


def _fill(adapted: PeftModel, weights: Mapping[str, Tensor], of_base: set[int]) -> str | None:
    """Gives an adapter its weights.

    Args:
        adapted: the base under a fresh adapter.
        weights: by the names that peft saves.
        of_base: ids of the base's own parameters.

    Returns:
        The misfit in words, or None if all fits.
    """
    from peft import set_peft_model_state_dict

    try:
        result: Any = set_peft_model_state_dict(adapted, weights)
    except KeyError as error:  # a module that is saved as a whole
        return f"the weight {error.args[0]!r} is missing"
    except RuntimeError as error:
        return str(error).splitlines()[-1].strip().rstrip(".")
    missing = _missing(adapted, set(result.missing_keys), of_base)
    unexpected = sorted(result.unexpected_keys)
    if not missing and not unexpected:
        return None
    parts = [
        f"{len(names)} weights are {what} (the first is {names[0]!r})"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    return " and ".join(parts)


def _missing(adapted: nn.Module, unfilled: set[str], of_base: set[int]) -> list[str]:
    """Names of the adapter's parameters that the file lacks, also under other names of the same parameter."""
    every = dict(adapted.named_parameters(remove_duplicate=False))
    filled = {id(parameter) for name, parameter in every.items() if name not in unfilled}
    own = {name: p for name, p in every.items() if p.requires_grad or id(p) not in of_base}
    return sorted(name for name, parameter in own.items() if id(parameter) not in filled)


def _short(name: str) -> str:
    """The last part of a path or hub id, without the suffixes of 4-bit copies."""
    parts: Any = PurePath(name).parts
    if "snapshots" in parts:  # in the hub's cache
        return str(parts[parts.index("snapshots") - 1]).rpartition("--")[2].lower()
    return str(parts[-1]).lower().removesuffix("-bnb-4bit").removesuffix("-unsloth")
