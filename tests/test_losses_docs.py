"""docs/losses.md: every loss is in its table, every YAML builds, its Python runs; and every loss by its class path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import lit_align.losses as losses
from lit_align.losses import PreferenceLoss
from tests.helpers.loss_cases import exported_losses, ordinary

TEXT = (Path(__file__).parent.parent / "docs" / "losses.md").read_text()
GIVEN: dict[str, dict[str, Any]] = {  # arguments of the losses that have one without a default
    "FDPO": {"divergence": {"class_path": "lit_align.losses.ForwardKL"}},
    "WeightedSum": {"losses": [{"class_path": "lit_align.losses.DPO"}]},
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def build(config: dict[str, Any]) -> PreferenceLoss:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PreferenceLoss, "loss")
    loss = parser.instantiate_classes(parser.parse_object({"loss": config})).loss
    assert isinstance(loss, PreferenceLoss)
    return loss


def test_the_table_has_every_loss_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)`", TEXT, re.MULTILINE)
    assert sorted(rows) == sorted(loss.__name__ for loss in exported_losses())


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_yaml_builds_a_loss(text: str) -> None:
    config = yaml.safe_load(text)
    loss = build(config)
    assert f"lit_align.losses.{type(loss).__name__}" == config["class_path"]
    assert loss(ordinary()).losses.isfinite().all()


@pytest.mark.parametrize("name", sorted(loss.__name__ for loss in exported_losses()))
def test_every_loss_is_built_by_its_class_path(name: str) -> None:
    loss = build({"class_path": f"lit_align.losses.{name}", "init_args": GIVEN.get(name, {})})
    assert type(loss) is getattr(losses, name)


def test_the_loss_of_ones_own_works() -> None:
    (text,) = blocks("python")
    scope: dict[str, Any] = {}
    exec(compile(text, "docs/losses.md", "exec"), scope)
    output = scope["Exponential"](beta=1.0)(ordinary())
    torch.testing.assert_close(output.losses, torch.exp(torch.tensor([0.0, 1.5, -2.5])), check_stride=False)
