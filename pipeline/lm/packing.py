"""Rows one behind the other, without padding: one long row, in which positions begin anew.

A decoder given such positions, and no mask and no cache, keeps the rows apart: flash attention
runs over each by its own, torch's fused and the plain one get a mask with a block for each row
(``transformers.masking_utils.find_packed_sequence_indices``). That holds for attention only:
layers that carry a state along, or that have positions of their own, would mix the rows, so that
what packs first tries it on the model at hand (:func:`pipeline.ppo.packed.check_packing`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.lm.scoring import TokenBatch


@dataclass(frozen=True)
class Packed:
    """The tokens of B rows, one row behind the other.

    Attributes:
        tokens, positions: ``(1, N)``; positions count from 0 in every row.
        real: bool ``(B, L)``, True where a padded row's token is among them, in this order.
        predicting: ``(n,)`` indices among the N, of what predicts each completion token.
    """

    tokens: Tensor
    positions: Tensor
    real: Tensor
    predicting: Tensor


def pack(batch: TokenBatch, with_last: bool = False) -> Packed:
    """The rows of ``batch`` one behind the other.

    Args:
        with_last: take also the last token of each row, which predicts none of the row's.
    """
    device = batch.sequences.device
    fed = batch.prompt_lengths + batch.mask.sum(1) - int(not with_last)
    positions = torch.arange(batch.sequences.shape[1], device=device).expand_as(batch.sequences)
    real = positions < fed[:, None]
    first = (fed.cumsum(0) - fed + batch.prompt_lengths - 1)[:, None]
    predicting = first + torch.arange(batch.mask.shape[1], device=device)
    return Packed(batch.sequences[real][None], positions[real][None], real, predicting[batch.mask])
