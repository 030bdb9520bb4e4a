"""The config reference, from the signatures that the command line's own parser reads."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse._parameter_resolvers import ParamData, get_signature_parameters
from lightning.pytorch import Callback
from public import as_markdown, classes_of, first_paragraph

import callbacks
from lit_align import AlignmentDataModule, AlignmentModule, AlignmentTrainer, LoraSpec, PolicySpec
from lit_align.boundary import BoundaryCallback
from lit_align.data import PairSelector
from lit_align.judges import Judge
from lit_align.losses import PreferenceLoss
from lit_align.reward import RewardDataModule, RewardModule
from lit_align.sampling import Publisher, Sampler

UP = "../"
RUN = """\
# Settings of a run

A run is a YAML file, and each of its keys can be given on the command line too. This page is made from the signatures
that the command line's parser reads, so it says what is so. `lit-align fit --config FILE --print_config` shows the
settings of a run of yours, defaults included; `lit-align fit --model.loss.help DPO` shows the arguments of a class.

The file has five parts:

| key | |
|---|---|
| `seed_everything` | the seed of everything that is random in the run, data included |
| `model` | the policy, its loss, its optimizer |
| `data` | rows, judge, sampler |
| `boundary` | when the stage is measured and what follows; null trains on one source throughout |
| `trainer` | Lightning's flags: steps, devices, precision, callbacks, loggers |

`model`, `data` and `boundary` name a class by `class_path` and its arguments under `init_args`. On the command line
both levels are left out: `--data.batch_size 4`, `--model.policy.lora.r 32`.
"""


def pages() -> Iterator[tuple[str, str]]:
    """The pages of the config reference."""
    yield "reference/settings.md", "\n".join([RUN, *_run_parts()])
    yield "reference/losses.md", _page("Losses", "`model.loss` takes any of these; [losses](../losses.md) says when to "
                                       "use which, with the formulas.", classes_of(PreferenceLoss))  # fmt: skip
    judges = "`data.judge` takes any of these; [judges](../judges.md) explains them."
    yield "reference/judges.md", _page("Judges", judges, classes_of(Judge))
    yield (
        "reference/samplers.md",
        _page(
            "Samplers and selectors",
            "`data.sampler` writes the policy's answers, `data.selector` makes pairs of candidates.",
            [*classes_of(Sampler), *classes_of(Publisher), *classes_of(PairSelector)],
        ),
    )
    yield (
        "reference/schedules.md",
        _page(
            "Schedules",
            "`boundary` takes any of these. `lit_align.BoundaryCallback` is the paper's; the others live in "
            "`callbacks/`, which `lit-align init` copies for you to change. A schedule's own arguments stand first.",
            [(f"callbacks.{name}", getattr(callbacks, name)) for name in callbacks.__all__],
        ),
    )
    yield "reference/callbacks.md", _page("Callbacks", "`trainer.callbacks` takes these, and any of Lightning's.", [
        (path, kind) for path, kind in classes_of(Callback) if not issubclass(kind, BoundaryCallback)
    ])  # fmt: skip


def _run_parts() -> Iterator[str]:
    parts: list[tuple[str, str, type]] = [
        ("model", "lit_align.AlignmentModule", AlignmentModule),
        ("model.policy", "lit_align.PolicySpec", PolicySpec),
        ("model.policy.lora", "lit_align.LoraSpec", LoraSpec),
        ("data", "lit_align.AlignmentDataModule", AlignmentDataModule),
        ("boundary", "lit_align.BoundaryCallback", BoundaryCallback),
        ("trainer", "lit_align.AlignmentTrainer", AlignmentTrainer),
        ("model of a reward model", "lit_align.reward.RewardModule", RewardModule),
    ]
    for key, path, kind in parts:
        yield f"## {key}\n\n`{path}`: {first_paragraph(kind, UP)}\n\n{_table(kind)}\n"
    yield (
        "`lit_align.reward.RewardDataModule` takes the arguments of `AlignmentDataModule`: "
        f"{first_paragraph(RewardDataModule, UP)}\n"
    )


def _page(title: str, lead: str, classes: Sequence[tuple[str, type]]) -> str:
    text = [f"# {title}\n\n{lead}\n"]
    for path, kind in classes:
        name = path.rpartition(".")[2]
        text.append(f"## {name}\n\n`class_path: {path}`\n\n{first_paragraph(kind, UP)}\n\n{_table(kind)}\n")
    return "\n".join(text)


def _table(kind: type) -> str:
    parameters = [parameter for parameter in get_signature_parameters(kind, None) if parameter.name != "self"]
    if not parameters:
        return "It has no arguments."
    rows = "\n".join(_row(parameter) for parameter in parameters)
    return f"| argument | default | |\n|---|---|---|\n{rows}"


def _row(parameter: ParamData) -> str:
    meaning = as_markdown(" ".join((parameter.doc or "").split()), UP).replace("|", "\\|")
    kind = _type_words(parameter.annotation)
    return f"| `{parameter.name}`<br><small>{kind}</small> | {_default_words(parameter)} | {meaning} |"


def _type_words(annotation: Any) -> str:
    """A type as a config's author would say it: short names, `or` between the kinds, null for None."""
    if "Callable" in str(annotation):
        return "a class"
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", text)
    text = re.sub(r"Optional\[(.*)\]$", r"\1 | None", text)
    text = re.sub(r"Union\[(.*)\]$", lambda match: match[1].replace(", ", " | "), text)
    text = re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace(", ", " | ").replace("'", ""), text)
    text = text.replace("NoneType", "None").replace("None", "null")
    return text.replace(" | ", " or ").replace("<", "&lt;").replace("[", "\\[")


def _default_words(parameter: ParamData) -> str:
    default = parameter.default
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or isinstance(default, bool):
        return f"`{str(default).lower().replace('none', 'null')}`"
    if isinstance(default, int | float | str):
        return f"`{default}`" if default != "" else "empty"
    if isinstance(default, dict) and "class_path" in default:
        settings = ", ".join(f"{key} {value}" for key, value in default.get("init_args", {}).items())
        return f"`{default['class_path']}`, {settings}"
    if isinstance(default, tuple | list | dict):
        return f"`{default}`"
    return f"`{type(default).__name__}`"
