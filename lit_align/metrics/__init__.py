"""The two characteristics of candidates, diversity and quality (arXiv 2508.10530), as metrics."""

from lit_align.metrics.base import CandidateMetric, PromptMean
from lit_align.metrics.characteristics import Characteristics, characteristics, of_equal_size
from lit_align.metrics.difference import Difference, EmbeddingDifference, NgramDifference
from lit_align.metrics.diversity import DistinctN, Duplicates, MeanDifference, NearDuplicates, SelfBLEU
from lit_align.metrics.embedder import Embedder, TransformersEmbedder
from lit_align.metrics.length import CandidateCount, EmptyShare, LengthSpread, MeanLength
from lit_align.metrics.quality import BestScore, LogLikelihoodSpread, MeanScore, ScoreSpread
from lit_align.metrics.words import words

__all__ = [
    "BestScore",
    "CandidateCount",
    "CandidateMetric",
    "Characteristics",
    "Difference",
    "DistinctN",
    "Duplicates",
    "Embedder",
    "EmbeddingDifference",
    "EmptyShare",
    "LengthSpread",
    "LogLikelihoodSpread",
    "MeanDifference",
    "MeanLength",
    "MeanScore",
    "NearDuplicates",
    "NgramDifference",
    "PromptMean",
    "ScoreSpread",
    "SelfBLEU",
    "TransformersEmbedder",
    "characteristics",
    "of_equal_size",
    "words",
]
