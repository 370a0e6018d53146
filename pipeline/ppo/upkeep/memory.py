"""Out of memory: half as much at once, and on. A run that barely fits is not lost.

What is at once at hand is so many completions, or so many tokens (:mod:`pipeline.ppo.measure`). The
run stays the same up to rounding. In an update the halves' gradients add up to the whole's, as
the loss of a microbatch is its share of a sum over the minibatch's tokens; in sampling every row
has random numbers of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from pipeline.errors import UserError
from pipeline.output.console import say
from pipeline.ppo.measure import Measure
from pipeline.ppo.rollout import Microbatch

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """True for what the devices, the processor's allocator and Python raise for lack of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    lacking = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or any(words in str(error) for words in lacking)
    )


def _rows_of(data: Microbatch, start: int, stop: int) -> Microbatch:
    """The rows from ``start`` to before ``stop``, trimmed to their own longest.

    The normalizer stays that of the whole minibatch, so that the parts' losses add up.
    """
    index = torch.arange(start, min(stop, len(data.batch.mask)), device=data.batch.mask.device)
    batch = data.batch.rows(index)
    steps = batch.mask.shape[1]
    columns = ("old_logps", "ref_logps", "old_values", "advantages", "returns")
    shorter = {name: getattr(data, name)[index, :steps] for name in columns}
    learns = None if data.learns is None else data.learns[index, :steps]
    return replace(data, batch=batch, index=data.index[index], learns=learns, sizes=(), **shorter)


class Memory:
    """How much fits at once in each phase; it shrinks when memory runs out and is kept."""

    def __init__(
        self, processes: int, undo_minibatch: Callable[[], None], measure: Measure | None = None
    ) -> None:
        """With several ``processes`` nothing is halved: one alone would wait for the others.

        ``undo_minibatch`` drops the gradients and metrics of the minibatch at hand; ``measure`` is
        what scoring and learning are limited by, completions if ``None``.
        """
        self.processes = processes
        self.measure = measure or Measure()
        self._undo_minibatch = undo_minibatch
        self.limits: dict[str, int] = {}
        self._learned: list[Microbatch] = []

    def fit(
        self,
        phase: str,
        most: int,
        call: Callable[[int], T],
        restart: Callable[[], None] | None = None,
        least: int = 1,
        unit: str = "completions",
    ) -> T:
        """``call(most)``, with less at once as long as memory does not suffice.

        Args:
            phase: what messages call it and the limit is kept by: "generating", say.
            most: how much at once, in ``unit``. least: of a single row.
            restart: undoes what a call that failed may have done.

        Raises:
            UserError: one row does not fit, or there are several processes.
        """
        most = min(most, self.limits.get(phase, most))
        while True:
            try:
                return call(most)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._give_up(phase, f"{most} {unit}", most <= least, error)
            # Out here the error is gone, and with it the frames that held the memory.
            if restart is not None:
                restart()
            gc.collect()
            clear_device_cache()
            half = max(least, -(-most // 2))
            say(f"warning: out of memory {phase} {most} {unit} at once; on with {half}")
            self.limits[phase] = most = half

    def begin_minibatch(self) -> None:
        """The gradients are zero, or about to be: nothing to make again if memory runs out."""
        self._learned.clear()

    def learn(self, data: Microbatch, step: Callable[[Microbatch, bool], Tensor]) -> Tensor:
        """Forward and backward passes of one microbatch, in its parts, or in smaller ones that fit.

        A backward pass that ends half-way leaves part of its gradients behind, so all of this
        minibatch's are dropped then and made again.

        Args:
            step: makes a loss and adds its gradients, given a part and whether it is the last.

        Returns:
            the microbatch's loss, without graph.
        """
        again: list[Microbatch] = []

        def passes(limit: int) -> Tensor:
            for earlier in again:
                self._parts(earlier, limit, step)
            return self._parts(data, limit, step)

        def start_again() -> None:
            self._undo_minibatch()
            again[:] = self._learned

        most = max(map(self.measure.size, _parts_of(data)))
        least = max(self.measure.smallest(_lengths(each)) for each in (data, *self._learned))
        loss = self.fit("learning from", most, passes, start_again, least, self.measure.unit)
        self._learned.append(data)
        return loss

    def _parts(
        self, data: Microbatch, limit: int, step: Callable[[Microbatch, bool], Tensor]
    ) -> Tensor:
        sizes = [rows for part in _parts_of(data) for rows in self.measure.cut(part, limit)]
        if len(sizes) == 1:
            return step(data, True)
        ends = list(accumulate(sizes))
        losses = [
            step(_rows_of(data, start, end), end == ends[-1]) for start, end in pairwise([0, *ends])
        ]
        return torch.stack(losses).sum()

    def _give_up(self, phase: str, amount: str, single: bool, error: BaseException) -> None:
        if self.processes > 1:
            lower = (
                "lower microbatch_tokens"
                if self.measure.tokens
                else "lower per_device_train_batch_size (raise gradient_accumulation_steps as much,"
                " and the result is the same)"
            )
            raise UserError(
                f"out of memory {phase} {amount} at once on one of {self.processes} processes;"
                f" {lower} or generation_batch_size"
            ) from error
        if single:
            raise UserError(
                f"out of memory {phase} a single completion; choose a smaller response_length or"
                " model, LoRA or bf16"
            ) from error


def _lengths(data: Microbatch) -> list[int]:
    """Tokens of each row, prompt and completion."""
    return (data.batch.prompt_lengths + data.batch.mask.sum(1)).tolist()


def _parts_of(data: Microbatch) -> list[Sequence[int]]:
    """The lengths of the rows of each of its parts."""
    lengths = _lengths(data)
    ends = list(accumulate(data.sizes or (len(lengths),)))
    return [lengths[start:end] for start, end in pairwise([0, *ends])]
