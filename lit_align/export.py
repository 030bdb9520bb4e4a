"""The trained policy as a folder that transformers and peft load, without anything of lit-align."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from lit_align.files import written_whole
from lit_align.policy.load import load_generation_config, load_model, load_tokenizer
from lit_align.policy.spec import PolicySpec
from lit_align.sampling.engine import save_adapter
from lit_align.trained.policy import restore


def export_policy(spec: PolicySpec, checkpoint: Path, output: Path) -> None:
    """Writes the trained adapter as peft does, or all weights as safetensors if all were trained, and the tokenizer.

    Args:
        spec: the policy that was trained.
        checkpoint: of the fit.
        output: the folder to write, whole or not at all.

    Raises:
        FileExistsError: if `output` is there already.
        ValueError: if the checkpoint is of another base, or lacks trained weights of the policy.
    """
    if output.exists():
        raise FileExistsError(f"{output} is there already, and export overwrites nothing: choose another --output")
    policy = load_model(spec)
    restore(policy, checkpoint, spec)
    with written_whole(output) as folder:
        _save(policy, folder)
        load_tokenizer(spec).save_pretrained(folder)
        generation = load_generation_config(spec)
        if generation is not None:
            generation.save_pretrained(folder)


def describe_loading(spec: PolicySpec, output: Path) -> str:
    """The lines of Python that load what was exported."""
    if spec.lora is None and spec.adapter is None:
        return (
            "from transformers import AutoModelForCausalLM\n"
            f'model = AutoModelForCausalLM.from_pretrained("{output}", dtype="auto")'
        )
    return f'from peft import AutoPeftModelForCausalLM\nmodel = AutoPeftModelForCausalLM.from_pretrained("{output}")'


def _save(policy: Any, folder: Path) -> None:
    if isinstance(policy, PeftModel):
        save_adapter(policy, folder)
    else:
        policy.save_pretrained(folder)
