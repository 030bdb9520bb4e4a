"""Reads a run's `config.yaml` as plain values: no class of it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from lit_align import run_folder
from lit_align.policy.spec import LoraSpec, PolicySpec


def read_config(root: Path | None) -> dict[str, Any]:
    """The configuration of a run in plain types; empty if there is none.

    Raises:
        ValueError: the file cannot be read as one.
    """
    path = None if root is None else root / run_folder.CONFIG
    if path is None or not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML that can be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"expected {path} to hold the sections of a run (model, data, trainer), got {config!r:.80}")
    return config


def policy_of(config: Mapping[str, Any], base: str | None = None) -> PolicySpec | None:
    """The policy that a configuration names, as it is when a fit begins; None if it names none.

    Args:
        config: in plain types; the policy is in `model.init_args.policy`, or on top.
        base: another model to load in place of the one that is named.

    Raises:
        ValueError: it has settings that a policy does not have.
    """
    model = config.get("model") or {}
    values = config.get("policy") or (model.get("init_args") or model).get("policy")
    if not values:
        return None
    spec = PolicySpec(**_arguments(values, PolicySpec))
    if isinstance(spec.lora, Mapping):
        spec.lora = LoraSpec(**_arguments(spec.lora, LoraSpec))
    return spec if base is None else replace(spec, model=base, revision=None)


def _arguments(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The arguments of a dataclass, also as the `init_args` of a class."""
    arguments = dict(values.get("init_args", values))
    unknown = sorted(arguments.keys() - {setting.name for setting in fields(kind)})
    if unknown:
        raise ValueError(
            f"expected the settings of a {kind.__name__}, got {', '.join(map(repr, unknown))} among them: was the run "
            "made with another version of lit-align?"
        )
    return arguments
