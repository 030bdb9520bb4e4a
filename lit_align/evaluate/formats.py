"""The files of an evaluation: prompt by prompt as JSONL and Parquet, and as AlpacaEval and MT-Bench have them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_align.evaluate.judged import JudgedAnswers
from lit_align.files import written_whole
from lit_align.records import prompt_text
from lit_align.run_folder import write_jsonl

PROMPTS = "prompts.jsonl"
PROMPTS_PARQUET = "prompts.parquet"
ALPACA_EVAL = "alpaca_eval"
MT_BENCH = "mt_bench"


def write_prompts(folder: Path, judged: Sequence[JudgedAnswers]) -> None:
    """Writes a row for each prompt, as JSONL and as Parquet; both can be read again as `--against` or `--prompts`."""
    import pyarrow
    from pyarrow import parquet

    rows = list(map(prompt_row, judged))
    write_jsonl(folder / PROMPTS, rows)
    with written_whole(folder / PROMPTS_PARQUET) as part:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_schema(pyarrow)), part)


def prompt_row(judged: JudgedAnswers) -> dict[str, Any]:
    """A prompt's row: both answers, the verdict in both orders, scores and lengths."""
    orders = judged.orders or (None, None)
    return {
        "prompt": prompt_text(judged.prompt),
        "messages": [{"role": message.role, "content": message.content} for message in judged.prompt],
        "category": judged.category,
        "output": judged.answer.text,
        "opponent_output": judged.opponent.text,
        "verdict": judged.verdict,
        "win_probability": None if judged.share is None else judged.first_wins,
        "shown_first": orders[0],
        "opponent_shown_first": orders[1],
        "score": judged.answer.score,
        "opponent_score": judged.opponent.score,
        "length": len(judged.answer.text),
        "opponent_length": len(judged.opponent.text),
        "finish_reason": judged.answer.finish_reason.value,
        "opponent_finish_reason": judged.opponent.finish_reason.value,
        "where": judged.where,
    }


def _schema(pyarrow: Any) -> Any:
    """Declared, since a column without any value would have no type."""
    texts = ("prompt", "category", "output", "opponent_output", "verdict", "finish_reason", "opponent_finish_reason")
    numbers = ("win_probability", "shown_first", "opponent_shown_first", "score", "opponent_score")
    kinds = {
        **dict.fromkeys((*texts, "where"), pyarrow.string()),
        "messages": pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()}.items())),
        **dict.fromkeys(numbers, pyarrow.float64()),
        **dict.fromkeys(("length", "opponent_length"), pyarrow.int64()),
    }
    return pyarrow.schema(kinds.items())


def write_alpaca_eval(folder: Path, judged: Sequence[JudgedAnswers], names: tuple[str, str], judge: str) -> None:
    """Writes what `alpaca_eval` reads and writes, see :func:`alpaca_eval_files`."""
    for name, rows in alpaca_eval_files(judged, names, judge).items():
        with written_whole(folder / ALPACA_EVAL / name) as part:
            part.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def alpaca_eval_files(
    judged: Sequence[JudgedAnswers], names: tuple[str, str], judge: str
) -> dict[str, list[dict[str, Any]]]:
    """AlpacaEval's files: `--model_outputs` and `--reference_outputs` of its command, and its annotations.

    In an annotation the opponent is output 1 and the model output 2, and the preference is 1 for the first, 2 for the
    second and 1.5 for a tie.

    Args:
        judged: the answers.
        names: of the model and of its opponent.
        judge: the annotator's name.
    """
    model, opponent = names
    annotations = [
        {
            "instruction": prompt_text(pair.prompt),
            "output_1": pair.opponent.text,
            "generator_1": opponent,
            "output_2": pair.answer.text,
            "generator_2": model,
            "dataset": pair.category or "lit_align",
            "annotator": judge,
            "preference": None if pair.share is None else 1 + pair.first_wins,
        }
        for pair in judged
    ]
    return {
        "model_outputs.json": _outputs(annotations, 2),
        "reference_outputs.json": _outputs(annotations, 1),
        "annotations.json": annotations,
    }


def _outputs(annotations: Iterable[Mapping[str, Any]], side: int) -> list[dict[str, Any]]:
    return [
        {
            "instruction": row["instruction"],
            "output": row[f"output_{side}"],
            "generator": row[f"generator_{side}"],
            "dataset": row["dataset"],
        }
        for row in annotations
    ]


def write_mt_bench(
    folder: Path, judged: Sequence[JudgedAnswers], names: tuple[str, str], judge: str, time: float
) -> None:
    """Writes the files of FastChat's `llm_judge`, see :func:`mt_bench_files`."""
    for name, rows in mt_bench_files(judged, names, judge, time).items():
        write_jsonl(folder / MT_BENCH / name, rows)


def mt_bench_files(
    judged: Sequence[JudgedAnswers], names: tuple[str, str], judge: str, time: float
) -> dict[str, list[dict[str, Any]]]:
    """The questions, both models' answers and the verdicts, each question with one turn.

    A prompt of several turns is one question, with the roles written out.

    Args:
        judged: the answers.
        names: of the model and of its opponent.
        judge: the name of who compared.
        time: seconds since 1970, of all rows.
    """
    texts = (
        [pair.answer.text for pair in judged],
        [pair.opponent.text for pair in judged],
    )
    answers = {
        f"model_answer/{name}.jsonl": [
            _mt_bench_answer(question_id, name, text, time) for question_id, text in enumerate(of_model, 1)
        ]
        for name, of_model in zip(names, texts, strict=True)
    }
    questions = [
        {"question_id": number, "category": pair.category or "general", "turns": [prompt_text(pair.prompt)]}
        for number, pair in enumerate(judged, 1)
    ]
    verdicts = [_mt_bench_verdict(number, pair, names, judge, time) for number, pair in enumerate(judged, 1)]
    return {"question.jsonl": questions, **answers, "model_judgment/lit-align_pair.jsonl": verdicts}


def _mt_bench_answer(question_id: int, model: str, text: str, time: float) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, f"{model}\0{question_id}\0{text}").hex,
        "model_id": model,
        "choices": [{"index": 0, "turns": [text]}],
        "tstamp": time,
    }


def _mt_bench_verdict(
    question_id: int, pair: JudgedAnswers, names: tuple[str, str], judge: str, time: float
) -> dict[str, Any]:
    """Game 1 shows the model first, game 2 its opponent; of a judge without an order both are the same."""
    shown_first, opponent_shown_first = pair.orders or (pair.first_wins, 1 - pair.first_wins)
    return {
        "question_id": question_id,
        "model_1": names[0],
        "model_2": names[1],
        "g1_winner": _winner(shown_first),
        "g2_winner": _winner(1 - opponent_shown_first),
        "judge": [judge, "lit-align"],
        "g1_user_prompt": "",
        "g1_judgment": "",
        "g2_user_prompt": "",
        "g2_judgment": "",
        "turn": 1,
        "tstamp": time,
    }


def _winner(first_wins: float) -> str:
    """In MT-Bench's words, of P(model 1 wins)."""
    if first_wins != first_wins:
        return "error"
    return "tie" if first_wins == 0.5 else "model_1" if first_wins > 0.5 else "model_2"
