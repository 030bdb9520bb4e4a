"""The part of a configuration that names a model and says how to load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lit_align.checks import require_at_least_1, require_positive, require_shares

Quantization = Literal["nf4", "int8", "fp8"]
INITS = ("default", "gaussian", "orthogonal")


@dataclass
class LoraSpec:
    """Low-rank adapters (arXiv 2106.09685) on a frozen base.

    Args:
        r: rank of the adapters, at least 1.
        alpha: the adapters' output is scaled by alpha / r; above 0.
        dropout: dropout on the adapters' input, in [0, 1). DPO's convention is 0.
        target_modules: names of the layers that get an adapter; "all-linear" means all but the output layer.
        dora: also learn the magnitude of each output apart from its direction (DoRA, arXiv 2402.09353): a step takes
            more time and memory.
        rslora: scale by alpha / sqrt(r) instead (arXiv 2312.03732), for large ranks.
        modules_to_save: names of layers to train whole beside the adapters, such as [lm_head].
        init: how the adapters begin: "default" and "gaussian" (A random, B zero), or "orthogonal" (A and B orthogonal
            to each other, `r` even). Each begins as the base itself.
        target_parameters: names of further weights that get an adapter but are not layers themselves, such as
            [mlp.experts.gate_up_proj, mlp.experts.down_proj]: rank r for each expert, without dropout.

    Raises:
        ValueError: a number is out of its range, or two settings do not go together.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    target_parameters: list[str] | None = None
    dora: bool = False
    rslora: bool = False
    modules_to_save: list[str] | None = None
    init: str = "default"

    def __post_init__(self) -> None:
        require_at_least_1(**{"lora.r": self.r})
        require_positive(**{"lora.alpha": self.alpha})
        require_shares(**{"lora.dropout": self.dropout})
        if self.init not in INITS:
            raise ValueError(
                f"lora.init must be one of {', '.join(INITS)}, got {self.init!r}: with peft's others the adapters do "
                "not begin as the base itself, or change it, so that the adapter off is no reference, and a saved one "
                "does not fit the base."
            )
        if self.init == "orthogonal" and self.r % 2:
            raise ValueError(f'lora.init: "orthogonal" needs an even lora.r, got {self.r}')
        if self.dora and self.target_parameters:
            raise ValueError("lora.dora is for layers: peft has none for lora.target_parameters. Drop one of the two.")


@dataclass
class PolicySpec:
    """A causal language model and how it is trained.

    Without `lora` and `adapter` all weights are trained. Dropout inside the base is always off: the
    policy's log-probs are compared with the reference's, and noise on one side would count as reward.

    Args:
        model: a hub id, a local folder, the path of a GGUF file, or `package://PACKAGE/FILE` for a file
            inside an installed Python package. A GGUF file is converted to safetensors once, in the cache.
        revision: branch, tag or commit of a hub id.
        dtype: dtype of the base's weights; "auto" takes the dtype they are stored in. Weights that are trained in half
            precision have float32 copies in the optimizer, so that small steps count.
        quantization: "nf4" loads the frozen base in 4 bits with double quantisation (QLoRA, arXiv 2305.14314), "int8"
            and "fp8" in 8 bits, with torchao (`lit-align[torchao]`). Products are computed in `dtype`.
        lora: fresh adapters to train.
        adapter: folder or hub id of a saved adapter to train further, in place of `lora`.
        gradient_checkpointing: true recomputes activations in the backward pass: less memory, about a third slower.
            "offload" also keeps each layer's input in the host's memory meanwhile: for long rows on a small GPU.
        compile: compile the layers with `torch.compile`: about a minute at the first step, then less time and memory
            a step. For runs of hundreds of steps; not with "offload".
        kernels: "liger" takes Liger-Kernel's RMSNorm, rotary positions and gated MLP on a GPU (`lit-align[liger]`).
        attn_implementation: such as "sdpa", "eager" or "flash_attention_2"; None takes the model's default.
        trust_remote_code: run Python code that comes with the model. Off unless you have read that code.
        chat_template: a Jinja file or the template's text, in place of the tokenizer's own.
        chat_template_kwargs: values for variables of the chat template, such as `enable_thinking: false`, in training,
            sampling and measuring. A row's own values take precedence. A saved tokenizer keeps them.
    """

    model: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Quantization | None = None
    lora: LoraSpec | None = None
    adapter: str | None = None
    gradient_checkpointing: bool | Literal["offload"] = False
    compile: bool = False
    kernels: Literal["liger"] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def may_offload(self) -> bool:
        """Whether `gradient_checkpointing: offload` in place of true would be taken and would save memory."""
        return self.gradient_checkpointing is True and not self.compile
