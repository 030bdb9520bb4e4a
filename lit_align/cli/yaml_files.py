"""Config files and values of the command line, read as YAML."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from torch import optim

from lit_align.cli.errors import UsageError

YAML = "yaml with torch's optimizers"
"""The mode of a parser whose config files are YAML, see :func:`with_torchs_optimizer`."""


def _load(text: str) -> Any:
    loaded = get_loader("yaml")(text)
    return with_torchs_optimizer(loaded) if isinstance(loaded, dict) else loaded


set_loader(YAML, _load, (yaml.YAMLError,))


class _Loader(yaml.SafeLoader):
    """PyYAML's, which refuses a key that stands twice in one place: of the two only the last would count."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if lines.setdefault(key.value, line) != line and key.tag != "tag:yaml.org,2002:merge":
                raise UsageError(f"the key `{key.value}` is there twice, in lines {lines[key.value]} and {line}")
        return super().construct_mapping(node, deep)


def load_config(path: str) -> dict[str, Any]:
    """Reads a config file.

    Raises:
        UsageError: it is no file of keys and values in YAML.
    """
    _require_file(path)
    try:
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8 ({error.reason}): save it in that encoding") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply for YAML") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if loaded is None:
        raise UsageError(f"{path} is empty: expected keys and values, such as `lit-align init` copies")
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} should hold keys and values, but holds a {type(loaded).__name__}")
    return with_torchs_optimizer(loaded)


def with_torchs_optimizer(config: dict[str, Any]) -> dict[str, Any]:
    """A config in which the bare name of the model's optimizer is torch's: other packages have some of the same name.

    Args:
        config: of a run, or a part of it.
    """
    section = config.get("model")
    model = section.get("init_args", section) if isinstance(section, dict) else None
    if not isinstance(model, dict):
        return config
    optimizer = model.get("optimizer")
    if isinstance(optimizer, str):
        model["optimizer"] = torchs_name(optimizer)
    elif isinstance(optimizer, dict) and isinstance(optimizer.get("class_path"), str):
        optimizer["class_path"] = torchs_name(optimizer["class_path"])
    return config


def torchs_name(name: str) -> str:
    """The class path of torch's optimizer of this name, if there is one, else the name."""
    return f"torch.optim.{name}" if hasattr(optim, name) else name


def parse_value(text: str) -> Any:
    """The value of an option; what is no YAML is text."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return text


def _require_file(path: str) -> None:
    if not path:
        raise UsageError("--config takes the path of a YAML file, and got none")
    if Path(path).is_dir():
        raise UsageError(f"the config file {path!r} is a folder: give a YAML file in it")
    if not Path(path).is_file():
        raise UsageError(f"the config file {path!r} does not exist (looked in {Path.cwd()})")
