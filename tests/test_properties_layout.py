"""What holds of the row of any prompts and completions: each token once, where it belongs, and seen by its own only."""

from __future__ import annotations

from itertools import chain

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.shared_rows import SharedRows, lay_out
from tests.helpers.properties import examples

Texts = list[list[int]]


@st.composite
def batches(draw: st.DrawFn) -> list[Texts]:
    """[B][1 + K] a prompt and its completions, as tokens that are all different; a completion may be empty."""
    count = draw(st.integers(1, 3))
    sizes = st.lists(st.integers(0, 4), min_size=count, max_size=count)
    drawn = draw(st.lists(st.tuples(st.integers(1, 4), sizes), min_size=1, max_size=4))
    token = iter(range(1, 1000))
    return [[[next(token) for _ in range(size)] for size in (prompt, *of_prompt)] for prompt, of_prompt in drawn]


def laid_out(batch: list[Texts], extra_width: int) -> tuple[SharedRows, torch.Tensor, list[list[int]]]:
    """The row, its token ids, and the padded tensors of prompts and of each completion, flattened."""
    columns = [[texts[j] for texts in batch] for j in range(len(batch[0]))]
    widths = [max(map(len, column)) + extra_width for column in columns]
    padded = [
        [*chain.from_iterable([*text, *[0] * (width - len(text))] for text in column)]
        for column, width in zip(columns, widths, strict=True)
    ]
    sizes = [[len(text) for text in column] for column in columns]
    rows = lay_out(sizes[0], sizes[1:], widths)
    return rows, torch.tensor([*chain.from_iterable(padded)])[rows.source], padded


@examples(150)
@given(batch=batches(), extra_width=st.integers(0, 3))
def test_each_token_is_in_the_row_once_and_predicted_from_the_one_before_it(
    batch: list[Texts], extra_width: int
) -> None:
    rows, ids, padded = laid_out(batch, extra_width)
    assert ids.tolist() == [token for texts in batch for text in texts for token in text]
    expected = [
        n + (len(texts[0]) if j else 0) for texts in batch for j, text in enumerate(texts) for n in range(len(text))
    ]
    assert rows.positions.tolist() == [expected]
    of_completions = [[token for texts in batch for token in texts[j]] for j in range(1, len(batch[0]))]
    assert ids[rows.columns].tolist() == [*chain.from_iterable(of_completions)]
    assert list(rows.counts) == list(map(len, of_completions))
    before = {
        token: ([*texts[0], *text])[len(texts[0]) + n - 1]
        for texts in batch
        for text in texts[1:]
        for n, token in enumerate(text)
    }
    assert ids[rows.predicting].tolist() == [before[token] for token in ids[rows.columns].tolist()]
    slots = rows.slots.split(list(rows.counts))
    for flat, places, tokens in zip(padded[1:], slots, of_completions, strict=True):
        assert [flat[place] for place in places.tolist()] == tokens


@examples(150)
@given(batch=batches(), extra_width=st.integers(0, 3))
def test_a_token_sees_its_prompt_and_its_own_completion_so_far(batch: list[Texts], extra_width: int) -> None:
    rows, ids, _ = laid_out(batch, extra_width)
    layout = rows.layout
    seen: dict[int, list[int]] = {}
    starts = layout.query_ends.tolist()
    for index, span in enumerate(layout.spans):
        keys = layout.keys[layout.key_ends[index] : layout.key_ends[index + 1]]
        assert rows.positions[0, keys].tolist() == list(range(span.prompt_size + span.size))
        assert span.prompt is None or layout.spans[span.prompt].size == span.prompt_size
        for n in range(span.size):
            seen[int(ids[starts[index] + n])] = ids[keys[: span.prompt_size + n + 1]].tolist()
    prompts = {token: texts[0][: n + 1] for texts in batch for n, token in enumerate(texts[0])}
    answers = {token: texts[0] + text[: n + 1] for texts in batch for text in texts[1:] for n, token in enumerate(text)}
    assert seen == prompts | answers
    assert starts[-1] == len(ids) and layout.most_queries == max(span.size for span in layout.spans)
    for column, places in enumerate(layout.uses.tolist()):
        real = [place for place in places if place < len(layout.keys)]
        assert real == (layout.keys == column).nonzero().flatten().tolist()
