"""The model card: what the model was trained from, on what, how, with what result, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lit_align.escape import escape
from lit_align.markdown import markdown_table
from lit_align.policy.base_record import base_record
from lit_align.policy.source import PACKAGE_SCHEME, is_local
from lit_align.policy.spec import PolicySpec
from lit_align.trained.loading import ADAPTER, loading_lines, short_name

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_STAGES = {"injection": "injection", "fine_tuning": "fine-tuning"}


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells of a run. Paths are shown by their last part alone.

    Args:
        name: of the run.
        spec: the policy as the fit began.
        config: the run's configuration in plain types; empty if it is not known.
        summary: as `summary.json` holds it, or a part of it.
        moment: which weights of the run these are, such as "the end of the run".
        notes: further sentences.
    """

    name: str
    spec: PolicySpec
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    moment: str = "the end of the run"
    notes: Sequence[str] = ()

    @property
    def model(self) -> Mapping[str, Any]:
        """The arguments of the module."""
        model = self.config.get("model") or {}
        return model.get("init_args") or model

    @property
    def data(self) -> Mapping[str, Any]:
        """The arguments of the data module."""
        return (self.config.get("data") or {}).get("init_args") or {}


def write_card(facts: CardFacts, folder: Path) -> str:
    """The text of `README.md` of a model folder, with a YAML head that the hub takes.

    Args:
        facts: what is told.
        folder: the model folder, with its weights in it.
    """
    adapter = (folder / ADAPTER).is_file()
    kind = "A LoRA adapter for" if adapter else "A model trained from"
    head = yaml.safe_dump(_head(facts, adapter), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---\n\n# {facts.name}",
        f"{kind} `{short_name(facts.spec.model)}`, aligned on preference pairs by lit-align {version('lit-align')}. "
        f"The weights are those of {facts.moment}.",
        *facts.notes,
        _loading(facts.spec, folder, adapter),
        "## Training\n\n" + markdown_table([["", ""], *map(list, _rows(facts))]),
        _decisions(facts.summary),
        _result(facts.summary.get("win_rate")),
    ]
    return escape("\n\n".join(filter(None, parts)) + "\n")


def _head(facts: CardFacts, adapter: bool) -> dict[str, Any]:
    loss = _class_name(facts.model.get("loss"))
    tags = ["lit-align", "preference-alignment", *([loss.lower()] if loss else []), *(["lora"] if adapter else [])]
    head: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if _is_hub_id(facts.spec.model):
        head["base_model"] = facts.spec.model
        head["base_model_relation"] = "adapter" if adapter else "finetune"
    datasets = [place for place in _places(facts.data.get("train")) if _is_hub_id(place)]
    return {**head, "tags": tags, **({"datasets": datasets} if datasets else {})}


def _is_hub_id(name: str) -> bool:
    return not is_local(name) and _HUB_ID.fullmatch(name) is not None


def _loading(spec: PolicySpec, folder: Path, adapter: bool) -> str:
    lines = "\n".join(loading_lines(folder, "PATH_OF_THIS_FOLDER"))
    text = f"## Loading\n\n```python\n{lines}\n```"
    if not adapter or not (is_local(spec.model) or spec.model.startswith(PACKAGE_SCHEME)):
        return text
    name = short_name(spec.model)
    file = f', gguf_file="{name}"' if name.endswith(".gguf") else ""
    place = "FOLDER_OF_THE_GGUF_FILE" if file else "PATH_OF_THE_BASE"
    return (
        f"{text}\n\nThat finds the base where it was in training. On another machine, load `{name}` first:\n\n"
        "```python\nimport peft, transformers\n"
        f'base = transformers.AutoModelForCausalLM.from_pretrained("{place}"{file})\n'
        'model = peft.PeftModel.from_pretrained(base, "PATH_OF_THIS_FOLDER")\n```'
    )


def _rows(facts: CardFacts) -> Iterator[tuple[str, str]]:
    spec = facts.spec
    yield "base", _describe_base(spec)
    precision = f"{spec.quantization}, computed in {spec.dtype}" if spec.quantization else spec.dtype
    yield "loaded as", "the dtype of its files" if precision == "auto" else precision
    yield "trained", _describe_trained(spec)
    if loss := facts.model.get("loss"):
        yield "loss", _describe_class(loss)
    if optimizer := facts.model.get("optimizer"):
        yield "optimizer", _describe_class(optimizer)
    yield from _describe_data(facts)
    if judge := facts.data.get("judge"):
        yield "judge", _class_name(judge)
    if steps := facts.summary.get("steps"):
        yield "optimizer steps", str(steps)
    if "seed_everything" in facts.config:
        yield "seed", str(facts.config["seed_everything"])


def _describe_base(spec: PolicySpec) -> str:
    source = (base_record(spec) or {}).get("model") or {}
    if commit := source.get("commit") or spec.revision:
        return f"`{short_name(spec.model)}`, revision `{commit}`"
    digest = source.get("files", "")[:16]
    return f"`{short_name(spec.model)}`" + (f", weights with the hash `{digest}`" if digest else "")


def _describe_trained(spec: PolicySpec) -> str:
    if spec.adapter is not None:
        return f"the adapter `{short_name(spec.adapter)}`, further"
    if spec.lora is None:
        return "all weights"
    return f"LoRA, rank {spec.lora.r}, alpha {spec.lora.alpha:g}, dropout {spec.lora.dropout:g}"


def _describe_data(facts: CardFacts) -> Iterator[tuple[str, str]]:
    rows = facts.summary.get("rows") or {}
    counted = f": {rows['pairs']} pairs from {rows.get('prompts', 0)} prompts" if rows.get("pairs") else ""
    for name, key in (("data", "train"), ("held-out data", "val")):
        places = [f"`{short_name(place)}`" for place in _places(facts.data.get(key))]
        if places:
            yield name, ", ".join(places) + (counted if key == "train" else "")
        elif key == "train" and counted:
            yield name, f"rows in memory{counted}"
    rounds = facts.summary.get("rounds") or []
    if rounds:
        pairs = sum(int(stats.get("pairs", 0)) for stats in rounds)
        yield "on-policy data", f"{pairs} pairs of its own answers, in {len(rounds)} rounds"


def _places(source: Any) -> list[str]:
    """The files, folders and hub ids of a data source; rows in memory have none."""
    places = source if isinstance(source, list | tuple) else [source]
    return [place for place in places if isinstance(place, str)]


def _class_name(value: Any) -> str:
    path = value.get("class_path", "") if isinstance(value, Mapping) else value
    return str(path or "").rpartition(".")[2]


def _describe_class(value: Any) -> str:
    """A class with those of its arguments that are numbers."""
    arguments = value.get("init_args") or {} if isinstance(value, Mapping) else {}
    shown = [
        f"{key} {number}"
        for key, number in arguments.items()
        if isinstance(number, int | float) and not isinstance(number, bool)
    ]
    return _class_name(value) + (f" ({', '.join(shown)})" if shown else "")


def _decisions(summary: Mapping[str, Any]) -> str:
    """Each decision of the boundary with its score."""
    decisions = summary.get("decisions") or []
    if not decisions:
        return ""
    rows = [["step", "stage", "on-policy", "score", "interval"]]
    for decision in decisions:
        measured = decision["score"] is not None
        interval = f"{decision['low']:.2f} to {decision['high']:.2f}" if measured else ""
        score = f"{decision['score']:.2f}" if measured else ""
        stage = _STAGES.get(decision["stage"], decision["stage"])
        rows.append([str(decision["step"]), stage, f"{100 * decision['on_policy_share']:.0f} %", score, interval])
    crossing = (summary.get("crossing") or {}).get("text") or ""
    about = "The boundary score is the share of votes that its answers won against the static ones."
    return "\n\n".join(filter(None, ["## Which data it was trained on", f"{about} {crossing}", markdown_table(rows)]))


def _result(win_rate: Mapping[str, Any] | None) -> str:
    if not win_rate:
        return ""
    low, high, score = (f"{100 * win_rate[name]:.0f} %" for name in ("low", "high", "score"))
    scores = ""
    if win_rate.get("mean_before") is not None:
        scores = f" Mean score of the judge: {win_rate['mean_before']:.2f} before, {win_rate['mean_after']:.2f} after."
    return (
        f"## Result\n\nWin rate against the model that it started from: {score} ({low} to {high}) on "
        f"{win_rate['prompts']} held-out prompts.{scores}"
    )
