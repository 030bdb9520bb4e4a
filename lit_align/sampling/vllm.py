"""The sampler that is vLLM inside this process."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lit_align.records import Candidate
from lit_align.sampling.base import SamplingRequest, candidate_of_ids
from lit_align.sampling.engine import EngineSampler, adapter_digest, save_adapter


class VLLMSampler(EngineSampler):
    """Samples with vLLM on the GPU of the run, for one process. Needs `pip install lit-align[vllm]`.

    The engine holds a second copy of the base and gets the policy's LoRA adapter whenever that has changed; vLLM takes
    neither DoRA nor `modules_to_save`. Between calls it sleeps: its weights move to the host's memory and its cache is
    dropped, so training has the GPU.

    It has been tested against a stand-in for vLLM that records the calls, not on a GPU.

    Args:
        model: hub id or folder of the policy's base; null takes what the policy's adapter names as its base.
        gpu_memory_utilization: share of the GPU's memory for vLLM while it is awake, in (0, 1); training's own
            memory is not given back for it.
        sleep: whether it sleeps between calls. Without, it keeps its share of the memory, for GPUs that have room for
            both, and each call begins at once.
        engine: more arguments of `vllm.LLM`, such as `{max_model_len: 2048, dtype: bfloat16}`.
        kwargs: those of :class:`~lit_align.sampling.base.TokenSampler`: how many candidates, and how they are drawn.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        gpu_memory_utilization: float = 0.4,
        sleep: bool = True,
        engine: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < gpu_memory_utilization < 1:
            raise ValueError(f"gpu_memory_utilization must be in (0, 1), got {gpu_memory_utilization}")
        self._model = model
        self._sleeps = sleep
        self._arguments = {"gpu_memory_utilization": gpu_memory_utilization, **(engine or {})}
        self._llm: Any = None
        self._adapter: Any = None
        self._digest: str | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def sample(self, request: SamplingRequest) -> list[tuple[Candidate, ...]]:
        """See :meth:`Sampler.sample`. `progress` is called once, at the end.

        Raises:
            ImportError: vLLM is not installed.
            ValueError: the policy has no adapter.
        """
        vllm = _vllm()
        num_draws, copies = self.count_draws_and_copies(request)
        stop_ids = request.stop_ids
        tokenizer = request.tokenizer
        digest = adapter_digest(request.model)
        prompts = [{"prompt_token_ids": list(ids)} for ids in request.prompt_ids]
        parameters = [vllm.SamplingParams(**self.settings(num_draws, stop_ids, seed)) for seed in request.seeds]
        with isolate_rng():  # an engine inside this process seeds torch
            self._wake(vllm, request.model)
            try:
                self._publish(request.model, digest)
                outputs = self._llm.generate(prompts, parameters, lora_request=self._adapter, use_tqdm=False)
            finally:
                if self._sleeps:
                    self._llm.sleep(level=1)
        request.report(num_draws * copies * len(prompts))
        return [
            tuple(candidate_of_ids(list(answer.token_ids), stop_ids, tokenizer) for answer in output.outputs) * copies
            for output in outputs
        ]

    def _wake(self, vllm: Any, policy: Any) -> None:
        if self._llm is not None:
            if self._sleeps:
                self._llm.wake_up()
            return
        config = policy.peft_config[policy.active_adapter]
        arguments = {"enable_lora": True, "max_lora_rank": _room_for(config.r), **self._arguments}
        base = self._model or config.base_model_name_or_path
        self._llm = vllm.LLM(model=base, enable_sleep_mode=self._sleeps, **arguments)

    def _publish(self, policy: nn.Module, digest: str) -> None:
        """Gives the engine the current adapter under a new id, and drops the older one."""
        if digest == self._digest:
            return
        older = self._folder
        number = 1
        if self._adapter is not None:
            number = self._adapter.lora_int_id + 1
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
        self._folder = tempfile.TemporaryDirectory(prefix="lit-align-adapter-")
        save_adapter(policy, Path(self._folder.name))
        request = importlib.import_module("vllm.lora.request").LoRARequest
        self._adapter = request(f"lit-align-{number}", number, self._folder.name)
        self._digest = digest
        if older is not None:
            older.cleanup()


def _room_for(rank: int) -> int:
    """The smallest of vLLM's rank limits that is at least `rank`."""
    return next((limit for limit in (8, 16, 32, 64, 128, 256, 320, 512) if rank <= limit), rank)


def _vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ImportError("VLLMSampler needs vLLM and a GPU: pip install 'lit-align[vllm]'") from error
