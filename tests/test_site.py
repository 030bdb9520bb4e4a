"""The documentation site: the pages made from the code, links out of the docs folder, and the check of a built site."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[1]
HOOKS = ROOT / "docs" / "hooks"


@pytest.fixture(autouse=True)
def _hooks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(HOOKS))
    yield
    for name in [path.stem for path in HOOKS.glob("*.py")]:
        sys.modules.pop(name, None)


def test_the_config_reference_has_every_public_loss_and_its_arguments() -> None:
    import setting_pages

    from tests.helpers.loss_cases import exported_losses

    pages = dict(setting_pages.pages())
    losses = pages["reference/losses.md"]
    assert [loss.__name__ for loss in exported_losses() if f"## {loss.__name__}\n" not in losses] == []
    assert "| `delta`<br><small>float</small> | `1.0` |" in losses
    assert "optimizer steps between measurements" in pages["reference/settings.md"]
    assert "`callbacks.MixtureBoundary`" not in pages["reference/callbacks.md"]
    assert "## MixtureBoundary" in pages["reference/schedules.md"]


def test_the_command_reference_has_every_command() -> None:
    import command_pages

    from lit_align.cli.help import COMMANDS

    text = dict(command_pages.pages())["reference/commands.md"]
    assert [name for name in COMMANDS if f"\n## {name}\n" not in text] == []
    assert "--trainer.max_steps MAX_STEPS" in text  # of fit
    assert text.count("--trainer.max_steps MAX_STEPS") == 1  # and of no other command once more


def test_the_api_lists_each_name_once() -> None:
    import api_pages

    text = "\n".join(dict(api_pages.pages()).values())
    names = [line.removeprefix("::: ") for line in text.splitlines() if line.startswith("::: ")]
    assert "lit_align.losses.DPO" in names and "lit_align.DPO" not in names
    assert len(names) == len(set(names))


def test_a_docstring_becomes_markdown() -> None:
    import public

    text = public.as_markdown("See :class:`Switch` and docs/measurement.md.", "../")
    assert text == "See `Switch` and [measurement](../measurement.md)."


@pytest.mark.parametrize(
    ("page", "link", "target"),
    [
        ("evidence.md", "../experiments/README.md", "source/experiments/README.md"),
        ("guides/extend.md", "../losses.md", "losses.md"),
        ("evidence.md", "../configs/evidence_8_gpus.yaml", "source/configs/evidence_8_gpus.yaml.md"),
    ],
)
def test_a_link_leads_to_the_page_of_its_file(page: str, link: str, target: str) -> None:
    import outside

    assert outside._page_of(outside._resolve(page, link)) == target


def test_a_notebook_is_a_page_of_text_code_and_what_it_printed(tmp_path: Path) -> None:
    import outside

    cells = [
        {"cell_type": "markdown", "source": ["# A title\n", "\n", "Words."]},
        {"cell_type": "code", "source": ["x = 1\n", "print(x)"], "outputs": [{"text": ["1\n"]}]},
        {"cell_type": "code", "source": ["y = 2"], "outputs": []},
    ]
    notebook = tmp_path / "a.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    page = outside._as_page(notebook, "examples/a.ipynb")
    code = "```python\nx = 1\nprint(x)\n```\n\n```text\n1\n```\n\n```python\ny = 2\n```\n"
    assert page == f"# A title\n\nWords.\n\n{code}"


def test_a_built_site_with_a_dead_link_a_dead_anchor_or_a_foreign_script_is_refused(tmp_path: Path) -> None:
    import check_site

    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#there">b</a><a href="https://example.org">out</a><a href="#top">up</a>'
    )
    (tmp_path / "b.html").write_text('<p id="there">B</p>')
    assert list(check_site.faults(tmp_path)) == []
    (tmp_path / "b.html").write_text(
        '<a href="a.html#gone">a</a><a href="c.html">c</a><script src="https://example.org/x.js"></script>'
    )
    assert list(check_site.faults(tmp_path)) == [
        "a.html links to b.html#there, which is not there",
        "b.html loads https://example.org/x.js",
        "b.html links to a.html#gone, which is not there",
        "b.html links to c.html, which is not there",
    ]


def test_every_page_of_the_docs_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in listed] == []
