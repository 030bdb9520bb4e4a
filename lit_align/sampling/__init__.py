"""Samplers: candidates from the policy's current weights."""

from lit_align.sampling.base import Sampler, SamplingRequest
from lit_align.sampling.generate import TransformersSampler
from lit_align.sampling.publish import LoraPublisher, Publisher
from lit_align.sampling.server import ServerSampler
from lit_align.sampling.vllm import VLLMSampler

__all__ = [
    "LoraPublisher",
    "Publisher",
    "Sampler",
    "SamplingRequest",
    "ServerSampler",
    "TransformersSampler",
    "VLLMSampler",
]
