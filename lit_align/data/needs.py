"""What a run asks of its data, said before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_align.boundary import BoundaryCallback
    from lit_align.data.datamodule import AlignmentDataModule

_MANY_STEPS = 100_000
_NAMED = 3  # tokens in a message


def require(data: AlignmentDataModule, what: str, *keys: str) -> None:
    """Raises a ValueError that names what `what` needs and the data module lacks."""
    missing = [key for key in keys if getattr(data, key) is None]
    if missing:
        raise ValueError(
            f"{what} need{'s' if what[-1] != 's' else ''} a {' and a '.join(missing)}: set "
            + " and ".join(f"`data.{key}`" for key in missing)
        )


def require_pairs(data: AlignmentDataModule) -> None:
    """Raises a ValueError where no static training pair is left."""
    if not data.train_pairs:
        counted = ", ".join(f"{key}: {count}" for key, count in data.counts.items() if count)
        why = "look at limits and judge"
        if data.counts["prompt_only"]:
            why = (
                "a prompt alone gives none. Add completions, or train on-policy from the start, "
                "`boundary: callbacks.AlwaysOnPolicy`"
            )
        raise ValueError(f"expected training pairs in {data.train}, none is left ({counted}): {why}")


def require_for_callbacks(data: AlignmentDataModule, trainer: Any) -> None:
    """Raises a ValueError where a boundary callback of a fit asks for more than the data module was given."""
    for callback in _boundary_callbacks(trainer):
        measures = callback.every_n_steps is not None
        if not measures and not _may_tune(callback, trainer.max_steps):
            continue
        missing = [f"`data.{key}`" for key in ("sampler", "judge") if getattr(data, key) is None]
        if measures and data.val is None and not data.val_fraction:
            missing.append("`data.val` (or `data.val_fraction`)")
        if missing:
            does = "samples answers to held-out prompts and has them judged" if measures else "trains on judged samples"
            raise ValueError(
                f"{type(callback).__name__} {does}, and the data lack what it takes: set {', '.join(missing)}"
            )


def require_static_to_overfit(data: AlignmentDataModule, trainer: Any) -> None:
    """Raises a ValueError where a fit is to overfit some batches and other pairs may come in between."""
    if not getattr(trainer, "overfit_batches", 0):
        return
    schedules = [type(callback).__name__ for callback in _boundary_callbacks(trainer)]
    if schedules or data.on_policy_share > 0:
        brings = f"the boundary ({schedules[0]})" if schedules else f"an on-policy share of {data.on_policy_share:g}"
        raise ValueError(
            f"overfit_batches trains on the same static pairs again and again, and {brings} brings in new ones: "
            "--boundary null and --data.on_policy_share 0 leave the static pairs alone"
        )


def require_held_out(data: AlignmentDataModule, trainer: Any) -> None:
    """Raises a ValueError where a boundary is to be measured and no held-out prompt is left."""
    if any(one.candidates for one in data.held_out_prompts.measured_on):
        return
    for callback in _boundary_callbacks(trainer):
        if callback.every_n_steps is not None:
            counts = [f"{key}: {count}" for key, count in data.counts.items() if key.startswith("val/") and count]
            raise ValueError(
                f"{type(callback).__name__} measures on held-out prompts with static candidates, and none of the "
                f"data's is left ({', '.join(counts)}): look at limits and rows"
            )


def require_known_tokens(data: AlignmentDataModule) -> None:
    """Raises a ValueError where the data have a token that the model's embedding has no row for."""
    rows, tokenizer = data.run.vocabulary_size, data.encoder.tokenizer
    if rows is None or len(tokenizer) <= rows:
        return
    foreign = [[id_ for id_ in ids if id_ >= rows] for ids in _all_ids(data)]
    texts = sum(map(bool, foreign))
    if texts:
        ids = sorted({id_ for ids in foreign for id_ in ids})
        tokens = ", ".join(f"{tokenizer.convert_ids_to_tokens(id_)!r} ({id_})" for id_ in ids[:_NAMED])
        raise ValueError(
            f"the model's embedding has {rows} rows, and its tokenizer {len(tokenizer)} tokens. Tokens without a row, "
            f"such as {tokens}, are in {texts} of the data's prompts and answers or fill them up: take the tokenizer "
            "that the model was trained with, or enlarge the model (`resize_token_embeddings` of transformers) and "
            "save it with this one"
        )


def _all_ids(data: AlignmentDataModule) -> Iterator[list[int]]:
    """The ids of each prompt and answer that a run may meet, and the padding's."""
    yield [data.encoder.pad_id]
    for pair in (*data.train_pairs, *data.val_pairs):
        yield from (ids.tolist() for ids in (pair.prompt, pair.chosen, pair.rejected, pair.target) if ids is not None)
    for one in (*data.train_sets, *data.held_out):
        yield data.encoder.encode_prompt(one.prompt)


def _boundary_callbacks(trainer: Any) -> list[BoundaryCallback]:
    from lit_align.boundary import BoundaryCallback  # the boundary builds on the data, not the other way round

    return [one for one in getattr(trainer, "callbacks", ()) if isinstance(one, BoundaryCallback)]


def _may_tune(callback: BoundaryCallback, max_steps: int) -> bool:
    """Whether a schedule without measurements can ask for samples: it does at once, or it decides again later."""
    if any(callback.should_decide(step) for step in range(1, max_steps if max_steps > 0 else _MANY_STEPS)):
        return True
    return callback.should_decide(0) and callback.decide(0, None, ()).share > 0
