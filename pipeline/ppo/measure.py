"""How much of a rollout is at hand at once: completions, or tokens.

Rows of like length stand together, so a part of so many *completions* holds few tokens where they
are short and many where they are long, and the longest decide what fits into memory. With
``microbatch_tokens`` a part holds as many rows as make that many tokens. Which rows share a part
changes no gradient: the loss of a part is its share of a sum over the minibatch's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.ppo.config import PPOConfig


@dataclass(frozen=True)
class Measure:
    """What limits a part of a batch, and how rows are cut into parts by it.

    Attributes:
        tokens: the limit counts tokens, prompt and completion, rather than completions.
        packed: padding does not count, as there is none.
    """

    tokens: bool = False
    packed: bool = False

    @classmethod
    def of(cls, args: PPOConfig) -> Measure:
        """The one that ``args`` asks for."""
        return cls(args.microbatch_tokens is not None, args.packing)

    @property
    def unit(self) -> str:
        """What the limit counts, as messages call it."""
        return "tokens" if self.tokens else "completions"

    def size(self, lengths: Sequence[int]) -> int:
        """Of one part of rows of these ``lengths``."""
        if not self.tokens:
            return len(lengths)
        return sum(lengths) if self.packed else len(lengths) * max(lengths, default=0)

    def smallest(self, lengths: Sequence[int]) -> int:
        """The limit below which no part gets smaller: that of one row, the longest."""
        return max(lengths) if self.tokens else 1

    def cut(self, lengths: Sequence[int], limit: int, count: int = 1) -> list[int]:
        """How many rows each part takes, in their order; a row beyond the limit stands alone.

        Args:
            lengths: of all rows; where they ascend the parts have the least padding.
            count: parts to make at least, as far as there are rows: the largest are halved.
        """
        sizes: list[int] = []
        start = 0
        for end in range(1, len(lengths) + 1):
            if end - start > 1 and self.size(lengths[start:end]) > limit:
                sizes.append(end - 1 - start)
                start = end - 1
        sizes.append(len(lengths) - start)
        while len(sizes) < min(count, len(lengths)):
            self._halve_largest(lengths, sizes)
        return sizes

    def _halve_largest(self, lengths: Sequence[int], sizes: list[int]) -> None:
        costs, start = [], 0
        for rows in sizes:
            costs.append(self.size(lengths[start : start + rows]) if rows > 1 else 0)
            start += rows
        part = costs.index(max(costs))
        rows = sizes[part]
        sizes[part : part + 1] = [-(-rows // 2), rows // 2]


def padding_share(lengths: Sequence[int], sizes: Sequence[int], packed: bool = False) -> float:
    """Of all token places that parts of rows have, those that hold padding.

    Args:
        lengths: of the rows in their order. sizes: how many rows each part takes.
    """
    places, start = 0, 0
    for rows in sizes:
        places += Measure(True, packed).size(lengths[start : start + rows])
        start += rows
    return 1 - sum(lengths) / places
