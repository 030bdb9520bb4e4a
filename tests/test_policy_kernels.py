"""Liger's kernels: refused where they cannot run, and equal to the model's own in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.losses import DPO
from lit_align.policy import LoraSpec, PolicySpec, load_model
from lit_align.policy.kernels import demand_kernels
from lit_align.training.module import AlignmentModule
from tests.helpers.modules import loader, trainer

INTERPRETED = """
import sys
from pathlib import Path
import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from transformers.models.llama import modeling_llama
from lit_align.doctor.exactness import Case, compare
from lit_align.doctor.findings import Bench
from lit_align.policy import LoraSpec
from liger_kernel.ops import rms_norm

as_usual = interpreter._implicit_cvt

def convert(argument):  # the interpreter hands on Python's floats, which have no `to`
    if type(argument) is not float:
        return as_usual(argument)
    return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

interpreter._implicit_cvt = convert
rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)  # nor has it libdevice
own = {name: getattr(modeling_llama, name) for name in ("LlamaRMSNorm", "LlamaMLP", "apply_rotary_pos_emb")}
case = Case(settings=(("lora", LoraSpec(r=4)), ("kernels", "liger")))
import lit_align.doctor.exactness as exactness
exactness.LENGTHS = ((9, 5, 4), (3, 2, 6))
loaded = []
load_model = exactness.load_model
exactness.load_model = lambda spec: loaded.append(load_model(spec)) or loaded[-1]
print(compare(case, Bench(torch.device("cpu"), Path(sys.argv[1]), 0.0)).text)
layer = loaded[0].base_model.model.model.layers[0]
print(layer.input_layernorm, layer.mlp._get_name())
assert modeling_llama.LlamaRMSNorm is own["LlamaRMSNorm"] and modeling_llama.LlamaMLP is own["LlamaMLP"]
assert modeling_llama.apply_rotary_pos_emb is not own["apply_rotary_pos_emb"]
"""


def test_log_probs_and_gradients_are_those_of_plain_layers(tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel")
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "log-probs differ by" in done.stdout and "LigerRMSNorm" in done.stdout and "Liger" in done.stdout


def test_a_run_on_a_cpu_refuses_kernels(tiny_model: Path, tmp_path: Path) -> None:
    module = AlignmentModule(PolicySpec(str(tiny_model), lora=LoraSpec(r=2), kernels="liger"), DPO())
    with pytest.raises(ValueError, match='kernels: "liger" are for GPUs, and this run is on a CPU'):
        trainer(tmp_path).fit(module, loader())


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_machine_without_a_gpu_refuses_kernels(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="for GPUs"):
        load_model(PolicySpec(str(tiny_model), lora=LoraSpec(r=2), kernels="liger"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_align.policy.kernels.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"lit-align\[liger\]"):
        demand_kernels("liger", "cuda")


def test_compiled_layers_have_no_kernels(tiny_model: Path) -> None:
    settings: dict[str, Any] = {"lora": LoraSpec(r=2), "kernels": "liger", "compile": True}
    with pytest.raises(ValueError, match="fuse the same operations"):
        load_model(PolicySpec(str(tiny_model), **settings))
