"""Replaces long error messages of other libraries by a sentence that says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable

from transformers import __version__ as transformers_version


def _unknown_type(match: re.Match[str]) -> str:
    return (
        f"transformers {transformers_version} does not know models of the type `{match[1]}` (`model_type` in its "
        "config.json). Is it the folder or hub id that you mean? A model newer than your transformers needs: "
        "pip install --upgrade transformers"
    )


def _no_tokenizer(match: re.Match[str]) -> str:
    return (
        "the model's folder has no tokenizer that can be read: expected a tokenizer.json in it, or a tokenizer.model "
        "and the package that reads it (pip install sentencepiece tiktoken)"
    )


def _no_gpu(match: re.Match[str]) -> str:
    return (
        "there is no GPU here that torch can use: --trainer.accelerator cpu runs on the CPU, and auto on a GPU if "
        "there is one. With a GPU in the machine, install the torch build for it (https://pytorch.org/get-started)"
    )


def _no_tpu(match: re.Match[str]) -> str:
    return "accelerator tpu needs torch_xla and a TPU: --trainer.accelerator cpu or auto runs without"


def _no_time(match: re.Match[str]) -> str:
    return f"expected trainer.max_time as DD:HH:MM:SS or by name, such as {{hours: 2}}, got {match[1]}"


def _broken_weights(match: re.Match[str]) -> str:
    return (
        f"a file of weights (.safetensors) is broken or cut short ({match[1]}): copy or download the model again, or "
        "take an earlier checkpoint"
    )


def _metric_of_callback(match: re.Match[str]) -> str:
    return (
        f"EarlyStopping looks at `{match[1]}`, which was not logged by then; logged were {match[2]}. The held-out "
        "pairs' metrics come with each validation: at the end of an epoch, or by --trainer.val_check_interval (in "
        "micro-batches) and --trainer.check_val_every_n_epoch null if the run is shorter"
    )


def _schedulers_in_a_row(match: re.Match[str]) -> str:
    return (
        "torch's SequentialLR takes schedulers that exist already, which a config cannot hold: class_path "
        "lit_align.ScheduleSequence is the same, with each scheduler as class_path and init_args"
    )


def _schedule_of_transformers(match: re.Match[str]) -> str:
    return (
        f"{match[1]} is a function without types, which a config cannot call: class_path "
        "lit_align.WarmupSchedule has the same schedules, by `name` (cosine, linear, "
        "constant_with_warmup, ...), with `num_warmup_steps` or `warmup_ratio`"
    )


_PAGES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"has model type `([^`]*)` but Transformers does not recognize"), _unknown_type),
    (re.compile(r"Couldn't instantiate the backend tokenizer from one of"), _no_tokenizer),
    (re.compile(r"No supported gpu backend found|`(CUDA|MPS)Accelerator` can not run on your system"), _no_gpu),
    (re.compile(r"Requirement 'torch_xla"), _no_tpu),
    (re.compile(r"`Timer\(duration=(.*?)\)` is not a valid duration"), _no_time),
    (re.compile(r"Expected '(transformers\.\S*get_\w+)' to be a function that returns"), _schedule_of_transformers),
    (re.compile(r'"schedulers":.*arguments are required: optimizer'), _schedulers_in_a_row),
    (re.compile(r"Error while deserializing header: (.*)"), _broken_weights),
    (
        re.compile(r"Early stopping conditioned on metric `(.*?)` which is not available.*following: (.*)"),
        _metric_of_callback,
    ),
)


def explain(message: str) -> str:
    """Returns the sentence for a known message, or the message itself."""
    for pattern, sentence in _PAGES:
        if match := pattern.search(message):
            return sentence(match)
    return message
