"""The identity of a base in a checkpoint, so that weights trained on one base are restored on no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from lit_align.console import note
from lit_align.policy.identity import model_identity
from lit_align.policy.spec import PolicySpec

KEY = "base"
"""The key of the identity in a checkpoint."""
_FILES = ("model", "adapter")
_SETTINGS = ("quantization", "dtype")
_say = rank_zero_only(note)


def base_record(spec: PolicySpec) -> dict[str, Any] | None:
    """The source of a model's weights, by content or by commit; None if that cannot be determined."""
    try:
        identity = model_identity(spec)
    except (OSError, ValueError):
        return None
    return {"name": spec.model, "adapter_name": spec.adapter} | {key: identity[key] for key in (*_FILES, *_SETTINGS)}


def demand_same_base(checkpoint: Mapping[str, Any], spec: PolicySpec) -> None:
    """Refuses a checkpoint of another base, and says if the same one is loaded with other settings.

    Raises:
        ValueError: the files, or the commit, are others than those that the checkpoint was made on.
    """
    before = checkpoint.get(KEY)
    now = base_record(spec)
    if before is None or now is None:
        _say(f"The checkpoint's base cannot be told: it is taken to be {_name(spec.model, spec.adapter)}.")
        return
    if any(before[key] != now[key] for key in _FILES):
        raise ValueError(
            f"The checkpoint was made on {_describe(before)}, and this configuration's base is {_describe(now)}: "
            "weights trained on one do not fit the other. Resume with the files that it was made on, or start a fresh "
            "run on these."
        )
    changes = [f"{key} {before[key]} -> {now[key]}" for key in _SETTINGS if before[key] != now[key]]
    if changes:
        _say(f"The checkpoint's base is loaded in another way than before: {', '.join(changes)}.")


def _describe(record: Mapping[str, Any]) -> str:
    contents = ", ".join(f"{key} {_short(record[key])}" for key in _FILES if record[key] is not None)
    return f"{_name(record['name'], record['adapter_name'])} ({contents})"


def _name(model: str, adapter: str | None) -> str:
    return repr(model) if adapter is None else f"{model!r} with the adapter {adapter!r}"


def _short(source: Mapping[str, str]) -> str:
    """The commit, or the hash of the files, shortened as git does."""
    return (source.get("commit") or source["files"])[:8]
