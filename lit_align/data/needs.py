"""Checks of the data that fail before a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.batch import TokenizedPair
from lit_align.data.encoder import Encoder
from lit_align.judges import Judge
from lit_align.records import CandidateSet
from lit_align.sampling import Sampler

_NAMED = 3  # tokens in a message


def require(purpose: str, **parts: object | None) -> None:
    """Raises a ValueError that names what `purpose` needs and the data module lacks.

    Args:
        purpose: what is to be done, for the message.
        parts: arguments of the data module by name; None is missing.
    """
    missing = [name for name, part in parts.items() if part is None]
    if missing:
        raise ValueError(
            f"{purpose} need{'s' if purpose[-1] != 's' else ''} a {' and a '.join(missing)}: set "
            + " and ".join(f"`data.{name}`" for name in missing)
        )


def judges_in(callbacks: Iterable[object]) -> Iterator[Judge]:
    """The judges that callbacks hold as attributes."""
    for callback in callbacks:
        yield from (value for value in vars(callback).values() if isinstance(value, Judge))


def require_different_answers(sampler: Sampler | None) -> None:
    """Raises a ValueError if no two sampled answers to a prompt can differ, so that they make no pair."""
    why = None if sampler is None else sampler.why_alike
    if why is not None:
        raise ValueError(
            f"the sampler's {why}, and a pair takes two different answers to a prompt: set `data.sampler` to at least "
            "2 num_candidates and a temperature above 0"
        )


def require_pairs(pairs: Sequence[object], source: object, counts: Counter[str], selector: object) -> None:
    """Raises a ValueError if no static training pair is left."""
    if pairs:
        return
    counted = ", ".join(f"{key}: {count}" for key, count in counts.items() if count)
    why = "look at limits and judge"
    if counts["prompt_only"]:
        why = (
            "a prompt without completions gives none. Add completions, or train on-policy from the start, "
            "`boundary: callbacks.AlwaysOnPolicy`"
        )
    elif counts["prompt_held_out"]:
        why = "held-out prompts are not trained on, and all others were dropped. Give held-out rows with other prompts"
    elif not any(count for key, count in counts.items() if key not in ("rows", "prompts") and "unused" not in key):
        why = f"the selector {type(selector).__name__} chose none of the candidates"
    raise ValueError(f"expected training pairs in {source}, none is left ({counted}): {why}")


def require_held_out_pairs(pairs: Sequence[object]) -> None:
    """Raises a ValueError if there is no pair for `validate`, `test` or `predict`."""
    if not pairs:
        raise ValueError(
            "validate, test and predict need held-out pairs, got none: set `data.val` or `data.val_fraction`"
        )


def refuse_to_overfit(brings_pairs: str) -> ValueError:
    """The error of a fit that is to overfit some batches while other pairs come in between."""
    return ValueError(
        f"overfit_batches trains on the same static pairs again and again, and {brings_pairs} brings in new ones: "
        "--boundary null and --data.on_policy_share 0 keep the static pairs"
    )


def require_known_tokens(
    rows: int | None, encoder: Encoder, pairs: Iterable[TokenizedPair], sets: Iterable[CandidateSet]
) -> None:
    """Raises a ValueError if the data have a token that the model's embedding has no row for.

    Args:
        rows: of the embedding; None if the model's config does not say.
        encoder: of the model's tokenizer.
        pairs: all pairs that a run may meet.
        sets: all prompts that it may sample answers to.
    """
    tokenizer = encoder.tokenizer
    if rows is None or len(tokenizer) <= rows:
        return
    unknown: set[int] = set()
    count = 0
    for ids in _all_ids(encoder, pairs, sets):
        foreign = {id_ for id_ in ids if id_ >= rows}
        unknown |= foreign
        count += bool(foreign)
    if count:
        tokens = ", ".join(f"{tokenizer.convert_ids_to_tokens(id_)!r} ({id_})" for id_ in sorted(unknown)[:_NAMED])
        raise ValueError(
            f"the model's embedding has {rows} rows, and its tokenizer {len(tokenizer)} tokens. Tokens without a row, "
            f"such as {tokens}, are in {count} of the data's prompts and answers or fill them up: take the tokenizer "
            "that the model was trained with, or enlarge the model (`resize_token_embeddings` of transformers) and "
            "save it with this one"
        )


def require_positions(limit: int | None, must_fail: bool, pairs: Iterable[TokenizedPair]) -> None:
    """Warns of rows, prompt and answer together, that are longer than the model was made for.

    Args:
        limit: the tokens of a row; None if the model's config does not say.
        must_fail: whether the model cannot take more.
        pairs: all pairs that a run may meet.

    Raises:
        ValueError: there are such rows, and the model cannot take them.
    """
    lengths = [_row_length(pair) for pair in pairs] if limit is not None else []
    too_long = [length for length in lengths if length > cast(int, limit)]
    if not too_long:
        return
    text = (
        f"prompt and answer have up to {max(too_long)} tokens together, in {len(too_long)} of {len(lengths)} pairs "
        f"more than the {limit} positions of the model (max_position_embeddings in its config)"
    )
    cure = f"data.max_prompt_tokens and data.max_completion_tokens of together at most {limit} drop those pairs"
    if must_fail:
        raise ValueError(f"{text}: {cure}")
    rank_zero_warn(f"{text}, beyond which its log-probs mean little: {cure}")


def require_room_to_answer(
    limit: int | None, must_fail: bool, prompt_lengths: Iterable[int], sampler: Sampler | None
) -> None:
    """Warns of prompts that leave a sampled answer no room within the positions that the model was made for.

    Args:
        limit: the tokens of a row; None if the model's config does not say.
        must_fail: whether the model cannot take more.
        prompt_lengths: the tokens of each prompt.
        sampler: answers them.

    Raises:
        ValueError: there are such prompts, and the model cannot take more.
    """
    new_tokens = getattr(sampler, "max_new_tokens", None)
    lengths = [] if limit is None or new_tokens is None else list(prompt_lengths)
    too_long = [length for length in lengths if length + cast(int, new_tokens) > cast(int, limit)]
    if not too_long:
        return
    text = (
        f"prompts of up to {max(too_long)} tokens and sampled answers of up to {new_tokens} (max_new_tokens) come, for "
        f"{len(too_long)} of {len(lengths)} prompts, to more than the {limit} positions of the model "
        "(max_position_embeddings in its config)"
    )
    cure = f"data.max_prompt_tokens and data.sampler.max_new_tokens of together at most {limit} keep within them"
    if must_fail:
        raise ValueError(f"{text}: {cure}")
    rank_zero_warn(f"{text}, beyond which its answers mean little: {cure}")


def _row_length(pair: TokenizedPair) -> int:
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def _all_ids(encoder: Encoder, pairs: Iterable[TokenizedPair], sets: Iterable[CandidateSet]) -> Iterator[Sequence[int]]:
    """The ids of each prompt and answer, and the padding's."""
    yield [encoder.pad_id]
    for pair in pairs:
        texts = (pair.prompt, pair.chosen, pair.rejected, pair.target)
        yield from (ids.tolist() for ids in texts if ids is not None)
    for candidates in sets:
        yield encoder.encode_prompt(candidates.prompt)
