"""docs/characteristics.md and the two configs of the ablation say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import jsonargparse
import pytest
import yaml

from lit_align.data import Filtered, PairSelector, QualityDiversity
from lit_align.metrics import Characteristics, Embedder

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "characteristics.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    match = re.search(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert match
    return match[1]


def test_the_code_prints_what_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "candidates.jsonl").write_text(block('json title="candidates.jsonl"'))
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "characteristics.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "'distinct_1': 0.75" in printed and "'score_mean': 0.5" in printed and "length_tokens" not in printed


def test_every_key_is_explained() -> None:
    keys = set(Characteristics(_Nothing())) - {"distinct_2", "distinct_3"}
    rows = "\n".join(line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| "))
    assert {key for key in keys if f"`{key}`" not in rows} == set()


class _Nothing(Embedder):
    embed = None  # type: ignore[assignment]


def test_the_selector_of_the_example_is_one() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--selector", type=PairSelector)
    shown = yaml.safe_load(block("yaml"))["data"]["init_args"]
    selector = parser.instantiate(parser.parse_object(shown)).selector
    assert isinstance(selector, Filtered) and isinstance(selector.selector, QualityDiversity)
    assert (selector.selector.weight, selector.min_margin, selector.max_similarity) == (0.7, 0.1, 0.8)


def test_the_arms_of_the_ablation_differ_in_the_selector_alone() -> None:
    quality, diversity = (
        yaml.safe_load((ROOT / "configs" / f"ablation_{arm}.yaml").read_text()) for arm in ("quality", "diversity")
    )
    chosen = [arm["data"]["init_args"].pop("selector")["class_path"] for arm in (quality, diversity)]
    assert chosen == ["lit_align.data.BestWorst", "lit_align.data.MostDifferent"]
    assert quality["trainer"].pop("default_root_dir") != diversity["trainer"].pop("default_root_dir")
    assert quality == diversity
