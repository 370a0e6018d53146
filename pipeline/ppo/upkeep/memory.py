"""Out of memory: half as many rows at once, and on. A run that barely fits is not lost.

The run stays the same up to rounding. In an update the halves' gradients add up to the whole's, as
the loss of a microbatch is its share of a sum over the minibatch's tokens; in sampling every row
has random numbers of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from pipeline.errors import UserError
from pipeline.output.console import say
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
    return replace(data, batch=batch, index=data.index[index], learns=learns, **shorter)


class Memory:
    """How many rows fit at once in each phase; it shrinks when memory runs out and is kept."""

    def __init__(self, processes: int, undo_minibatch: Callable[[], None]) -> None:
        """With several ``processes`` nothing is halved: one alone would wait for the others.

        ``undo_minibatch`` drops the gradients and metrics of the minibatch at hand.
        """
        self.processes = processes
        self._undo_minibatch = undo_minibatch
        self.limits: dict[str, int] = {}
        self._learned: list[Microbatch] = []

    def fit(
        self,
        phase: str,
        rows: int,
        call: Callable[[int], T],
        restart: Callable[[], None] | None = None,
    ) -> T:
        """``call(rows)``, with fewer rows as long as memory does not suffice.

        Args:
            phase: what messages call it and the limit is kept by: "generating", say.
            restart: undoes what a call that failed may have done.

        Raises:
            UserError: one row does not fit, or there are several processes.
        """
        rows = min(rows, self.limits.get(phase, rows))
        while True:
            try:
                return call(rows)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._give_up(phase, rows, error)
            # Out here the error is gone, and with it the frames that held the memory.
            if restart is not None:
                restart()
            gc.collect()
            clear_device_cache()
            half = -(-rows // 2)
            say(f"warning: out of memory {phase} {rows} completions at once; on with {half}")
            self.limits[phase] = rows = half

    def begin_minibatch(self) -> None:
        """The gradients are zero, or about to be: nothing to make again if memory runs out."""
        self._learned.clear()

    def learn(self, data: Microbatch, step: Callable[[Microbatch], Tensor]) -> Tensor:
        """Forward and backward passes of one microbatch, in parts that fit.

        A backward pass that ends half-way leaves part of its gradients behind, so all of this
        minibatch's are dropped then and made again.

        Args:
            step: makes a loss and adds its gradients.

        Returns:
            the microbatch's loss, without graph.
        """
        again: list[Microbatch] = []

        def passes(rows: int) -> Tensor:
            for earlier in again:
                self._parts(earlier, rows, step)
            return self._parts(data, rows, step)

        def start_again() -> None:
            self._undo_minibatch()
            again[:] = self._learned

        loss = self.fit("learning from", len(data.batch.mask), passes, start_again)
        self._learned.append(data)
        return loss

    def _parts(self, data: Microbatch, rows: int, step: Callable[[Microbatch], Tensor]) -> Tensor:
        count = len(data.batch.mask)
        if count <= rows:
            return step(data)
        parts = [step(_rows_of(data, start, start + rows)) for start in range(0, count, rows)]
        return torch.stack(parts).sum()

    def _give_up(self, phase: str, rows: int, error: BaseException) -> None:
        if self.processes > 1:
            raise UserError(
                f"out of memory {phase} {rows} completions at once on one of {self.processes}"
                " processes; lower per_device_train_batch_size (raise gradient_accumulation_steps"
                " as much, and the result is the same) or generation_batch_size"
            ) from error
        if rows == 1:
            raise UserError(
                f"out of memory {phase} a single completion; choose a smaller response_length or"
                " model, LoRA or bf16"
            ) from error
