"""What holds of the tokens of any chat, over the templates of forty real models and three kinds of tokenizers."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data import Encoder
from lit_align.records import Candidate, FinishReason, Message, PreferencePair
from lit_align.sampling.base import candidate_of_ids
from tests.helpers.chat_templates import CASES, encoder_of
from tests.helpers.properties import TEXTS, examples

pytestmark = pytest.mark.filterwarnings("ignore:the chat template does not write")
NAMES = [name for name in CASES if name != "joined by end tokens"]
WORDS = TEXTS | st.sampled_from(["Blue.", " Blue. ", "\n\nBlue", "a\tb", "é", "e\u0301", "🫖", "<think>", "日本"])


@cache
def cached(name: str, kind: str) -> Encoder:
    return encoder_of(name, kind)


ENCODERS = st.sampled_from(list(product(NAMES, ["bytes", "first", "always"]))).map(lambda both: (*both, cached(*both)))


def prompts(turns: list[str]) -> tuple[Message, ...]:
    """A chat that begins and ends with the user."""
    roles = ("user", "assistant")
    odd = turns[: len(turns) - 1 + len(turns) % 2]
    return tuple(Message(roles[n % 2], text) for n, text in enumerate(odd))


PROMPTS = st.lists(WORDS, min_size=1, max_size=3).map(prompts)


@examples(300)
@given(named=ENCODERS, prompt=PROMPTS, text=WORDS)
def test_an_answer_ends_with_its_one_stop_and_is_the_templates_own_text(named: Any, prompt: Any, text: str) -> None:
    name, kind, encoder = named
    ids = encoder.encode_completion(Candidate(text), prompt)
    cut = encoder.encode_completion(Candidate(text, finish_reason=FinishReason.LENGTH), prompt)
    assert ids[-1] in encoder.stop_ids and not set(ids[:-1]) & set(encoder.stop_ids)
    assert not set(cut) & set(encoder.stop_ids)
    if CASES[name].exact and kind == "bytes":
        written = encoder.tokenizer.decode(encoder.encode_prompt(prompt)) + encoder.tokenizer.decode(ids)
        whole = encoder.template.write_whole(prompt, Candidate(text))
        assert whole.startswith(written) or written.startswith(whole.rstrip())
    sampled = candidate_of_ids([*ids, 7, 8], encoder.stop_ids, encoder.tokenizer)
    assert encoder.encode_completion(sampled, prompt) == ids and sampled.finish_reason is FinishReason.STOP


@examples(150)
@given(named=ENCODERS, prompt=PROMPTS, answers=st.lists(WORDS, min_size=2, max_size=2, unique=True))
def test_tokens_made_ahead_are_those_made_one_by_one(named: Any, prompt: Any, answers: list[str]) -> None:
    encoder = named[-1]
    pair = PreferencePair(prompt, Candidate(answers[0]), Candidate(answers[1]), target=answers[0])
    encoder.tokenise_ahead([])
    alone = encoder.encode_pair(pair)
    encoder.tokenise_ahead([pair, PreferencePair(prompt, pair.rejected, pair.chosen)])
    ahead = encoder.encode_pair(pair)
    assert type(alone) is type(ahead)
    if not isinstance(alone, str) and not isinstance(ahead, str):
        for side in ("prompt", "chosen", "rejected", "target"):
            assert getattr(alone, side).tolist() == getattr(ahead, side).tolist()
        assert alone.target.tolist() == alone.chosen.tolist()


@examples(150)
@given(named=ENCODERS, prompt=PROMPTS, text=WORDS, data=st.data())
def test_limits_drop_or_cut_and_never_change_what_is_left(named: Any, prompt: Any, text: str, data: Any) -> None:
    encoder = named[-1]
    ids = encoder.encode_prompt(prompt)
    answers = [encoder.encode_completion(Candidate(one), prompt) for one in (text, "no")]
    limits = [data.draw(st.none() | st.integers(2, 2 * size)) for size in (len(ids), max(map(len, answers)))]
    too_long = data.draw(st.sampled_from(["drop", "cut_prompt"]))
    limited = Encoder(encoder.tokenizer, limits[0], limits[1], too_long, encoder.stop_ids)
    pair = PreferencePair(prompt, Candidate(text), Candidate("no"))
    counts: Counter[str] = Counter()
    tokens = limited.encode_pair(pair, counts)
    prompt_fits = limits[0] is None or len(ids) <= limits[0]
    if not prompt_fits and too_long == "drop":
        assert tokens == "prompt_too_long" and not limited.fits(prompt)
        return
    assert limited.fits(prompt) and counts["prompt_cut"] == (not prompt_fits)
    if limits[1] is not None and max(map(len, answers)) > limits[1]:
        assert tokens == "completion_too_long"
        return
    if isinstance(tokens, str):
        assert tokens == "equal_completions" and answers[0] == answers[1]
        return
    assert [tokens.chosen.tolist(), tokens.rejected.tolist()] == answers
    kept = tokens.prompt.tolist()
    assert kept == ids if prompt_fits else len(kept) == limits[0] and kept[1:] == ids[len(ids) - len(kept) + 1 :]
