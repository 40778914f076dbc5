"""The key-value cache of a decode loop: all that touches transformers' cache API, which moves between minors.

`DynamicCache` copies every key and value each time a token is appended. `RoomyLayer` writes into
room made beforehand, and drops rows and left padding without copying what stays. Layers that keep
something else than all keys (sliding windows, states) stay transformers' own.

Shapes: B rows, H key-value heads, Q new positions, L cached positions, D head size; R and C are
the rows and positions there is room for.
"""

from typing import cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

SPARE = 64
"""Positions of room made at a time: what is cached is copied once in so many tokens."""


class RoomyLayer(DynamicLayer):
    """Keys and values of one attention layer, as views of buffers with room to spare."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rooms_RHCD: list[Tensor] = []
        self._first, self._end = 0, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends keys_BHQD and values_BHQD; returns all cached ones."""
        rows, _, new, _ = key_states.shape
        if not self.is_initialized:
            self._rooms_RHCD = [key_states[:, :, :0], value_states[:, :, :0]]
            self.is_initialized = True
        if self._end + new > self._rooms_RHCD[0].shape[2]:
            self._move(torch.arange(rows, device=key_states.device), spare=new + SPARE)
        for room_RHCD, states_BHQD in zip(self._rooms_RHCD, (key_states, value_states), strict=True):
            room_RHCD[:rows, :, self._end : self._end + new] = states_BHQD
        self._end += new
        self._show(rows)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Cached positions."""
        return self._end - self._first

    def batch_select_indices(self, indices: Tensor) -> None:
        """Makes row `indices[b]` row b; a row that stays where it is isn't copied."""
        rows, used = len(indices), slice(self._first, self._end)
        if rows > self._rooms_RHCD[0].shape[0]:
            self._move(indices, spare=SPARE)
        else:
            moved = (indices != torch.arange(rows, device=indices.device)).nonzero().squeeze(-1)
            for room_RHCD in self._rooms_RHCD:
                room_RHCD[moved, :, used] = room_RHCD[indices[moved], :, used]
        self._show(rows)

    def cut_left(self, columns: int) -> None:
        """Forgets the oldest `columns` positions of every row."""
        self._first += columns
        self._show(self.keys.shape[0])

    def _move(self, rows_B: Tensor, spare: int) -> None:
        """Into new buffers with `spare` free positions, leaving behind what isn't cached any more."""
        used = self.get_seq_length()
        for i, room_RHCD in enumerate(self._rooms_RHCD):
            _, heads, _, size = room_RHCD.shape
            self._rooms_RHCD[i] = room_RHCD.new_empty(len(rows_B), heads, used + spare, size)
            self._rooms_RHCD[i][:, :, :used] = room_RHCD[rows_B, :, self._first : self._end]
        self._first, self._end = 0, used

    def _show(self, rows: int) -> None:
        self.keys, self.values = (
            room_RHCD[:rows, :, self._first : self._end] for room_RHCD in self._rooms_RHCD
        )


def new_cache(config: PretrainedConfig) -> Cache:
    """An empty cache for a model of this configuration."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: Cache, indices_B: Tensor) -> None:
    """Makes row `indices_B[b]` of the cache its row b; they may repeat, be fewer or more than before."""
    cache.batch_select_indices(indices_B)


def can_cut_left(cache: Cache) -> bool:
    """Whether positions can be taken out on the left; not where a layer keeps a window or a state."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def cut_left(cache: Cache, columns: int) -> None:
    """Takes the oldest `columns` positions out of every row: padding, which nothing attends to."""
    for layer in cache.layers:
        cast(RoomyLayer, layer).cut_left(columns)


def decode_mask(model: PreTrainedModel, cache: Cache, mask_BL: Tensor) -> Tensor:
    """The attention mask for one new token a row, given which positions are real (1) and which padding (0).

    Grouped-query attention gets it as biases, even if there is no padding: without a mask
    transformers asks torch for `enable_gqa`, which for one token in bfloat16 on a CPU takes six times
    as long as its own way with one.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    grouped = getattr(config, "num_key_value_heads", heads) != heads
    if not (grouped and config._attn_implementation == "sdpa" and can_cut_left(cache)):
        return mask_BL
    bias_BL = (1 - mask_BL).to(model.dtype) * torch.finfo(model.dtype).min
    return bias_BL[:, None, None, :]
