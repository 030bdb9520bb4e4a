from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from lit_align.batch import TokenizedPair
from lit_align.data import BadRow, Encoder
from lit_align.records import Candidate, Chat, FinishReason, Message, Origin, PreferencePair
from tests.helpers.tiny import CHAT_TEMPLATE, tiny_tokenizer

USER = (Message("user", "Give one fact about tea."),)
CHAT = (Message("system", "Be brief."), *USER, Message("assistant", "Why?"), Message("user", "Well."))
GEMMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pair(chosen: str = "Tea is hot.", rejected: str = "No.", **more: Any) -> PreferencePair:
    return PreferencePair(USER, Candidate(chosen), Candidate(rejected), **more)


def test_prompt_and_completion_together_are_what_the_template_writes() -> None:
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer)
    ids = encoder.encode_prompt(CHAT) + encoder.encode_completion(Candidate("the sea is deep"))
    turns = [{"role": m.role, "content": m.content} for m in (*CHAT, Message("assistant", "the sea is deep"))]
    assert tokenizer.decode(ids) + "\n" == tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(encoder.encode_prompt(CHAT)).endswith("Well.<|im_end|>\n<|im_start|>assistant\n")


def test_end_of_turn_comes_from_the_template_not_from_eos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    encoder = Encoder(tokenizer)
    ends: Any = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert encoder.stop_ids == tuple(ends)
    assert encoder.encode_completion(Candidate("Well"))[-1] == ends[0]
    tokenizer.chat_template = None
    assert Encoder(tokenizer).stop_ids == (ends[1],)


def test_end_of_turn_falls_back_to_eos_and_without_one_is_an_error() -> None:
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    assert Encoder(tokenizer).stop_ids == (tokenizer.eos_token_id,)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence token or .* Set the policy's `chat_template`"):
        Encoder(tokenizer)


def test_end_of_turn_only_where_a_completion_ended() -> None:
    encoder = Encoder(tiny_tokenizer())
    text = encoder.tokenizer("Well, bees", add_special_tokens=False)["input_ids"]
    assert encoder.encode_completion(Candidate("Well, bees")) == [*text, encoder.end_id]
    assert encoder.encode_completion(Candidate("Well, bees", finish_reason=FinishReason.LENGTH)) == text
    assert encoder.encode_completion(Candidate("Well, bees<|im_end|>")) == [*text, encoder.end_id]
    sampled = Candidate("Well, bees", token_ids=(9, 8, encoder.end_id))
    assert encoder.encode_completion(sampled) == [9, 8, encoder.end_id]


def test_bos_is_written_once() -> None:
    tokenizer = tiny_tokenizer(GEMMA_LIKE)
    tokenizer.bos_token = "<|endoftext|>"
    bos = tokenizer.bos_token_id
    assert Encoder(tokenizer).encode_prompt(USER).count(bos) == 1
    tokenizer.chat_template = "{{ bos_token }}" + GEMMA_LIKE
    assert Encoder(tokenizer).encode_prompt(USER).count(bos) == 1
    tokenizer.chat_template = None
    plain = tokenizer(USER[0].content, add_special_tokens=False)["input_ids"]
    assert Encoder(tokenizer).encode_prompt(USER) == plain  # this tokenizer writes no BOS of its own
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", bos), ("<|im_end|>", 2)]
    )
    encoder = Encoder(tokenizer)
    assert encoder.encode_prompt(USER) == [bos, *plain]  # its BOS, but not the EOS it adds after a text
    assert bos not in encoder.encode_completion(Candidate("Well"))
    assert encoder.encode_prompt((Message("user", "<|endoftext|>" + USER[0].content),)) == [bos, *plain]


def test_a_chat_without_a_template_is_an_error_that_names_the_setting() -> None:
    encoder = Encoder(tiny_tokenizer(None))
    assert encoder.tokenizer.decode(encoder.encode_prompt(USER)) == USER[0].content
    with pytest.raises(ValueError, match=r"no chat template.*system, user, assistant, user.*policy's `chat_template`"):
        encoder.encode_prompt(CHAT)


def test_a_template_that_refuses_a_chat_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match="no system role") as caught:
        Encoder(tiny_tokenizer(GEMMA_LIKE)).encode_prompt(CHAT)
    assert caught.value.reason == "template_refused"


def test_encode_pair_keeps_all_parts() -> None:
    encoder = Encoder(tiny_tokenizer())
    encoded = encoder.encode_pair(pair(margin=0.5, origin=Origin.ON_POLICY, target="the sea"))
    assert isinstance(encoded, TokenizedPair) and encoded.target is not None
    parts = (encoded.prompt, encoded.chosen, encoded.rejected, encoded.target)
    assert [encoder.tokenizer.decode(ids) for ids in parts] == [
        f"<|im_start|>user\n{USER[0].content}<|im_end|>\n<|im_start|>assistant\n",
        "Tea is hot.<|im_end|>",
        "No.<|im_end|>",
        "the sea<|im_end|>",
    ]
    assert {ids.dtype.name for ids in parts} == {"int32"} and encoded.margin == 0.5 and encoded.on_policy
    without = encoder.encode_pair(pair())
    assert isinstance(without, TokenizedPair) and without.margin != without.margin and without.target is None


def test_long_prompts_are_dropped_or_cut_from_the_left_and_counted() -> None:
    full = Encoder(tiny_tokenizer()).encode_prompt(USER)
    limit = len(full) - 3
    counts: Counter[str] = Counter()
    dropping = Encoder(tiny_tokenizer(), max_prompt_tokens=limit)
    assert dropping.encode_pair(pair(), counts) == "prompt_too_long" and not dropping.fits(USER) and not counts
    assert Encoder(tiny_tokenizer(), max_prompt_tokens=len(full)).fits(USER)
    cutting = Encoder(tiny_tokenizer(), max_prompt_tokens=limit, too_long="cut_prompt")
    encoded = cutting.encode_pair(pair(), counts)
    assert isinstance(encoded, TokenizedPair) and encoded.prompt.tolist() == full[3:]
    assert counts == {"prompt_cut": 1} and cutting.fits(USER) and cutting.encode_prompt(USER) == full[3:]


def test_a_cut_prompt_keeps_its_bos() -> None:
    tokenizer = tiny_tokenizer("{{ bos_token }}" + CHAT_TEMPLATE)
    tokenizer.bos_token = "<|endoftext|>"
    full = Encoder(tokenizer).encode_prompt(USER)
    cut = Encoder(tokenizer, max_prompt_tokens=10, too_long="cut_prompt").encode_prompt(USER)
    assert cut == [tokenizer.bos_token_id, *full[-9:]]


@pytest.mark.parametrize("long", ["chosen", "rejected", "target"])
def test_long_completions_drop_the_pair_and_are_never_cut(long: str) -> None:
    texts = {"chosen": "a", "rejected": "b", "target": "c", long: "the sea is deep and blue"}
    one = pair(texts["chosen"], texts["rejected"], target=texts["target"])
    tokens = len(Encoder(tiny_tokenizer()).encode_completion(Candidate(texts[long])))
    assert isinstance(Encoder(tiny_tokenizer(), None, tokens).encode_pair(one), TokenizedPair)
    assert Encoder(tiny_tokenizer(), None, tokens - 1, "cut_prompt").encode_pair(one) == "completion_too_long"


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_prompt_tokens to be at least 2"):
        Encoder(tiny_tokenizer(), max_prompt_tokens=0)
    with pytest.raises(ValueError, match="'drop' or 'cut_prompt', got 'cut'"):
        Encoder(tiny_tokenizer(), too_long="cut")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "reason", "why"),
    [
        ("{{ messages[0]['content'] + 1 }}", "template_refused", "it refused: TypeError: can only concatenate str"),
        ("{{ messages[0].content.no.such }}", "template_refused", "has no attribute 'no'"),
        ("{{ 1 // 0 }}", "template_refused", "ZeroDivisionError"),
        (" \n", "template_empty", "to write the chat, it wrote nothing"),
        ("<|im_start|>{{ messages[0].role }}", "template_drops_turn", USER[0].content),
    ],
)  # fmt: skip
def test_a_template_that_fails_or_drops_the_question_is_a_bad_row(template: str, reason: str, why: str) -> None:
    with pytest.raises(BadRow) as caught:
        Encoder(tiny_tokenizer(template)).encode_prompt(USER)
    assert caught.value.reason == reason and why in str(caught.value)


def test_a_template_that_drops_the_answer_is_a_bad_row() -> None:
    users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(BadRow, match=r"expected the chat template to write the answer 'Tea is hot\.', it wrote"):
        Encoder(tiny_tokenizer(users)).encode_pair(pair())


def test_a_template_that_does_not_parse_is_an_error_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"does not parse: .* in line 2\. Set the policy's `chat_template`"):
        Encoder(tiny_tokenizer("{% for m in messages %}\n{% if %}{% endfor %}"))


@pytest.mark.parametrize("arguments", [{"place": "Rome"}, '{"place": "Rome"}'])
@pytest.mark.parametrize(
    "written", ["{{ call.function.arguments | tojson }}", "{{ '```' + call.function.arguments + '```' }}"]
)
def test_arguments_of_tool_calls_come_in_the_form_that_the_template_takes(arguments: Any, written: str) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}" + written + "{% endfor %}<|im_end|>{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    answer = Candidate("x", turn=json.dumps({"role": "assistant", "content": "", "tool_calls": [call]}))
    encoder = Encoder(tiny_tokenizer(template))
    text = encoder.tokenizer.decode(encoder.encode_completion(answer, USER))
    assert text.strip().replace("```", "").endswith('weather{"place": "Rome"}<|im_end|>')


def test_tools_and_settings_of_a_row_reach_the_template() -> None:
    tokenizer = tiny_tokenizer("{% if tools %}{{ tools | tojson }}{% endif %}{{ mood }}\n" + CHAT_TEMPLATE)
    prompt = Chat(USER, tools='[{"name": "weather"}]', template_kwargs='{"mood": "calm"}')
    pairs = [pair(), PreferencePair(prompt, Candidate("Tea is hot."), Candidate("No."))]
    encoder = Encoder(tokenizer)
    encoder.tokenise_ahead(pairs)
    texts = [tokenizer.decode(encoder.encode_pair(one).prompt) for one in pairs]
    assert texts[1] == '[{"name": "weather"}]calm' + texts[0]
