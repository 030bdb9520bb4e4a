"""Samplers: candidates from the policy's current weights."""

from lit_align.sampling.base import Sampler
from lit_align.sampling.generate import TransformersSampler

__all__ = ["Sampler", "TransformersSampler"]
