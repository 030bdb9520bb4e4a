"""Answers to prompts from a file or a pipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from lit_align.evaluate.reading import read_prompts
from lit_align.records import Candidate, CandidateSet, Message, Prompt, is_plain
from lit_align.sampling import Sampler
from lit_align.trained import TrainedPolicy

_KEPT = ("id", "prompt_id", "category")


def read_prompts_of(source: str, stdin: IO[str], system: str | None = None) -> list[CandidateSet]:
    """Reads prompts, each once.

    Args:
        source: rows with a `prompt`, in any format that a run's data may have; a `.txt` file with one prompt a line;
            or "-" for standard input, of which each line is a prompt, or a row if it is a JSON object.
        stdin: standard input.
        system: the system turn of prompts that have none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are no prompts.
    """
    if source == "-":
        rows = [_row(line) for line in stdin if line.strip()]
        if not rows:
            raise ValueError("expected prompts on standard input, one a line, got none")
        sets = read_prompts(rows)
    elif source.endswith(".txt"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"there is no file {source!r}: expected one with a prompt a line")
        lines = Path(source).read_text(encoding="utf-8").splitlines()
        sets = read_prompts([{"prompt": line} for line in lines if line.strip()])
    else:
        sets = read_prompts(source)
    return [replace(candidates, prompt=_with_system(candidates.prompt, system)) for candidates in sets]


def answer_rows(
    policy: TrainedPolicy,
    sets: Sequence[CandidateSet],
    sampler: Sampler,
    name: str,
    seed: int = 0,
    compare: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Iterator[dict[str, Any]]:
    """Answers prompts.

    Args:
        policy: the trained policy.
        sets: the prompts.
        sampler: how to sample, and how many answers a prompt.
        name: of the model, for the rows.
        seed: with a prompt it decides the answers.
        compare: also answers with the policy as it was before the fit.
        progress: called with the number of answers finished since the last call.

    Yields:
        A row for each prompt: `prompt` and `output`, `candidates` where there are several answers, `before` and
        `after` to compare; `id` and `category` as they were read.
    """
    prompts = [candidates.prompt for candidates in sets]
    after = policy.answer(prompts, sampler, seed, progress=progress)
    before = policy.answer(prompts, sampler, seed, start=True, progress=progress) if compare else []
    for place, candidates in enumerate(sets):
        kept = {key: candidates.row[key] for key in _KEPT if candidates.row.get(key) is not None}
        row = {**kept, "prompt": _plain(candidates.prompt)}
        if compare:
            yield {**row, "before": _texts(before[place]), "after": _texts(after[place])}
        elif len(after[place]) == 1:
            answer = after[place][0]
            yield {**row, "output": answer.text, "generator": name, "finish_reason": answer.finish_reason.value}
        else:
            yield {**row, "candidates": [{"text": answer.text, "model": name} for answer in after[place]]}


def _row(line: str) -> dict[str, Any]:
    text = line.strip()
    if not text.startswith("{"):
        return {"prompt": text}
    try:
        row = json.loads(text)
    except json.JSONDecodeError:
        return {"prompt": text}  # a prompt that begins with a brace
    return row if isinstance(row, dict) else {"prompt": text}


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    if system is None or prompt[0].role == "system" or not is_plain(prompt):
        return prompt
    return (Message("system", system), *prompt)


def _plain(prompt: Prompt) -> Any:
    """A single turn of the user as text, anything else as messages."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return [{"role": message.role, "content": message.content} for message in prompt]


def _texts(answers: Sequence[Candidate]) -> Any:
    texts = [answer.text for answer in answers]
    return texts[0] if len(texts) == 1 else texts
