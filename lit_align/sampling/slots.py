"""A KV cache whose rows come and go while the others stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lit_align.policy.shared_prompt import FULL, SLIDING, layer_kinds

_ROOM = 64
"""Columns that the cache grows by, at least."""


class SlotLayer(DynamicLayer):
    """Keys and values of one layer, in tensors with room for more rows and more columns.

    All rows end in the same column; shorter ones have padding in front. A new token is written into the next column,
    where the library's own layer copies everything to make room for it.
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
        start, self.width = self.width, self.width + key_states.shape[2]
        for held, new in zip(self._held, (key_states, value_states), strict=True):
            held[: self.rows, :, start : self.width] = new
        keys, values = (held[: self.rows, :, : self.width] for held in self._held)
        return keys, values

    def make_room(self, rows: int, columns: int, first: int, like: Sequence[Tensor] | None = None) -> None:
        """Room for `rows` and `columns` in all.

        Args:
            rows: in all.
            columns: in all, after the first ones are gone.
            first: columns in front that no row needs any more.
            like: keys and values of the same layer, for device, dtype and sizes, where no row is left of those before;
                None takes those that are here.
        """
        kept = [] if like else [held[: self.rows, :, first : self.width] for held in self._held]
        # zeros: padding is masked, but 0 times what lies in fresh memory may be NaN
        made = [one.new_zeros(rows, one.shape[1], columns, one.shape[3]) for one in like or kept]
        for new, old in zip(made, kept, strict=False):
            new[: self.rows, :, : old.shape[2]] = old
        self._held, self.is_initialized = made, True
        self.width -= first

    def admit(self, states: Sequence[Tensor], index: Tensor, width: int) -> None:
        """Adds rows.

        Args:
            states: keys and values, of which the last columns may be all that the layer needs.
            index: those of their rows that are added.
            width: columns that they stand for, not more than there are here, unless this is empty.
        """
        if not self.rows:
            self.width = width
        end, new = self.rows + len(index), states[0].shape[2]
        for held, state in zip(self._held, states, strict=True):
            held[self.rows : end, :, : self.width - new] = 0
            held[self.rows : end, :, self.width - new : self.width] = state[index]
        self.rows = end

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Copies rows onto others, and keeps the first `rows`."""
        for held in self._held:
            held[target] = held[source]
        self.rows = rows


class SlotCache(Cache):
    """The cache of the rows that are being sampled.

    Args:
        layers: how many the model has.
        rows: the most that there will be at once.
    """

    def __init__(self, layers: int, rows: int) -> None:
        self._slots = [SlotLayer() for _ in range(layers)]
        super().__init__(layers=list(self._slots))
        self._most, self._columns = rows, 0

    def admit(self, prefilled: DynamicCache, index: Tensor) -> None:
        """Adds the rows `index` of a cache that holds prompts, none of them wider than the rows that are here."""
        layers: Sequence[Any] = prefilled.layers
        states, width = [[layer.keys, layer.values] for layer in layers], prefilled.get_seq_length()
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
        """Fills the rows up to so many columns, with none to spare."""
        for slot in self._slots:
            slot.make_room(self._most, columns, 0)
            slot.width = columns
        self._columns = columns

    def before_token(self, mask: Tensor) -> Tensor:
        """Makes room for one more column, where there is none.

        Args:
            mask: [B, columns] of the rows; 0 at padding.

        Returns:
            The mask without the columns that are padding in all rows and were given up to make room.
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
    """Columns that a cache is made with where so many are in use."""
    return columns + max(_ROOM, columns // 4)


def fits_slots(config: PretrainedConfig) -> bool:
    """Whether a model's layers all keep the keys and values of every token, or need those of a window of them."""
    text = config.get_text_config(decoder=True)
    plain = {DynamicLayer, DynamicSlidingWindowLayer}
    return layer_kinds(text) <= {FULL, SLIDING} and {type(layer) for layer in DynamicCache(config=text).layers} <= plain
