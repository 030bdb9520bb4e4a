"""Rows to records to pairs to tokens to batches, from static data and from the policy's own samples."""

from lit_align.batch import TokenizedPair
from lit_align.data.datamodule import AlignmentDataModule
from lit_align.data.encoder import Encoder
from lit_align.data.filters import Filtered
from lit_align.data.loader import TrainFeed
from lit_align.data.selection import (
    AllAboveMargin,
    BestRandom,
    BestWorst,
    MostDifferent,
    PairSelector,
    QualityDiversity,
)
from lit_align.rows.loading import load_records, load_sets, merge_sets
from lit_align.rows.reading import BadRow

__all__ = [
    "AlignmentDataModule",
    "AllAboveMargin",
    "BadRow",
    "BestRandom",
    "BestWorst",
    "Encoder",
    "Filtered",
    "MostDifferent",
    "PairSelector",
    "QualityDiversity",
    "TokenizedPair",
    "TrainFeed",
    "load_records",
    "load_sets",
    "merge_sets",
]
