"""The report in a real browser: nothing fails, all is drawn, and text of models is only ever text."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lit_align.html_report.page import write_report
from tests.helpers.chromium import CHROMIUM, Page, browser_page
from tests.helpers.run_folders import NASTY, answer, decision, sample, write_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the path")
READY = "document.documentElement?.dataset.drawn !== undefined"
SWAPPED = [decision(0, 0.2), decision(10, 0.6, stopped="budget"), decision(20, 0.7)]


def look(profile: Path, do: Callable[[Page], Awaitable[Any]]) -> Any:
    """What `do` finds on a page of a browser."""

    async def run() -> Any:
        async with browser_page(profile) as page:
            return await do(page)

    return asyncio.run(run())


def test_every_chart_is_drawn_wide_and_narrow_and_dark_without_a_word_from_the_console(tmp_path: Path) -> None:
    rows = [sample(step, f"prompt {n}") for step in (0, 20) for n in range(3)]
    folder = write_run(tmp_path / "run", SWAPPED, 100, rows, [answer("tea?"), answer("sea?", change=-0.5)])
    write_report([folder], tmp_path / "page.html")

    async def visit(page: Page) -> None:
        for width, dark in ((1440, False), (390, True)):
            await page.show(width, dark=dark)
            await page.open(tmp_path / "page.html", READY)
            drawn = "[...document.querySelectorAll('details')].forEach(d => d.open = true)"
            await page.evaluate(drawn)
            await page.wait_for("[...document.querySelectorAll('.plot')].every(p => p.querySelector('.trace'))")
            assert await page.evaluate("document.querySelectorAll('.plot').length") >= 15
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
            paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (paper == "rgb(255, 255, 255)") is not dark
            lines = "document.querySelector('[data-figure=\"0/kl\"] .js-line').style.stroke"
            assert (await page.evaluate(lines) == "rgb(11, 107, 184)") is not dark, "colours follow the theme"
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []

    look(tmp_path / "profile", visit)


def test_text_of_models_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    decisions = [decision(0, 0.3, judge_warning=NASTY)]
    folder = write_run(tmp_path / "run", decisions, 20, [sample(0, NASTY, NASTY)], [answer(NASTY, NASTY, NASTY)])
    write_report([folder], tmp_path / "page.html")

    async def visit(page: Page) -> None:
        await page.open(tmp_path / "page.html", READY)
        assert await page.evaluate("document.title") == "run - lit-align"
        assert await page.evaluate("document.scripts.length") == 5
        prompt = await page.evaluate("document.querySelector('[data-kind=answers] .prompt').textContent")
        assert prompt == NASTY.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
        assert await page.evaluate("getComputedStyle(document.querySelector('.prompt')).unicodeBidi") == "isolate"
        assert page.problems == []

    look(tmp_path / "profile", visit)


def test_answers_are_searched_sorted_and_chosen_by_decision(tmp_path: Path) -> None:
    rows = [sample(step, f"prompt {n} of {step}") for step in (0, 20) for n in range(3)]
    changes = {"tea?": 0.5, "sea?": -0.25, "bees?": 0.75}
    folder = write_run(tmp_path / "run", SWAPPED, 40, rows, [answer(p, change=c) for p, c in changes.items()])
    write_report([folder], tmp_path / "page.html")
    prompts = "[...document.querySelectorAll('[data-kind=KIND] .prompt')].map(p => p.textContent)"

    async def choose(page: Page, selector: str, value: str, event: str = "change") -> None:
        await page.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r}); e.value = {value!r};"
            f" e.dispatchEvent(new Event({event!r})); }})()"
        )

    async def visit(page: Page) -> None:
        await page.open(tmp_path / "page.html", READY)
        of_answers = prompts.replace("KIND", "answers")
        assert await page.evaluate(of_answers) == list(changes)
        await choose(page, "[data-kind=answers] .order", "down")
        assert await page.evaluate(of_answers) == ["sea?", "tea?", "bees?"]
        await choose(page, "[data-kind=answers] .order", "up")
        assert await page.evaluate(of_answers) == ["bees?", "tea?", "sea?"]
        await choose(page, "[data-kind=answers] input", "TEA after", "input")
        assert await page.evaluate(of_answers) == ["tea?"]
        of_samples = prompts.replace("KIND", "sampled")
        assert await page.evaluate(of_samples) == [f"prompt {n} of 20" for n in range(3)], "the newest first"
        await choose(page, "[data-kind=sampled] .steps select", "0")
        assert await page.evaluate(of_samples) == [f"prompt {n} of 0" for n in range(3)]

    look(tmp_path / "profile", visit)


def test_a_zoom_goes_to_all_charts_and_a_series_can_be_hidden(tmp_path: Path) -> None:
    write_report([write_run(tmp_path / "run", SWAPPED, 100)], tmp_path / "page.html")

    async def visit(page: Page) -> None:
        await page.open(tmp_path / "page.html", READY)
        plot = "document.querySelector('[data-figure=\"0/{}\"]')"
        await page.evaluate(f"Plotly.relayout({plot.format('loss')}, {{'xaxis.range': [10, 20]}}).then(() => 1)")
        await page.wait_for(f"{plot.format('rewards')}.layout.xaxis.range.join() === '10,20'")
        await page.evaluate(f"{plot.format('rewards')}.querySelector('.legendtoggle').dispatchEvent(new Event('x'))")
        await page.evaluate(f"Plotly.restyle({plot.format('rewards')}, 'visible', 'legendonly', [0]).then(() => 1)")
        assert page.problems == []

    look(tmp_path / "profile", visit)


def test_on_paper_charts_are_whole_and_light(tmp_path: Path) -> None:
    write_report([write_run(tmp_path / "run", SWAPPED, 100)], tmp_path / "page.html")

    async def visit(page: Page) -> tuple[list[float], str]:
        await page.show(1440, dark=True)
        await page.open(tmp_path / "page.html", READY)
        await page.evaluate(
            "addEventListener('beforeprint', () => { globalThis.printed = [[...document.querySelectorAll('.plot')]"
            ".filter(p => p.closest('details:not([open])') === null).map(p => p.layout.width),"
            " document.documentElement.dataset.theme]; })"
        )
        await page.print_to(tmp_path / "page.pdf")
        widths, theme = await page.evaluate("globalThis.printed")
        assert await page.evaluate("document.documentElement.dataset.theme") is None, "as it was before"
        return widths, theme

    widths, theme = look(tmp_path / "profile", visit)
    assert set(widths) == {690, 335} and theme == "light"
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    decisions = [decision(400 * n, 0.2 + n / 100) for n in range(50)]
    text = "word " * 300
    rows = [sample(d.step, f"prompt {n}", text, answers=4) for d in decisions for n in range(8)]
    folder = write_run(tmp_path / "run", decisions, 20_000, rows, [answer(f"{n}", text, text) for n in range(500)])
    write_report([folder], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 8e6

    async def visit(page: Page) -> int:
        await page.open(tmp_path / "page.html", READY)
        traces = "[...document.querySelectorAll('.plot')].flatMap(p => p.calcdata ?? [])"
        assert page.problems == []
        return await page.evaluate(f"Math.max(...{traces}.map(t => t.length))")

    assert look(tmp_path / "profile", visit) <= 800
