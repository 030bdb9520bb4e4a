"""The rooms of the house: imports run one way, and no files hold each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lit_align"
GROUND = {
    "batch", "by_length", "checks", "clock", "console", "escape", "files", "loggers", "losses", "markdown", "on_device",
    "progress", "ranks", "records", "remote", "run_folder", "run_parts", "seeding", "shared_rows", "steady",
}  # fmt: skip
FLOORS: list[set[str]] = [
    GROUND,
    {"metrics"},
    {"rows", "policy"},
    {"judges", "sampling", "reference", "training"},
    {"data"},
    {"trained"},
    {"boundary"},
    {"evaluate"},
    {"report"},
    {"reward"},
    {"export", "html_report", "plan", "preview", "watch"},
    {"talk"},
    {"trainer_defaults"},
    {"trainer"},
    {"doctor"},
    {"cli"},
]
"""Each room may import from the rooms below it, and from itself."""


def imports_of(file: Path, package: str = "lit_align") -> Iterator[str]:
    """The modules of `package` that a file imports: at the top, in functions and for type checkers alike."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith(f"{package}."))


def files() -> dict[str, Path]:
    """Every file but the package's own `__init__`, which lists what the rooms have for users."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ["lit_align", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts)] = path
    del found["lit_align.__init__"]
    return found


def test_every_room_has_its_floor() -> None:
    rooms = {name.split(".")[1] for name in files()}
    assert rooms == set().union(*FLOORS)


@pytest.mark.parametrize("room", sorted(set().union(*FLOORS)))
def test_imports_run_down(room: str) -> None:
    floor = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}
    upward = [
        f"{name} imports {target}"
        for name, path in files().items()
        if name.split(".")[1] == room
        for target in imports_of(path)
        if (other := target.split(".")[1]) != room
        and not (floor[other] < floor[room] or (room in GROUND and other in GROUND))
    ]
    assert not upward


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = files()
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = {target if target in modules else target.rpartition(".")[0] for target in imports_of(path)}
        graph[name] = {target for target in targets if target in modules and target != name}
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in done:
            return
        for target in sorted(graph[name]):
            visit(target, [*way, name])
        done.add(name)

    for name in sorted(graph):
        visit(name, [])


def test_no_test_module_imports_another() -> None:
    """What several of them use is in `tests/helpers`."""
    imports = [
        f"{path.name} imports {module}"
        for path in sorted(Path(__file__).parent.rglob("*.py"))
        for module in imports_of(path, "tests")
        if module.startswith("tests.test_")
    ]
    assert not imports
