"""The evaluation of a run: both sides answer prompts that it has not seen, and a judge compares."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lit_align import run_folder
from lit_align.console import note
from lit_align.data import AlignmentDataModule
from lit_align.evaluate.formats import write_alpaca_eval, write_mt_bench, write_prompts
from lit_align.evaluate.judged import JudgedAnswers, judge_answers
from lit_align.evaluate.prompts import ChosenPrompts, RunPrompts, choose_prompts, prompts_of_run
from lit_align.evaluate.reading import read_answers, read_prompts
from lit_align.evaluate.win_rate import WinRate, win_rate_of, win_rates_by_category
from lit_align.judges import Judge
from lit_align.records import Candidate, CandidateSet, Prompt
from lit_align.rows.alike import normal_form
from lit_align.sampling import Sampler, TransformersSampler
from lit_align.sampling.engine import EngineSampler
from lit_align.trained import TrainedPolicy, TrainedRun, open_run

BASE = "base"
_ROWS = (".json", ".jsonl", ".csv", ".parquet", ".gz")


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate.

    Args:
        judge: who compares.
        sampler: how both sides answer.
        own_judge: whether the judge is the one whose verdicts the run trained on.
        prompts: a file of prompts; None takes the run's held-out ones, or those of a file of answers.
        max_prompts: prompts at most; None takes all.
        category: the column of the rows that holds a prompt's category.
        confidence: of the intervals, in (0, 1).
        seed: draws the prompts and the answers.

    Raises:
        ValueError: a number is out of its range.
    """

    judge: Judge
    sampler: Sampler
    own_judge: bool = False
    prompts: str | None = None
    max_prompts: int | None = None
    category: str = "category"
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"expected confidence to be in (0, 1), such as 0.95, got {self.confidence}")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ValueError(f"expected max_prompts to be at least 1, or null for all, got {self.max_prompts}")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        run: the name of the run.
        against: the name of its opponent.
        judge: who compared.
        own_judge: whether that is the judge whose verdicts the run trained on.
        prompts: where the prompts come from, in words.
        left_out: how many prompts were not taken, by reason.
        confidence: of the intervals.
        win_rate: over all prompts.
        categories: the same by category, where rows carry one.
        judged: prompt by prompt.
        seconds: wall time.
    """

    run: str
    against: str
    judge: str
    own_judge: bool
    prompts: str
    left_out: dict[str, int]
    confidence: float
    win_rate: WinRate
    categories: dict[str, WinRate]
    seconds: float
    judged: list[JudgedAnswers] = field(repr=False)

    def record(self) -> dict[str, Any]:
        """The numbers, in plain types: what `evaluation.json` holds."""
        return asdict(replace(self, judged=[])) | {"judged": len(self.judged)}


class Opponent(NamedTuple):
    """Whom a run is compared with.

    Args:
        name: as a reader would call it.
        run: another run; None for the run's own start, or for a file.
        answers: those of a file.
        data: the other run's data module; None if it has none.
    """

    name: str
    run: TrainedRun | None = None
    answers: list[CandidateSet] | None = None
    data: AlignmentDataModule | None = None


def find_opponent(against: str) -> Opponent:
    """Finds the opponent before anything is loaded.

    Raises:
        FileNotFoundError: there is neither a file of answers nor a run of that name.
        ValueError: the file holds no answers.
    """
    if against == BASE:
        return Opponent(BASE)
    path = Path(against)
    if path.suffix in _ROWS:
        return Opponent(path.name.split(".")[0], answers=read_answers(against))
    other = open_run(against)
    return Opponent(other.name, run=other)


def evaluate_run(
    run: TrainedRun,
    policy: TrainedPolicy,
    data: AlignmentDataModule | None,
    opponent: Opponent,
    settings: EvaluationSettings,
) -> Evaluation:
    """Compares a run with its start, with another run or with a file of answers.

    Both sides answer with the same sampler and the same seed for each prompt, so that a run against itself ties.

    Args:
        run: what is evaluated.
        policy: its trained policy, loaded.
        data: the run's data module; None of a model folder without its run.
        opponent: whom it is compared with, see :func:`find_opponent`.
        settings: how.

    Raises:
        ValueError: no prompt is left to evaluate on, or the judge gave no verdict.
    """
    began = time.perf_counter()
    chosen = _choose(run, data, opponent, settings)
    prompts = [candidates.prompt for candidates in chosen.sets]
    if opponent.name == BASE and isinstance(settings.sampler, EngineSampler):
        settings = replace(settings, sampler=_by_the_model_itself(settings.sampler))
    ours = _answer(policy, prompts, settings, f"answers of {run.name}")
    if opponent.answers is not None:
        by_form = {normal_form(candidates.prompt): candidates.candidates for candidates in opponent.answers}
        theirs = [by_form[normal_form(prompt)] for prompt in prompts]
    elif opponent.run is None:
        theirs = _answer(policy, prompts, settings, "answers of its start", start=True)
    else:
        theirs = _answer(opponent.run.load(), prompts, settings, f"answers of {opponent.name}")
        gc.collect()
    judged = _judge(chosen.sets, ours, theirs, settings)
    return Evaluation(
        run.name,
        opponent.name,
        settings.judge.identity,
        settings.own_judge,
        chosen.source,
        chosen.left_out,
        settings.confidence,
        win_rate_of(judged, settings.confidence),
        win_rates_by_category(judged, settings.confidence),
        time.perf_counter() - began,
        judged,
    )


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Writes the numbers and the answers prompt by prompt, also in AlpacaEval's and MT-Bench's formats."""
    run, against = evaluation.run, evaluation.against
    names = (run, against if against != run else f"{against}-2")
    run_folder.write_json(folder / run_folder.EVALUATION, evaluation.record())
    write_prompts(folder, evaluation.judged)
    write_alpaca_eval(folder, evaluation.judged, names, evaluation.judge)
    write_mt_bench(folder, evaluation.judged, names, evaluation.judge, time.time())


def free_folder(run: TrainedRun, against: str) -> Path:
    """A folder for an evaluation in the run's folder, that does not exist yet."""
    parent = (run.root or Path(".")) / run_folder.EVALUATIONS
    name = f"{run.name if run.root is None else 'against'}_{Path(against).name.split('.')[0]}"
    numbered = (parent / (name if number == 1 else f"{name}_{number}") for number in range(1, 10**6))
    return next(folder for folder in numbered if not folder.exists())


def has_measured(root: Path | None) -> bool:
    """Whether a run measured its boundary on held-out prompts."""
    path = None if root is None else root / run_folder.DECISIONS
    if path is None or not path.exists():
        return False
    lines = path.read_text(encoding="utf-8").splitlines()
    return any(json.loads(line).get("score") is not None for line in lines if line.strip())


def _choose(
    run: TrainedRun, data: AlignmentDataModule | None, opponent: Opponent, settings: EvaluationSettings
) -> ChosenPrompts:
    of_run = _prompts_of(run, data).without(_prompts_of(opponent.run, opponent.data))
    offered = None if settings.prompts is None else read_prompts(settings.prompts)
    source = settings.prompts or f"those of the answers of {opponent.name}"
    left_out = {}
    if opponent.answers is not None:
        answered = {normal_form(candidates.prompt): candidates for candidates in opponent.answers}
        unanswered = [one for one in offered or () if normal_form(one.prompt) not in answered]
        left_out = {"without an answer there": len(unanswered)} if unanswered else {}
        offered = [one for one in offered or opponent.answers if normal_form(one.prompt) in answered]
    chosen = choose_prompts(of_run, offered, source, settings.max_prompts, settings.seed)
    return replace(chosen, left_out=left_out | chosen.left_out)


def _prompts_of(run: TrainedRun | None, data: AlignmentDataModule | None) -> RunPrompts:
    return RunPrompts() if run is None or data is None else prompts_of_run(data, has_measured(run.root))


def _by_the_model_itself(sampler: EngineSampler) -> Sampler:
    """The same distribution without an engine: one that is brought the adapter cannot answer as the start."""
    note("Both sides are sampled by the model itself: the run's sampler brings its adapter to an engine.")
    return TransformersSampler(
        num_candidates=1,
        temperature=sampler.temperature,
        top_p=sampler.top_p,
        top_k=sampler.top_k,
        min_new_tokens=sampler.min_new_tokens,
        max_new_tokens=sampler.max_new_tokens,
    )


def _answer(
    policy: TrainedPolicy, prompts: Sequence[Prompt], settings: EvaluationSettings, desc: str, start: bool = False
) -> list[tuple[Candidate, ...]]:
    with _bar(len(prompts), desc) as bar:
        return policy.answer(
            prompts, settings.sampler, settings.seed, start=start, num_candidates=1, progress=bar.update
        )


def _judge(
    sets: Sequence[CandidateSet],
    ours: Sequence[tuple[Candidate, ...]],
    theirs: Sequence[tuple[Candidate, ...]],
    settings: EvaluationSettings,
) -> list[JudgedAnswers]:
    with _bar(len(sets), "judging") as bar:
        return judge_answers(
            settings.judge,
            [replace(candidates, candidates=answer) for candidates, answer in zip(sets, ours, strict=True)],
            [replace(candidates, candidates=answer) for candidates, answer in zip(sets, theirs, strict=True)],
            settings.category,
            bar.update,
        )


def _bar(total: int, desc: str) -> tqdm:
    return tqdm(total=total, desc=desc, unit=" prompts", leave=False, dynamic_ncols=True, disable=None)
