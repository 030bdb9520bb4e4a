"""The report of a run: what is read of a folder, what is said of it, and the page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_align import run_folder
from lit_align.cli import main
from lit_align.html_report import figures, lines, samples, tables
from lit_align.html_report.headline import headline
from lit_align.html_report.page import render, write_report
from lit_align.html_report.privacy import without_private
from lit_align.html_report.reading import Series
from lit_align.html_report.record import RunRecord, read_run
from lit_align.html_report.thin import POINTS, moving_mean, thin
from tests.helpers.run_folders import NASTY, answer, decision, sample, write_metrics, write_run

DECISIONS = [decision(0, 0.2), decision(10, 0.4, stopped="budget"), decision(20, 0.7), decision(30, 0.3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [sample(step, f"prompt {n}") for step in (0, 20) for n in range(3)]
    return write_run(tmp_path / "run", DECISIONS, 40, rows, [answer("tea?"), answer("sea?", change=-0.5)])


class Scripts(HTMLParser):
    """The scripts and the visible words of a page, as a browser's parser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words = ""
        self._open: dict[str, str | None] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self._open = dict(attrs)
            self.scripts.append((self._open, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is None:
            self.words += data
        else:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def data(self, name: str) -> Any:
        """The JSON of a script element."""
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == name))


def test_a_whole_folder_becomes_a_record(folder: Path) -> None:
    run = read_run(folder)
    assert (run.name, run.state, run.steps, run.max_steps) == ("run", "finished", 40, 40)
    assert list(run.decisions) == DECISIONS and not run.gaps
    assert [swap.step for swap in run.swaps] == [20, 30]
    assert run.metrics["loss"].values.max() == 99.0 and len(run.metrics["kl"].steps) == 20, "NaN is no point"
    assert len(run.samples) == 6 and len(run.answers) == 2


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no run")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"expected a run folder, such as runs/quickstart"):
            read_run(path)


def test_what_a_crash_tore_is_left_out_and_said(folder: Path) -> None:
    for name in (run_folder.DECISIONS, run_folder.SAMPLES):
        with (folder / name).open("a") as file:
            file.write('{"step": 40, "stage": "inj')
    with (folder / "csv/version_0/metrics.csv").open("a") as file:
        file.write(",,1")
    (folder / run_folder.SUMMARY).write_text('{"state": "runn')
    run = read_run(folder)
    assert run.state == "stopped" and len(run.decisions) == 4 and len(run.samples) == 6
    assert len(run.gaps) == 3 and "summary.json cannot be read" in run.gaps[0]
    page = render([run])
    assert "1 line of boundary.jsonl cannot be read" in page
    assert "Stopped at step 40 of 40. The run crossed into preference fine\u2011tuning" in page


@pytest.mark.parametrize("missing", ["summary", "boundary", "config", "csv", "all but config", "all but csv"])
def test_a_page_is_made_of_what_is_there(folder: Path, missing: str) -> None:
    parts = {"summary": "summary.json", "boundary": "boundary.jsonl", "config": "config.yaml", "csv": "csv"}
    kept = missing.removeprefix("all but ")
    for name, part in {**parts, "samples": "samples.jsonl", "answers": "answers.jsonl"}.items():
        if (name == missing) if kept == missing else (name != kept):
            (folder / part).rename(folder / f"hidden-{part}")
    page = Scripts(render([read_run(folder)]))
    drawn = page.data("figures")
    assert ("0/loss" in drawn) == (missing not in ("csv", "all but config"))
    assert ("0/votes" in drawn) == (missing not in ("boundary", "all but config", "all but csv"))


def test_a_resumed_run_takes_over_from_its_first_step(folder: Path) -> None:
    write_metrics(folder, range(25, 50), version=1)
    write_metrics(folder, range(35, 38), version=10)
    steps = read_run(folder).metrics["loss"].steps
    assert steps.tolist() == list(range(38)), "what came after its first step is done again"
    assert read_run(folder).metrics["loss"].values[20] == 99.0, "what was not done again stays"


def test_a_run_under_way_holds_its_folder(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    run_folder.write_json(folder / "summary.json", {**summary, "state": "running", "steps": 30, "max_steps": 50})
    with run_folder.locked(folder):
        run = read_run(folder)
        page = render([run])
    assert run.state == "running" and headline(run).sentence.startswith("Under way, step 40 of 50: the run crossed")
    assert 'data-running="yes"' in page and read_run(folder).state == "stopped"


def test_the_headline_says_what_happened_how_sure_it_is_and_what_comes_next(folder: Path) -> None:
    run = read_run(folder)
    top = headline(run)
    assert top.sentence.replace("\u00a0", " ") == (
        "The run crossed into preference fine-tuning. It went back to preference injection, and its answers beat the "
        "start's on 80 % of 64 held-out prompts (70 to 90 %)."
    )
    shown = {number.label: (number.value, number.source) for number in top.numbers}
    assert shown["Boundary score"] == ("0.30", "off") and shown["Win rate"] == ("80\u00a0%", "")
    assert top.next_steps[0].startswith("For the next run, as measured at step 30: 0.30: the static answers win")


def test_doubt_is_said_at_the_top(tmp_path: Path) -> None:
    undecided = {"score": 0.55, "low": 0.4, "high": 0.7, "prompts": 20}
    warned = [decision(0, 0.2), decision(10, 0.6, judge_warning="it goes by length.")]
    run = read_run(write_run(tmp_path / "run", warned, 20, win_rate=undecided, steps_left_out=3))
    top = headline(run)
    assert "whether its answers beat the start's is undecided" in top.sentence
    steps = " ".join(top.next_steps)
    assert "Look at the judge before you trust the score: it goes by length." in steps
    assert "above 20" in steps and "3 steps were left out" in steps


def test_a_reward_model_has_a_headline_of_its_own(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [], 20, config={"model": {"class_path": "lit_align.reward.RewardModule"}})
    quality = {"accuracy": {"value": 0.81, "low": 0.7, "high": 0.9, "count": 60}}
    run_folder.write_json(folder / run_folder.REWARD_QUALITY, quality)
    run_folder.write_json(folder / run_folder.SUMMARY, {"state": "finished", "steps": 20, "crossing": None})
    top = headline(read_run(folder))
    told = top.sentence.replace("\u00a0", " ")
    assert told == "The reward model finds the better answer in 81 % of 60 held-out pairs (70 to 90 %)."
    assert "RewardModelJudge" in top.next_steps[-1]


def test_what_people_send_on_holds_no_home_and_no_key() -> None:
    settings = {
        "data": {"train": "/home/ann/pairs.jsonl", "judge": {"api_key": "sk-1", "url": "https://u:pw@host/v1"}},
        "tokens": {"max_new_tokens": 24, "hf_token": "hf_1"},
        "lists": ["/Users/ann/x", "C:\\Users\\ann\\x", "/root/x"],
    }
    assert without_private(settings) == {
        "data": {"train": "~/pairs.jsonl", "judge": {"api_key": "(hidden)", "url": "https://host/v1"}},
        "tokens": {"max_new_tokens": 24, "hf_token": "(hidden)"},
        "lists": ["~/x", "~\\x", "~/x"],
    }


def test_text_of_models_stays_text(tmp_path: Path) -> None:
    lone = "\ud83d"  # half of a pair, which no file in UTF-8 can hold
    rows = [sample(0, NASTY, NASTY)]
    decisions = [decision(0, 0.3, judge_warning=NASTY)]
    config = {"model": {"class_path": NASTY}}
    folder = write_run(
        tmp_path / "run", decisions, 20, rows, [answer(NASTY + lone, NASTY, NASTY)], config, judges=[NASTY]
    )
    write_report([folder], tmp_path / "page.html")
    page = Scripts((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.scripts) == 5 and not any("src" in attributes for attributes, _ in page.scripts)
    assert not any("<" in text for attributes, text in page.scripts if attributes.get("type") == "application/json")
    shown = page.data("rows")[0]["answers"][0]["prompt"]
    assert shown.startswith("<script>document.title") and "\\x1b[31mred" in shown and "\\u202etxt" in shown
    assert "مرحبا" in shown and "😀" in shown and "\\ud83d" in shown
    assert page.words.count("document.title = 'taken'") == 4, "what the judge said, and the setting"


def test_a_long_line_keeps_its_peaks_and_says_that_it_is_thinned(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", DECISIONS, 3000)
    run = read_run(folder)
    short = thin(run.metrics["loss"])
    assert len(short.steps) <= POINTS < 3000
    assert short.values.max() == 99.0 and short.values.min() == run.metrics["loss"].values.min()
    assert (short.steps[0], short.steps[-1]) == (0, 2999) and (np.diff(short.steps) > 0).all()
    assert f"at most {POINTS} points" in render([run])


def test_a_moving_mean_looks_back_only() -> None:
    series = Series(np.arange(4), np.array([1.0, 3.0, 5.0, 7.0]))
    assert moving_mean(series, 2).values.tolist() == [1.0, 2.0, 4.0, 6.0]


def test_figures_show_each_measurement_with_its_interval_and_end(folder: Path) -> None:
    figure = figures.stage_figure(read_run(folder))
    assert figure is not None
    marks = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert set(marks) == {"stopped by decision", "stopped by budget (max_prompts)"}
    budget = marks["stopped by budget (max_prompts)"]
    assert (budget.x[0], budget.y[0]) == (10, 0.4)
    assert (budget.error_y.array[0], budget.error_y.arrayminus[0]) == pytest.approx((0.12, 0.12))
    tints = [(shape.x0, shape.x1) for shape in figure.layout.shapes if shape.type == "rect"]
    assert tints == [(0, 20), (20, 30), (30, 40)]
    assert any(shape.type == "line" and shape.y0 == 0.5 for shape in figure.layout.shapes)


def test_each_metric_has_a_chart(folder: Path) -> None:
    run = read_run(folder)
    charts = {chart.key: lines.training_figure(run, chart) for chart in lines.CHARTS}
    assert all(charts.values())
    loss = charts["loss"]
    assert loss is not None and [trace.name for trace in loss.data] == ["training", "held out"]
    assert [chart.title for chart in lines.other_charts(run)] == ["loss/NLL"]
    assert len(loss.layout.shapes) == 2, "both swaps are marked"


def test_costs_are_by_purpose_and_by_kind(folder: Path) -> None:
    run = read_run(folder)
    measuring = next(cost for cost in tables.costs(run) if cost.name == "measuring the boundary")
    assert (measuring.time, measuring.share) == ("40 s", 0.4)
    assert [(name, share) for name, _, share in measuring.parts] == [
        ("sampling", 0.3),
        ("judging", 0.08),
        ("other", 0.02),
    ]
    kinds = {cost.name: cost.share for cost in tables.by_kind(run)}
    assert kinds == {"training": 0.6, "sampling": 0.3, "judging": 0.08, "the rest of measuring": 0.02}


def test_decisions_are_a_table_that_says_what_ended_them(folder: Path) -> None:
    rows = tables.decision_rows(read_run(folder))
    assert [row["end"] for row in rows] == ["decision", "budget", "decision", "decision"]
    assert (rows[2]["stage"], rows[2]["source"], rows[2]["interval"]) == ("fine-tuning", "on", "0.58 to 0.82")


def test_data_are_counted_where_they_were_dropped(folder: Path) -> None:
    run = read_run(folder)
    rows = {row.label: (row.counts, row.kept) for row in tables.data_rows(run)}
    assert rows["pairs"] == ((80, 12, 30), True)
    assert rows["bad row: empty prompt"] == ((2, None, None), False)
    assert tables.unused_columns(run) == ["column `source`"]


def test_samples_are_kept_within_a_budget_and_the_page_says_so(tmp_path: Path) -> None:
    rows = [sample(step, f"prompt {n} of {step}", "x" * 500) for step in (0, 10) for n in range(20)]
    run = RunRecord("run", "finished", samples=rows)
    shown = samples.sampled(run, budget=20_000)
    steps = [row["step"] for row in shown.rows]
    assert 4 < len(steps) < 20 and abs(steps.count(0) - steps.count(10)) <= 1, "each decision has its share"
    assert shown.note == f"{len(steps)} of 40 prompts are shown; the run folder has all."
    long = RunRecord("run", "finished", answers=[answer("p", after="y" * 5000)])
    cut = samples.before_and_after(long)
    assert len(cut.rows[0]["on"][0]["text"]) < 1600 and "answers above" in cut.note.lower()


def test_runs_are_compared_with_their_differences(folder: Path, tmp_path: Path) -> None:
    config = {
        "trainer": {"max_steps": 30, "default_root_dir": "x"},
        "model": {"class_path": "lit_align.AlignmentModule"},
    }
    other = write_run(tmp_path / "again" / "run", DECISIONS[:2], 30, config=config)
    runs = [read_run(folder), read_run(other)]
    assert tables.differences(runs) == [("trainer.max_steps", ["40", "30"])]
    page = Scripts(render(runs))
    drawn = page.data("figures")
    assert {"all/compare-score", "0/stage", "1/stage"} <= set(drawn)
    assert [trace["name"] for trace in drawn["all/compare-score"]["data"]] == ["run", "run (2)"]
    groups = [trace["legendgroup"] for trace in drawn["all/compare-0"]["data"]]
    assert groups == ["run", "run (2)"], "each run is hidden by itself"
    assert "trainer.max_steps" in page.words


def test_the_command_writes_the_page_and_says_where(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run"]) == 0
    assert "run/report.html" in capsys.readouterr().out and (folder / "report.html").stat().st_size < 8e6
    assert main(["report", "run", "run", "-o", "both.html"]) == 0 and Path("both.html").is_file()
    Path("runs").mkdir()
    Path("run").rename("runs/named")
    assert main(["report", "named", "-o", "named.html"]) == 0 and Path("named.html").is_file()
    Path("runs/named").rename("run")
    assert main(["report", "nowhere"]) == 1 and "expected a run folder" in capsys.readouterr().err
    assert main(["report", "run", "-o", "run.txt"]) == 1 and "expected --output to name" in capsys.readouterr().err
