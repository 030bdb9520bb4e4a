"""A KV cache whose rows come and go while the others stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_KINDS = {"full_attention", "sliding_attention"}
_ROOM = 64
"""Columns that the cache grows by, at least."""


class SlotLayer(DynamicLayer):
    """Keys and values of one layer, in tensors with room for more rows and more columns.

    All rows end in the same column; shorter ones have padding in front. A new token is written into the next column,
    while the library's own layer copies everything to make room for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.width = 0
        self._held: list[Tensor] = []

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.width

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends [B, heads, new, D] to each row and returns all columns in use."""
        start = self.width
        self.width = self.width + key_states.shape[2]
        for tensor, new in zip(self._held, (key_states, value_states), strict=True):
            tensor[: self.rows, :, start : self.width] = new
        keys, values = (tensor[: self.rows, :, : self.width] for tensor in self._held)
        return keys, values

    def make_room(self, rows: int, columns: int, first: int, like: Sequence[Tensor] | None = None) -> None:
        """Moves the rows to new tensors with room for `rows` rows and `columns` columns.

        Args:
            rows: rows in all.
            columns: columns in all, after the first ones are dropped.
            first: columns in front to drop, which no row needs any more.
            like: keys and values of the same layer, which give device, dtype and sizes if no row is left here; None
                takes the held tensors.
        """
        # Only the columns in use are copied, and they move `first` to the left: those dropped are padding in all
        # rows. The rest is zeros: padding is masked, but 0 times the content of fresh memory may be NaN.
        kept = [] if like else [tensor[: self.rows, :, first : self.width] for tensor in self._held]
        resized = [tensor.new_zeros(rows, tensor.shape[1], columns, tensor.shape[3]) for tensor in like or kept]
        for new, old in zip(resized, kept, strict=False):
            new[: self.rows, :, : old.shape[2]] = old
        self._held = resized
        self.is_initialized = True
        self.width -= first

    def admit(self, states: Sequence[Tensor], index: Tensor, width: int) -> None:
        """Adds rows.

        Args:
            states: keys and values; a layer with a sliding window may hold only the last columns.
            index: the rows of `states` to add.
            width: columns that `states` stand for, at most `self.width` unless no row is here.
        """
        if not self.rows:
            self.width = width
        end = self.rows + len(index)
        new = states[0].shape[2]
        for tensor, state in zip(self._held, states, strict=True):
            tensor[self.rows : end, :, : self.width - new] = 0
            tensor[self.rows : end, :, self.width - new : self.width] = state[index]
        self.rows = end

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Copies rows onto others, and keeps the first `rows`."""
        for tensor in self._held:
            tensor[target] = tensor[source]
        self.rows = rows


class SlotCache(Cache):
    """The cache of the rows that are being sampled.

    Args:
        layers: number of the model's layers.
        rows: the most rows at once.
    """

    def __init__(self, layers: int, rows: int) -> None:
        self._slots = [SlotLayer() for _ in range(layers)]
        super().__init__(layers=list(self._slots))
        self._most = rows
        self._columns = 0

    def admit(self, prefilled: DynamicCache, index: Tensor) -> None:
        """Adds the rows `index` of a cache that holds prompts, none of them wider than the rows here."""
        layers: Sequence[Any] = prefilled.layers
        states = [[layer.keys, layer.values] for layer in layers]
        width = prefilled.get_seq_length()
        if not self._slots[0].rows:
            self._columns = with_room(width)
            for slot, state in zip(self._slots, states, strict=True):
                slot.make_room(self._most, self._columns, 0, state)
        for slot, state in zip(self._slots, states, strict=True):
            slot.admit(state, index, width)

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Copies rows onto others, and keeps the first `rows`."""
        for slot in self._slots:
            slot.move(source, target, rows)

    def widen(self, columns: int) -> None:
        """Fills the rows up to `columns` columns, with none to spare."""
        for slot in self._slots:
            slot.make_room(self._most, columns, 0)
            slot.width = columns
        self._columns = columns

    def before_token(self, mask: Tensor) -> Tensor:
        """Makes room for one more column if there is none.

        Args:
            mask: [B, columns] of the rows; 0 at padding.

        Returns:
            The mask without the columns that were dropped because they are padding in all rows.
        """
        width = self._slots[0].width
        if width < self._columns:
            return mask
        first = int(mask.any(0).int().argmax())
        self._columns = with_room(width - first)
        for slot in self._slots:
            slot.make_room(self._most, self._columns, first)
        return mask[:, first:]


def with_room(columns: int) -> int:
    """The columns to allocate when `columns` are in use."""
    return columns + max(_ROOM, columns // 4)


def fits_slots(config: PretrainedConfig) -> bool:
    """Whether each of a model's layers keeps the keys and values of all tokens or of a sliding window of them."""
    text = config.get_text_config(decoder=True)
    plain = {DynamicLayer, DynamicSlidingWindowLayer}
    kinds = set(getattr(text, "layer_types", None) or ())
    return kinds <= _KINDS and {type(layer) for layer in DynamicCache(config=text).layers} <= plain
