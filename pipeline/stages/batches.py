"""Batches of texts of like length, which need little padding, in random order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers import Trainer

_POOL = 50  # batches that are made of rows drawn at random and then put in order of length
_ROUNDING = 1e-6


def epoch_of(trainer: Trainer) -> Callable[[], int]:
    """Says which epoch begins or goes on.

    For samplers with an order an epoch: the loader of several processes that is to skip what an
    interrupted run has learnt does not pass ``set_epoch`` on to them.
    """
    return lambda: int((trainer.state.epoch or 0) + _ROUNDING)


class LikeLengths(Sampler[int]):
    """Every row once an epoch, those of like length in one batch, the batches in random order.

    In transformers' own order each pool of 50 batches goes from its longest texts to its shortest:
    a short run ends on short texts alone, and its model then ends its own too soon.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        """``lengths`` are the rows', in tokens; ``epoch`` is `epoch_of`: each has its order."""
        self.lengths, self.epoch = torch.tensor(lengths), epoch
        self.batch_size, self.seed = batch_size, seed

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order = torch.randperm(len(self.lengths), generator=generator)
        # What fills no batch comes last: in the middle it would shift the batches after it.
        whole = len(order) - len(order) % self.batch_size
        batches: list[torch.Tensor] = []
        for pool in order[:whole].split(_POOL * self.batch_size):
            by_length = pool[self.lengths[pool].argsort(stable=True)]
            batches.extend(by_length.split(self.batch_size))
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[number].tolist()
        yield from order[whole:].tolist()
