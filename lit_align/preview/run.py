"""Previews the rows of a configured run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from textwrap import fill
from typing import Any

from lit_align.checks import require_at_least_1
from lit_align.data import AlignmentDataModule
from lit_align.data.encoder import Encoder
from lit_align.preview.rendering import named_tokens
from lit_align.preview.rows import RowReader
from lit_align.preview.show import RowText
from lit_align.preview.terminal import Terminal


def preview_run(
    module: Any,
    data: AlignmentDataModule,
    rows: int = 3,
    row: int | None = None,
    held_out: bool = False,
    ask_judge: bool | None = None,
    terminal: Terminal | None = None,
) -> Iterator[str]:
    """Yields lines that show rows as the model of a run gets them. Only its tokenizer is loaded, not its weights.

    Args:
        module: the run's module, before `configure_model`.
        data: the run's data module, connected to its Trainer, before `setup`.
        rows: number of rows, from the first on.
        row: the number of a single row, from 1; None shows `rows` rows.
        held_out: shows the held-out data instead of the training data.
        ask_judge: see :class:`~lit_align.preview.rows.RowReader`.
        terminal: the terminal that the lines are for; None means standard output.

    Raises:
        ValueError: a number is below 1, or there is no such row.
    """
    require_at_least_1(rows=rows, row=row)
    encoder = data.make_encoder(module.tokenizer)
    samples = hasattr(module, "policy")
    reader = RowReader(data, encoder, data.run.needs_target, ask_judge)
    use = "held out" if held_out else "trained on"
    text = RowText(terminal or Terminal.of(sys.stdout), encoder, *_names(data), samples, use)
    shown = list(reader.rows(held_out, row or 1, rows if row is None else 1))
    if not shown:
        raise ValueError(f"there is no {'held-out ' if held_out else ''}row {row or 1}")
    for line in _header(module.spec.model, encoder, samples):
        yield fill(line, text.terminal.width)
    yield from text.legend()
    for preview in shown:
        yield ""
        yield from text.lines(preview)


def _names(data: AlignmentDataModule) -> tuple[str, str | None]:
    return type(data.pair_selector).__name__, None if data.judge is None else data.judge.identity


def _header(model: str, encoder: Encoder, samples: bool) -> Iterator[str]:
    tokenizer = encoder.tokenizer
    template = "with a chat template" if tokenizer.chat_template is not None else "without a chat template"
    yield f"Tokenizer of {model}: {len(tokenizer):,} tokens, {template}."
    prompts = encoder.max_prompt_tokens or "any number of"
    answers = encoder.max_completion_tokens or "any number of"
    cut = "drop their pair" if encoder.too_long == "drop" else "are cut from the left"
    yield f"Limits: {prompts} tokens of a prompt (longer ones {cut}), {answers} tokens of an answer."
    if samples:
        stops = ", ".join(named_tokens(tokenizer, encoder.stop_ids))
        yield f"Sampled answers are appended to each prompt as it is shown, and stop at {stops}."
