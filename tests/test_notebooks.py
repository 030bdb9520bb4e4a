"""The notebooks of examples/ run from top to end, with a tiny model in place of the real one."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from lit_align.cli.init import copy_user_files

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "quickstart": {"MAX_STEPS": 1, "MEASURE_EVERY": 1, "MAX_PROMPTS": 10, "MAX_NEW_TOKENS": 4},
    "own_judge_and_schedule": {"MAX_STEPS": 1, "MEASURE_EVERY": 1, "MAX_NEW_TOKENS": 4},
}


def cells_of(name: str) -> list[dict[str, Any]]:
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_each_notebook_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_user_files(tmp_path, force=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LIT_ALIGN_PROGRESS", "off")
    scope: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        for cell in cells_of(name):
            exec(compile("".join(cell["source"]), f"{name}.ipynb, {cell['id']}", "exec"), scope)
            if "parameters" in cell["metadata"].get("tags", ()):
                parameters = {"MODEL": str(tiny_model), **SMALL[name]}
                assert parameters.keys() <= scope.keys()
                scope.update(parameters)
    assert len(scope["boundary" if name == "quickstart" else "schedule"].history) == 2
    assert any((tmp_path / "runs").glob("*/model/adapter_config.json"))


@pytest.mark.parametrize("name", SMALL)
def test_the_outputs_are_those_of_one_clean_run(name: str) -> None:
    cells = cells_of(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and {output["output_type"] for output in outputs} == {"stream"}
    assert {output["name"] for output in outputs} == {"stdout"}
    text = "".join("".join(output["text"]) for output in outputs)
    assert len(text) < 6000 and "/home/" not in text and "/tmp/" not in text and "Traceback" not in text
