"""What chat templates of real models do, each written anew in a line or two, with what an answer must become.

Every template is one `Case`. `blue` is what is trained for the answer "Blue." behind one question of the user.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

from lit_align.data import Encoder
from lit_align.policy.template_values import set_defaults
from tests.helpers.tiny import CHAT_TEMPLATE, metaspace_tokenizer, tiny_tokenizer


@dataclass(frozen=True)
class Case:
    """A chat template.

    Args:
        template: in Jinja.
        blue: the answer "Blue." as it is trained, end included.
        special: its special tokens, beside those of `tests.helpers.tiny`.
        eos: the tokenizer's end-of-sequence token.
        model_stops: what the model's generation config ends an answer at.
        stops: the tokens at which a sampled answer ends.
        trims: whether it strips the blanks around an answer.
        exact: whether prompt and answer are the template's own text; else the difference is said.
        variables: further variables of the template.
    """

    template: str
    blue: str
    special: tuple[str, ...] = ()
    eos: str = "<|im_end|>"
    model_stops: tuple[str, ...] = ()
    stops: tuple[str, ...] = ("<|im_end|>",)
    trims: bool = False
    exact: bool = True
    variables: dict[str, Any] = field(default_factory=dict)


def loop(turn: str, generation: str = "", before: str = "") -> str:
    """A template that writes one turn `m` after the other, `c` being its content."""
    body = f"{{% for m in messages %}}{{% set c = m['content'] %}}{{% set r = m['role'] %}}{turn}{{% endfor %}}"
    return before + body + (f"{{% if add_generation_prompt %}}{generation}{{% endif %}}" if generation else "")


def by_role(user: str, assistant: str) -> str:
    return f"{{% if r == 'assistant' %}}{assistant}{{% else %}}{user}{{% endif %}}"


VISIBLE = "{% if r == 'assistant' and '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
THOUGHT = (
    "{% set t = m.reasoning_content or '' %}{% if r == 'assistant' and '</think>' in c %}"
    "{% set t = c.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
)
IM = "<|im_start|>{{ r }}\n{{ c }}<|im_end|>\n"
IM_OPEN = "<|im_start|>assistant\n"
EOT = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
LLAMA3 = "<|start_header_id|>{{ r }}<|end_header_id|>\n\n{{ c | trim }}<|eot_id|>"
LLAMA3_OPEN = "<|start_header_id|>assistant<|end_header_id|>\n\n"
DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "<｜eos｜>")
PARTS = "{% for p in c %}{{ p['text'] }}{% endfor %}"
EITHER = "{% if c is string %}{{ c | trim }}{% else %}{% for p in c %}{{ p['text'] | trim }}{% endfor %}{% endif %}"
COHERE = ("<|TURN|>", "<|END_TURN|>", "<|USER|>", "<|CHATBOT|>", "<|RESPONSE|>", "<|END_RESPONSE|>")
GLM = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>")
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")

QWEN3 = loop(
    f"<|im_start|>{{{{ r }}}}\n{THOUGHT}{{% if r == 'assistant' and (loop.last or t) %}}"
    "<think>\n{{ t }}\n</think>\n\n{% endif %}{{ c }}<|im_end|>\n",
    IM_OPEN + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)

CASES = {
    "chatml": Case(CHAT_TEMPLATE, "Blue.<|im_end|>"),
    "chatml without generation prompt": Case(loop(IM), "<|im_start|>assistant\nBlue.<|im_end|>"),
    "qwen2.5": Case(
        loop(
            IM, IM_OPEN, "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe nice.<|im_end|>\n{% endif %}"
        ),
        "Blue.<|im_end|>",
        model_stops=("<|im_end|>", "<|endoftext|>"),
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen2.5 base": Case(
        loop(IM, IM_OPEN), "Blue.<|im_end|>", eos="<|endoftext|>", stops=("<|im_end|>", "<|endoftext|>")
    ),
    "qwen3": Case(
        QWEN3,
        "<think>\n\n</think>\n\nBlue.<|im_end|>",
    ),
    "qwen3 without thinking": Case(
        QWEN3,
        "Blue.<|im_end|>",
        variables={"enable_thinking": False},
    ),
    "qwen3.5": Case(
        loop(
            f"<|im_start|>{{{{ r }}}}\n{THOUGHT}"
            "{% if r == 'assistant' %}<think>\n{{ t }}\n</think>\n\n{% endif %}{{ c | trim }}<|im_end|>\n",
            IM_OPEN + "<think>\n",
        ),
        "\n</think>\n\nBlue.<|im_end|>",
        trims=True,
    ),
    "qwen3.5 without thinking": Case(
        loop(
            "<|im_start|>{{ r }}\n{% if r == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
            "{{ c | trim }}<|im_end|>\n",
            IM_OPEN + "<think>\n\n</think>\n\n",
        ),
        "Blue.<|im_end|>",
        trims=True,
    ),
    "qwq": Case(loop(VISIBLE + IM, IM_OPEN + "<think>\n"), "\n</think>\n\nBlue.<|im_end|>", exact=False),
    "deepseek r1": Case(
        loop(by_role("<｜User｜>{{ c }}", VISIBLE + "<｜Assistant｜>{{ c }}<｜eos｜>"), "<｜Assistant｜><think>\n"),
        "\n</think>\n\nBlue.<｜eos｜>",
        DEEPSEEK,
        eos="<｜eos｜>",
        stops=("<｜eos｜>",),
        exact=False,
    ),
    "deepseek v3": Case(
        loop(by_role("<｜User｜>{{ c }}", "<｜Assistant｜>{{ c }}<｜eos｜>"), "<｜Assistant｜>"),
        "Blue.<｜eos｜>",
        DEEPSEEK,
        eos="<｜eos｜>",
        stops=("<｜eos｜>",),
    ),
    "deepseek v3.1": Case(
        loop(
            by_role("<｜User｜>{{ c }}", VISIBLE + "<｜Assistant｜></think>{{ c }}<｜eos｜>"), "<｜Assistant｜></think>"
        ),
        "Blue.<｜eos｜>",
        DEEPSEEK,
        eos="<｜eos｜>",
        stops=("<｜eos｜>",),
    ),
    "deepseek v3.1 thinking": Case(
        loop(
            by_role("<｜User｜>{{ c }}", VISIBLE + "<｜Assistant｜></think>{{ c }}<｜eos｜>"), "<｜Assistant｜><think>"
        ),
        "</think>Blue.<｜eos｜>",
        DEEPSEEK,
        eos="<｜eos｜>",
        stops=("<｜eos｜>",),
        exact=False,
    ),
    "nemotron nano": Case(
        loop(
            "<|im_start|>{{ r }}\n{% if r == 'assistant' and '</think>' not in c %}<think></think>{% endif %}{{ c }}"
            "<|im_end|>\n",
            IM_OPEN + "<think>\n",
        ),
        "</think>Blue.<|im_end|>",
        exact=False,
    ),
    "llama 2": Case(
        loop(by_role("{{ bos_token }}[INST] {{ c }} [/INST]", " {{ c }} {{ eos_token }}")),
        " Blue. </s>",
        ("<s>", "</s>"),
        eos="</s>",
        stops=("</s>",),
    ),
    "llama 3": Case(
        loop(LLAMA3, LLAMA3_OPEN, "<|begin_of_text|>"),
        "Blue.<|eot_id|>",
        EOT,
        "<|eot_id|>",
        stops=("<|eot_id|>",),
        trims=True,
    ),
    "llama 3.1": Case(
        loop(LLAMA3, LLAMA3_OPEN, "<|begin_of_text|>"),
        "Blue.<|eot_id|>",
        EOT,
        "<|eot_id|>",
        ("<|endoftext|>", "<|eom_id|>", "<|eot_id|>"),
        ("<|eot_id|>", "<|endoftext|>", "<|eom_id|>"),
        trims=True,
    ),
    "llama 3.2": Case(
        loop(LLAMA3, LLAMA3_OPEN, "<|begin_of_text|>{{ strftime_now('%d %b %Y') }}\n"),
        "Blue.<|eot_id|>",
        EOT,
        "<|eot_id|>",
        stops=("<|eot_id|>",),
        trims=True,
    ),
    "gemma": Case(
        loop(
            "{% if r == 'system' %}{{ raise_exception('no system role') }}{% endif %}<start_of_turn>"
            "{{ 'model' if r == 'assistant' else r }}\n{{ c | trim }}<end_of_turn>\n",
            "<start_of_turn>model\n",
        ),
        "Blue.<end_of_turn>",
        ("<start_of_turn>", "<end_of_turn>", "<eos>"),
        "<eos>",
        stops=("<end_of_turn>", "<eos>"),
        trims=True,
    ),
    "gemma 3": Case(
        loop(f"<start_of_turn>{{{{ r }}}}\n{EITHER}<end_of_turn>\n", "<start_of_turn>assistant\n"),
        "Blue.<end_of_turn>",
        ("<start_of_turn>", "<end_of_turn>", "<eos>"),
        "<eos>",
        stops=("<end_of_turn>", "<eos>"),
        trims=True,
    ),
    "mistral": Case(
        loop(by_role("[INST] {{ c }} [/INST]", " {{ c }}{{ eos_token }}"), before="{{ bos_token }}"),
        " Blue.</s>",
        ("<s>", "</s>"),
        eos="</s>",
        stops=("</s>",),
    ),
    "mistral tekken": Case(
        loop(by_role("[INST]{{ c }}[/INST]", "{{ c }}{{ eos_token }}"), before="{{ bos_token }}"),
        "Blue.</s>",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        eos="</s>",
        stops=("</s>",),
    ),
    "zephyr": Case(
        loop("<|{{ r }}|>\n{{ c }}{{ eos_token }}\n", "<|assistant|>\n"),
        "Blue.</s>",
        ("</s>",),
        "</s>",
        stops=("</s>",),
    ),
    "tulu": Case(
        loop(by_role("<|{{ r }}|>\n{{ c }}\n", "<|assistant|>\n{{ c }}{{ eos_token }}\n"), "<|assistant|>\n"),
        "Blue.</s>",
        ("</s>",),
        "</s>",
        stops=("</s>",),
    ),
    "olmo 2": Case(
        loop(
            by_role("<|user|>\n{{ c }}\n", "<|assistant|>\n{{ c }}{{ eos_token }}"), "<|assistant|>\n", "<|endoftext|>"
        ),
        "Blue.<|endoftext|>",
        eos="<|endoftext|>",
        stops=("<|endoftext|>",),
    ),
    "phi 3": Case(
        loop("<|{{ r }}|>\n{{ c }}<|end|>\n", "<|assistant|>\n")
        + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        "Blue.<|end|>",
        ("<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        stops=("<|end|>", "<|endoftext|>"),
    ),
    "phi 4 mini": Case(
        loop("<|{{ r }}|>{{ c }}<|end|>", "<|assistant|>")
        + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        "Blue.<|end|>",
        ("<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        stops=("<|end|>", "<|endoftext|>"),
    ),
    "phi 4": Case(
        loop("<|im_start|>{{ r }}<|im_sep|>{{ c }}<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
        "Blue.<|im_end|>",
        ("<|im_sep|>",),
    ),
    "command r": Case(
        loop(
            "<|TURN|>{{ '<|CHATBOT|>' if r == 'assistant' else '<|USER|>' }}{{ c.strip() }}<|END_TURN|>",
            "<|TURN|><|CHATBOT|>",
        ),
        "Blue.<|END_TURN|>",
        COHERE,
        "<|END_TURN|>",
        stops=("<|END_TURN|>",),
        trims=True,
    ),
    "command r7b": Case(
        loop(
            by_role("<|TURN|><|USER|>{{ c }}", "<|TURN|><|CHATBOT|><|RESPONSE|>{{ c }}<|END_RESPONSE|>")
            + "<|END_TURN|>",
            "<|TURN|><|CHATBOT|><|RESPONSE|>",
        ),
        "Blue.<|END_RESPONSE|><|END_TURN|>",
        COHERE,
        "<|END_TURN|>",
        stops=("<|END_TURN|>",),
    ),
    "glm 4": Case(
        loop("<|{{ r }}|>\n{{ c }}", "<|assistant|>", "[gMASK]<sop>"),
        "\nBlue.<|user|>",
        GLM,
        "<|endoftext|>",
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
        ("<|user|>", "<|endoftext|>", "<|observation|>"),
    ),
    "glm 4.5": Case(
        loop(
            f"<|{{{{ r }}}}|>\n{THOUGHT}"
            "{% if r == 'assistant' %}<think>{{ t }}</think>\n{% endif %}{{ c }}",
            "<|assistant|>",
            "[gMASK]<sop>",
        ),
        "\n<think></think>\nBlue.<|user|>",
        GLM,
        "<|endoftext|>",
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
        ("<|user|>", "<|endoftext|>", "<|observation|>"),
    ),
    "gpt-oss": Case(
        loop(
            by_role(
                "<|start|>user<|message|>{{ c }}<|end|>",
                "{% if m.reasoning_content and loop.last %}<|start|>assistant<|channel|>analysis<|message|>"
                "{{ m.reasoning_content }}<|end|>{% endif %}<|start|>assistant<|channel|>final<|message|>{{ c }}"
                "{{ '<|return|>' if loop.last else '<|end|>' }}",
            ),
            "<|start|>assistant",
        ),
        "<|channel|>final<|message|>Blue.<|return|>",
        HARMONY,
        "<|return|>",
        ("<|return|>", "<|endoftext|>", "<|call|>"),
        ("<|return|>", "<|endoftext|>", "<|call|>"),
    ),
    "vicuna": Case(
        loop(by_role("USER: {{ c }} ", "ASSISTANT: {{ c }}{{ eos_token }}"), "ASSISTANT:", "Be nice. "),
        " Blue.</s>",
        ("</s>",),
        "</s>",
        stops=("</s>",),
    ),
    "alpaca": Case(
        loop(by_role("### Instruction:\n{{ c }}\n\n", "### Response:\n{{ c }}\n\n"), "### Response:\n"),
        "Blue.<|im_end|>",
    ),
    "smolvlm": Case(
        loop(f"{{{{ r | capitalize }}}}: {PARTS}<end_of_utterance>\n", "Assistant:", "<|im_start|>"),
        " Blue.<end_of_utterance>",
        ("<end_of_utterance>",),
        "<end_of_utterance>",
        stops=("<end_of_utterance>",),
    ),
    "llava": Case(
        loop(by_role(f"[INST] {PARTS} [/INST]", f" {PARTS}</s>")), " Blue.</s>", ("</s>",), "</s>", stops=("</s>",)
    ),
    "granite": Case(
        loop(
            "<|start_of_role|>{{ r }}<|end_of_role|>{{ c }}<|endoftext|>\n", "<|start_of_role|>assistant<|end_of_role|>"
        ),
        "Blue.<|endoftext|>",
        ("<|start_of_role|>", "<|end_of_role|>"),
        "<|endoftext|>",
        stops=("<|endoftext|>",),
    ),
    "exaone": Case(
        loop("[|{{ r }}|]{{ c }}{{ '[|endofturn|]' if r == 'assistant' else '' }}\n", "[|assistant|]"),
        "Blue.[|endofturn|]",
        ("[|user|]", "[|assistant|]", "[|endofturn|]"),
        "[|endofturn|]",
        stops=("[|endofturn|]",),
    ),
    "minicpm": Case(
        loop(by_role("<用户>{{ c.strip() }}<AI>", "{{ c.strip() }}{{ eos_token }}")),
        "Blue.</s>",
        ("</s>",),
        "</s>",
        stops=("</s>",),
        trims=True,
    ),
    "joined by end tokens": Case(
        loop(by_role("{{ c }}", "{{ eos_token }}Bot: {{ c }}")),
        "</s>Bot: Blue.</s>",
        ("</s>",),
        "</s>",
        stops=("</s>",),
    ),
    "blank line left to the answer": Case(
        loop(by_role("User: {{ c }}\n", "Bot:\n{{ c }}<|im_end|>\n"), "Bot:\n\n"), "Blue.<|im_end|>", exact=False
    ),
}


def tokenizer_of(case: Case, kind: str = "bytes") -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer() if kind == "bytes" else metaspace_tokenizer(kind)
    specials = [*case.special, "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": specials, "eos_token": case.eos})
    if "<s>" in case.special:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = case.template
    set_defaults(tokenizer, case.variables)
    return tokenizer


def encoder_of(name: str, kind: str = "bytes") -> Encoder:
    case = CASES[name]
    tokenizer = tokenizer_of(case, kind)
    stops: Any = tokenizer.convert_tokens_to_ids(list(case.model_stops))
    return Encoder(tokenizer, model_stops=stops)
