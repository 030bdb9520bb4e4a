"""The policy: loading, adapters, log-probs, and the reference it is compared with."""

from lit_align.policy.cache import cache_dir
from lit_align.policy.forward import CompletionForward, batch_logps
from lit_align.policy.load import load_model, load_tokenizer
from lit_align.policy.logps import TokenLogps, plain_logps, sequence_logps
from lit_align.policy.reference import AdapterCopy, AdapterOff, ModelReference, Reference
from lit_align.policy.shared_logps import shared_logps
from lit_align.policy.spec import LoraSpec, PolicySpec

__all__ = [
    "AdapterCopy",
    "AdapterOff",
    "CompletionForward",
    "LoraSpec",
    "ModelReference",
    "PolicySpec",
    "Reference",
    "TokenLogps",
    "batch_logps",
    "cache_dir",
    "load_model",
    "load_tokenizer",
    "plain_logps",
    "sequence_logps",
    "shared_logps",
]
