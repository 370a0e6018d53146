"""The frozen trunk's activations of sequences that are seen again and again, computed once."""

from __future__ import annotations

import psutil
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pipeline.lm.models import base_of
from pipeline.lm.route import hidden_states
from pipeline.lm.scoring import TokenBatch, predicting_states
from pipeline.lm.trunk import SplitDecoder, lowest_trained_layer

_MOST = 4 * 2**30  # bytes kept, and at most a quarter of what memory is free


class CachedStates:
    """A policy's final hidden states, over trunk activations that are computed once a sequence.

    They are kept in the processor's memory, as far as there is room, and beyond computed anew.
    Without frozen lower layers, or where the decoder cannot be cut, all of it runs every time.
    """

    def __init__(self, policy: nn.Module, longest: int, most: int = _MOST) -> None:
        """``policy`` is a causal LM or a PEFT model around one, prepared for training.

        Args:
            longest: tokens of the longest sequence to expect. most: bytes to keep.
        """
        self._policy = policy
        base = base_of(policy)
        self._split = SplitDecoder.build(base, lowest_trained_layer(base), longest)
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._room = min(most, psutil.virtual_memory().available // 4)

    @property
    def has_trunk(self) -> bool:
        """Whether there are activations to keep."""
        return self._split is not None

    def __len__(self) -> int:
        return len(self._kept)

    def predicting(self, batch: TokenBatch) -> Tensor:
        """Final hidden states ``(N, d)`` that predict the N completion tokens of ``batch``."""
        if self._split is None:
            hidden = hidden_states(self._policy, batch.sequences)
        else:
            hidden = self._split.upper(self._lower(self._split, batch))
        return predicting_states(hidden, batch)[batch.mask]

    def _lower(self, split: SplitDecoder, batch: TokenBatch) -> Tensor:
        """The trunk's activations ``(B, L, d)``; what stands at padding no real token sees."""
        device = batch.sequences.device
        lengths = (batch.prompt_lengths + batch.mask.sum(1)).tolist()
        rows = batch.sequences.tolist()
        keys = [tuple(row[:length]) for row, length in zip(rows, lengths, strict=True)]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [i for i, key in enumerate(keys) if key not in found]
        if missing:
            made = split.lower(batch.rows(torch.tensor(missing, device=device)).sequences)
            for i, states in zip(missing, made, strict=True):
                found[keys[i]] = self._keep(keys[i], states[: lengths[i]])
        return pad_sequence([found[key].to(device) for key in keys], batch_first=True)

    def _keep(self, key: tuple[int, ...], states: Tensor) -> Tensor:
        size = states.numel() * states.element_size()
        if size > self._room:
            return states
        self._room -= size
        self._kept[key] = states.to("cpu", copy=True)
        return self._kept[key]
