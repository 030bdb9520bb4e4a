"""The tokens of a chat are those of inference: over what the templates of forty real models do."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest

from lit_align.data import Encoder
from lit_align.records import Candidate, FinishReason, Message
from lit_align.sampling.base import candidate_of_ids
from tests.helpers.chat_templates import CASES, encoder_of
from tests.helpers.tiny import metaspace_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:the chat template does not write")
QUESTION = (Message("user", "Name a colour!"),)
LONGER = (Message("user", "Hi."), Message("assistant", "Hello."), *QUESTION)
SAMPLED = [name for name in CASES if name != "joined by end tokens"]  # whose policy would end at once


def text_of(encoder: Encoder, ids: list[int]) -> str:
    return str(encoder.tokenizer.decode(ids))


def turn(**more: Any) -> Candidate:
    return Candidate("Blue.", turn=json.dumps({"role": "assistant", "content": "Blue.", **more}))


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_what_the_template_writes_behind_the_prompt(name: str) -> None:
    case, encoder = CASES[name], encoder_of(name)
    assert encoder.tokenizer.convert_ids_to_tokens(list(encoder.stop_ids)) == list(case.stops)
    for prompt in (QUESTION, LONGER):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ids = encoder.encode_completion(Candidate("Blue."), prompt)
        assert text_of(encoder, ids) == case.blue and ids[-1] in encoder.stop_ids
        whole = encoder.template.write_whole(prompt, Candidate("Blue."))
        written = text_of(encoder, encoder.encode_prompt(prompt)) + text_of(encoder, ids)
        assert (whole.startswith(written) or written.startswith(whole.rstrip())) is case.exact
        assert bool(caught) is (not case.exact and prompt is QUESTION), "a difference is said, once"


@pytest.mark.parametrize("name", CASES)
def test_the_prompt_is_that_of_inference(name: str) -> None:
    encoder = encoder_of(name)
    chat: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in LONGER]
    if "p['text']" in CASES[name].template:
        chat = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat]
    own = encoder.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert encoder.encode_prompt(LONGER) == own


@pytest.mark.parametrize("kind", ["bytes", "first", "always"])
@pytest.mark.parametrize("name", SAMPLED)
def test_a_static_answer_has_the_tokens_of_a_sampled_one(name: str, kind: str) -> None:
    """A policy that writes the whole chat's tokens behind its prompt says what a static answer is trained as."""
    encoder = encoder_of(name, kind)
    ids = encoder.encode_completion(Candidate("Blue."), QUESTION)
    sampled = candidate_of_ids([*ids, 5, 6], encoder.stop_ids, encoder.tokenizer)
    assert encoder.encode_completion(sampled) == ids and sampled.finish_reason is FinishReason.STOP
    first = encoder.tokenizer.convert_ids_to_tokens(ids)[0]
    assert first.startswith("▁") is (kind != "bytes" and CASES[name].blue.startswith(" ")), first
    if CASES[name].exact and kind != "always":  # that one puts a space behind each special token of a prompt
        whole = encoder.template.write_whole(QUESTION, Candidate("Blue."))
        joint = encoder.tokenizer(whole, add_special_tokens=False)["input_ids"]
        both = encoder.encode_prompt(QUESTION) + ids[:-1]  # the end may be one that the template leaves out
        assert both == joint[: len(both)]


@pytest.mark.parametrize("kind", ["bytes", "first"])
@pytest.mark.parametrize("name", SAMPLED)
def test_a_sampled_answer_is_judged_by_the_text_that_a_row_would_have(name: str, kind: str) -> None:
    encoder = encoder_of(name, kind)
    ids = encoder.encode_completion(Candidate("Blue."), QUESTION)
    sampled = encoder.as_in_data(candidate_of_ids(ids, encoder.stop_ids, encoder.tokenizer))
    assert sampled.text.rstrip(" ") == "Blue." and sampled.token_ids == tuple(ids)


def test_a_sampled_thought_in_a_channel_of_its_own_is_not_judged() -> None:
    encoder = encoder_of("gpt-oss")
    ids = encoder.encode_completion(turn(reasoning_content="It is day."), QUESTION)
    assert encoder.as_in_data(candidate_of_ids(ids, encoder.stop_ids, encoder.tokenizer)).text == "Blue."


@pytest.mark.parametrize("name", CASES)
def test_an_answer_that_was_cut_has_no_end(name: str) -> None:
    case, encoder = CASES[name], encoder_of(name)
    ids = encoder.encode_completion(Candidate("Blue.", finish_reason=FinishReason.LENGTH), QUESTION)
    assert text_of(encoder, ids) == case.blue[: case.blue.index("Blue.") + len("Blue.")]
    assert not set(ids) & set(encoder.stop_ids) or case.blue.startswith(case.eos)


@pytest.mark.parametrize("name", CASES)
def test_blanks_around_an_answer_are_kept_or_trimmed_as_the_template_does(name: str) -> None:
    case, encoder = CASES[name], encoder_of(name)
    if name == "blank line left to the answer":
        return  # its blanks are the prompt's
    ids = encoder.encode_completion(Candidate(" Blue. \n"), QUESTION)
    assert text_of(encoder, ids) == (case.blue if case.trims else case.blue.replace("Blue.", " Blue. \n"))


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "qwq", "deepseek r1", "glm 4.5"])
def test_a_thought_stands_in_the_block_that_the_prompt_or_the_template_opens(name: str) -> None:
    encoder = encoder_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        in_text = Candidate("<think>\nIt is day.\n</think>\n\nBlue.")
        texts = [text_of(encoder, encoder.encode_completion(in_text, QUESTION))]
        texts += [text_of(encoder, encoder.encode_completion(turn(reasoning_content="It is day."), QUESTION))]
    prompt = text_of(encoder, encoder.encode_prompt(QUESTION))
    for text in texts:
        both = prompt + text
        assert both.count("<think>") == both.count("</think>") == 1 and text.count("It is day.") == 1
        assert text.index("It is day.") < text.index("</think>") < text.index("Blue.")


def test_without_thinking_a_prompt_has_no_thought_behind_its_empty_block() -> None:
    encoder = encoder_of("qwen3 without thinking")
    with pytest.warns(UserWarning, match="not the template's own text"):
        ids = encoder.encode_completion(Candidate("<think>\nIt is day.\n</think>\n\nBlue."), QUESTION)
    assert text_of(encoder, ids) == "Blue.<|im_end|>"


def test_channels_of_a_message_are_trained_as_the_model_writes_them() -> None:
    encoder = encoder_of("gpt-oss")
    ids = encoder.encode_completion(turn(reasoning_content="It is day."), QUESTION)
    assert text_of(encoder, ids) == (
        "<|channel|>analysis<|message|>It is day.<|end|><|start|>assistant<|channel|>final<|message|>Blue.<|return|>"
    )


@pytest.mark.parametrize("kind", ["first", "always"])
def test_text_without_a_template_has_no_space_of_the_tokenizer_s(kind: str) -> None:
    tokenizer = metaspace_tokenizer(kind)
    encoder = Encoder(tokenizer)
    texts = {
        answer: tokenizer.convert_ids_to_tokens(encoder.encode_completion(Candidate(answer)))
        for answer in ("bees", " bees")
    }
    assert texts["bees"][0][0] == "b" and texts[" bees"][0].startswith("▁b")
    newline = encoder.encode_completion(Candidate("\n\nbees"))
    assert tokenizer.convert_ids_to_tokens(newline)[:2] == ["<0x0A>", "<0x0A>"]
