"""Finds what a fit left, from whatever path a user gives, without building the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from lit_align import run_folder
from lit_align.policy.source import locate_adapter
from lit_align.policy.spec import PolicySpec
from lit_align.trained.loading import ADAPTER, holds_model
from lit_align.trained.policy import TrainedPolicy, load_policy
from lit_align.trained.settings import policy_of, read_config
from lit_align.training.checkpoint_paths import demand_whole, last_checkpoint
from lit_align.training.module import POLICY_KEY
from lit_align.training.sharded_files import is_sharded, read_checkpoint

_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class TrainedRun:
    """A run, a checkpoint of it, or a model folder: what is needed to load the trained policy.

    Args:
        weights: the checkpoint, or the model folder, that holds the trained weights.
        start: the policy as it was when the fit began; of a folder without a run, that which the folder itself names.
            None for a folder with all weights, which knows nothing of what it was trained from.
        root: the run folder; None for a model folder or a checkpoint without one.
        config: the run's whole configuration in plain types, as `config.yaml` has it; empty without one.
    """

    weights: Path
    start: PolicySpec | None
    root: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What a reader would call it: the name of the run folder, or of the model folder or the file."""
        return (self.root or self.weights).absolute().name

    @property
    def spec(self) -> PolicySpec:
        """The policy as it is configured: its base, how that is loaded, and its chat template."""
        return self.start or PolicySpec(str(self.weights))

    @property
    def data(self) -> dict[str, Any] | None:
        """The data section of the configuration, `class_path` and `init_args`; None without a configuration."""
        return self.config.get("data")

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed_everything") or 0)

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """Values for variables of the chat template; :meth:`load`'s tokenizer has them in its template already."""
        return dict(self.spec.chat_template_kwargs or {})

    def load(self, device: str | torch.device | None = None) -> TrainedPolicy:
        """Loads the trained policy, with the one that it started from at hand.

        Args:
            device: where to load it to; None takes the GPU, if there is one.

        Raises:
            FileNotFoundError: the base is not there.
            ValueError: the weights are those of another base, or not all of those that were trained.
        """
        return load_policy(self.start, self.weights, device)


def open_run(path: str | Path, base: str | None = None) -> TrainedRun:
    """Finds what a fit left. Nothing is loaded yet, and no code of the run's configuration is run.

    Args:
        path: a run folder (`runs/NAME`, or only `NAME`), a checkpoint, the folder `checkpoints`, a model folder
            (`runs/NAME/model`, or what `lit-align export` wrote), or the run's `config.yaml`. Of a run folder the
            newest checkpoint counts, and without one its model folder.
        base: the base to load, in place of the one that the run or the adapter names, such as one that has moved.

    Raises:
        FileNotFoundError: there is no such run, or nothing trained in it.
        ValueError: it is the run of a reward model.

    Example:
        >>> run = open_run("runs/quickstart")  # doctest: +SKIP
        >>> policy = run.load()  # doctest: +SKIP
        >>> with policy.at_start() as start:  # doctest: +SKIP
        ...     ...  # the adapter is off here
    """
    place = _existing(run_folder.locate_run(path))
    if place.is_file() and place.suffix in (".yaml", ".yml"):
        place = place.parent
    if holds_model(place):
        return _of_model_folder(place, base)
    if place.is_file() or is_sharded(place):
        return _of_checkpoint(place, _root_of(place.parent), base)
    root = place.parent if place.name == run_folder.CHECKPOINTS else place
    checkpoint = last_checkpoint([place, root / run_folder.CHECKPOINTS], to_resume=False)
    if checkpoint is not None:
        return _of_checkpoint(checkpoint, root, base)
    if holds_model(root / run_folder.MODEL):
        return _of_model_folder(root / run_folder.MODEL, base)
    _refuse(root)


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    runs = sorted(str(config.parent) for config in run_folder.RUNS.glob(f"*/{run_folder.CONFIG}"))
    hint = f"The runs here are {', '.join(runs)}" if runs else "A fit leaves one in runs/NAME"
    raise FileNotFoundError(
        f"there is no run {str(path)!r}: expected a run folder, a checkpoint or a model folder. {hint}"
    )


def _refuse(root: Path) -> NoReturn:
    if (root / run_folder.REWARD_MODEL).is_dir():
        raise ValueError(_of_rewards(root))
    if (root / run_folder.CONFIG).exists():
        raise FileNotFoundError(
            f"there is no checkpoint and no model in {root} that can be read: the fit ended before it saved one, or it "
            "was to save none (--trainer.enable_checkpointing false, barebones)"
        )
    raise FileNotFoundError(
        f"expected a run folder, a checkpoint or a model folder, and {root} is none: it has no {run_folder.CONFIG}, no "
        f"{run_folder.CHECKPOINTS}/ and no {ADAPTER}"
    )


def _of_rewards(place: Path) -> str:
    return (
        f"{place} is of a reward model, which scores answers and writes none: `RewardModelJudge` takes the folder "
        f"{run_folder.REWARD_MODEL}/ of its run, and `lit-align judge` tells how good it is"
    )


def _root_of(folder: Path) -> Path | None:
    """The run folder that a file of a run lies in, at any of the usual depths."""
    return next((place for place in (folder, folder.parent) if (place / run_folder.CONFIG).is_file()), None)


def _of_checkpoint(path: Path, root: Path | None, base: str | None) -> TrainedRun:
    demand_whole(path)
    config = read_config(root)
    checkpoint = read_checkpoint(path)
    spec = policy_of(config, base) or policy_of({"policy": checkpoint.get(POLICY_KEY)}, base)
    if spec is None and any(name.startswith("model.") for name in checkpoint["state_dict"]):
        raise ValueError(_of_rewards(root or path))
    if spec is None:
        raise FileNotFoundError(
            f"the checkpoint {path} does not say which policy it is of: expected {run_folder.CONFIG} in the folder of "
            "its run"
        )
    return TrainedRun(path, spec, root, config)


def _of_model_folder(path: Path, base: str | None) -> TrainedRun:
    root = _root_of(path.parent) if path.name in run_folder.MODELS else None
    config = read_config(root)
    spec = policy_of(config, base)
    if spec is not None:
        return TrainedRun(path, spec, root, config)
    return TrainedRun(path, _of_adapter(path, base) if (path / ADAPTER).is_file() else None)


def _of_adapter(path: Path, base: str | None) -> PolicySpec:
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(locate_adapter(str(path)))
    if config.task_type == "SEQ_CLS":
        raise ValueError(_of_rewards(path))
    recorded = base or config.base_model_name_or_path
    if not recorded:
        raise ValueError(f"{path / ADAPTER} names no base: give it, as a hub id, a folder or a GGUF file")
    template = path / _TEMPLATE
    return PolicySpec(recorded, adapter=str(path), chat_template=str(template) if template.is_file() else None)
