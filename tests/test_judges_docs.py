"""docs/judges.md: every judge is in its table, every YAML builds, its Python runs."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

import lit_align.judges as judges
from lit_align.judges import CachedJudge, CombinedJudge, Judge, PairwiseJudge, PointwiseJudge
from lit_align.records import Candidate, CandidateSet, Message

TEXT = (Path(__file__).parent.parent / "docs" / "judges.md").read_text()
BASES = {Judge, PointwiseJudge, PairwiseJudge}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def exported() -> set[str]:
    kinds = {name: getattr(judges, name) for name in judges.__all__}
    return {name for name, kind in kinds.items() if issubclass(kind, Judge) and kind not in BASES}


def test_the_table_and_the_headings_have_every_judge_and_no_other() -> None:
    assert set(re.findall(r"^\| `(\w+)`", TEXT, re.MULTILINE)) == exported()
    assert exported() <= set(re.findall(r"^## (\w+)$", TEXT, re.MULTILINE))


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_yaml_builds_a_judge(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rules: Any = types.ModuleType("my_rules")
    rules.minus_characters = lambda prompt, candidates, row: [-len(c) for c in candidates]
    monkeypatch.setitem(sys.modules, "my_rules", rules)
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Judge, "judge")
    config = yaml.safe_load(text)
    judge = parser.instantiate(parser.parse_object({"judge": config})).judge
    assert isinstance(judge, getattr(judges, config["class_path"].rpartition(".")[2]))
    assert not isinstance(judge, CachedJudge | CombinedJudge) or len(judge.parts) == text.count("judge:")


def test_the_judge_of_ones_own_works(tmp_path: Path) -> None:
    (text,) = blocks("python")
    scope: dict[str, Any] = {}
    exec(compile(text, "docs/judges.md", "exec"), scope)
    judge = CachedJudge(scope["Brief"](), str(tmp_path / "v.sqlite"))
    candidate_set = CandidateSet((Message("user", "p"),), (Candidate("one two"), Candidate("one")))
    assert judge.score([candidate_set]) == [[-2.0, -1.0]]
