"""One rollout, many processes: the same random numbers and minibatches as with one.

The processes hold equal parts of a rollout's rows, process p the p-th. What a row draws, and which
rows make a minibatch, is a function of the seed and of all rows, never of how many processes share
them: two processes train what one would, up to the order in which floats are added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from pipeline.lm.scoring import TokenBatch
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.rollout import Rollout, schedule

# -- prompts -------------------------------------------------------------------------------------


class RolloutSampler(Sampler[int]):
    """Prompt indices rollout by rollout, each rollout's repeated for all its microbatches.

    The Trainer asks for one batch per microbatch; only a rollout's first is sampled from, the
    others stand for passes over the same completions. The order is a function of seed and epoch,
    so a resumed run draws the prompts that the uninterrupted one would have.
    """

    def __init__(self, prompts: int, rollout: int, repeats: int, seed: int) -> None:
        """``rollout`` prompts over all processes, ``repeats`` microbatches for each."""
        self.prompts, self.rollout, self.repeats, self.seed = prompts, rollout, repeats, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order :meth:`__iter__` gives."""
        self.epoch = epoch

    @property
    def rollouts(self) -> int:
        """Rollouts in one pass over the prompts; at least one, by repeating prompts."""
        return max(1, self.prompts // self.rollout)

    def __len__(self) -> int:
        return self.rollouts * self.rollout * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = []
        while len(order) < self.rollouts * self.rollout:
            order += torch.randperm(self.prompts, generator=generator).tolist()
        for start in range(0, self.rollouts * self.rollout, self.rollout):
            for _ in range(self.repeats):
                yield from order[start : start + self.rollout]


# -- random numbers --------------------------------------------------------------------------------


def uniform_draws(lengths: Sequence[int], rows: Sequence[int], steps: int, seed: int) -> Tensor:
    """The numbers that choose the tokens of ``rows``, whoever draws for the others.

    A row's depend on all rows of the rollout, and on nothing of how these are divided over
    processes or batches. They are drawn on the processor, so that every device gets the same.

    Args:
        lengths: prompt tokens of every row of all processes. rows: this process's.
        steps: longest completion, in tokens.

    Returns:
        ``(len(rows), steps)`` in [0, 1), float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(steps, len(lengths), generator=generator)
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    column = {row: position for position, row in enumerate(order)}
    return table[:, [column[row] for row in rows]].T


def rollout_draws(lengths: Sequence[int], args: PPOConfig, seed: int) -> Tensor:
    """:func:`uniform_draws` of this process's part of a rollout, given its prompts' lengths."""
    own = torch.tensor(lengths, device=args.device)
    everyone = torch.cat(_gather(own)).tolist()
    first = args.process_index * len(lengths)
    rows = range(first, first + len(lengths))
    return uniform_draws(everyone, rows, args.response_length, seed)


def evaluation_part(lengths: Sequence[int], args: PPOConfig) -> tuple[list[int], Tensor]:
    """This process's part of all prompts: its rows, and what they draw.

    The rows of P processes are dealt in turn; :func:`whole_evaluation` puts them back in order.

    Every process gets equally many, or some would wait in a collective that others never reach:
    where they do not go around, prompts are repeated, and the repetitions do not count.

    Args:
        lengths: tokens of every prompt.
    """
    rows = range(args.process_index, len(lengths), args.world_size)
    share = -(-len(lengths) // args.world_size)
    padded = [*rows, *[0] * (share - len(rows))]
    return padded, uniform_draws(lengths, padded, args.response_length, args.seed)


def whole_evaluation(gathered: Tensor, count: int) -> Tensor:
    """The column ``(count,)`` of all prompts, in their order, from every process's part.

    Args:
        gathered: ``(P, share)``, the parts that :func:`evaluation_part` gave, repetitions too.
    """
    return gathered.T.flatten()[:count]


# -- minibatches -----------------------------------------------------------------------------------


def share(rollout: Rollout, args: PPOConfig, seed: int) -> tuple[Rollout, list[list[Tensor]]]:
    """The rows that this process learns from, and its microbatches of them.

    The minibatches are those that one process makes of all rows. Each process takes every P-th row
    of a minibatch in order of length, and fetches the rows it lacks from the process that has them.

    Returns:
        the rollout of fetched rows (without their texts), and the row indices of every microbatch,
        minibatch by minibatch.
    """
    own = (rollout.batch.prompt_lengths + rollout.batch.mask.sum(1)).cpu()
    if args.world_size == 1:
        return rollout, schedule(own, args, seed)
    device = rollout.batch.mask.device
    lengths = torch.cat(_gather(own.to(device))).cpu()
    plans = [schedule(lengths, args, seed, rank) for rank in range(args.world_size)]
    wanted = [torch.cat([row for parts in plan for row in parts]).unique() for plan in plans]
    mine = args.process_index
    fetched = _fetch_rows(rollout, _Exchange.build(wanted, mine, len(own), device))
    place = torch.zeros(len(lengths), dtype=torch.long)  # of a row among the fetched
    place[wanted[mine]] = torch.arange(len(wanted[mine]))
    return fetched, [[place[index] for index in parts] for parts in plans[mine]]


@dataclass(frozen=True)
class _Exchange:
    """Which rows go where: every process knows all processes' needs, so nobody has to ask."""

    send: Tensor  # indices of own rows, those for process 0 first
    sent: list[int]  # how many of them for each process
    received: list[int]  # how many rows come from each

    @classmethod
    def build(cls, wanted: list[Tensor], mine: int, rows: int, device: torch.device) -> _Exchange:
        """``wanted``: ascending global rows of each process; each owns ``rows`` in a row."""
        own = [w[(w >= mine * rows) & (w < (mine + 1) * rows)] - mine * rows for w in wanted]
        owners = torch.bincount(wanted[mine] // rows, minlength=len(wanted))
        return cls(torch.cat(own).to(device), [len(w) for w in own], owners.tolist())

    def __call__(self, values: Tensor) -> Tensor:
        """``(rows, …)`` own values to the wanted rows' ``(N, …)``, in their order."""
        shape = values.shape[1:]
        out = values[self.send].contiguous().flatten(1).view(torch.uint8)
        received = out.new_empty(sum(self.received), out.shape[1])
        dist.all_to_all_single(received, out, self.received, self.sent)
        return received.view(values.dtype).view(-1, *shape)


def _fetch_rows(rollout: Rollout, exchange: _Exchange) -> Rollout:
    batch, old = rollout.batch, rollout.old
    sizes = torch.tensor([*batch.sequences.shape[1:], *batch.mask.shape[1:]])
    sizes = torch.stack(_gather(sizes.to(batch.mask.device))).amax(0)
    width, steps = int(sizes[0]), int(sizes[1])

    def tokens(values: Tensor, length: int = steps) -> Tensor:
        """``(B, T, …)`` values of own rows, as wide as every process's."""
        padding = values.new_zeros(len(values), length - values.shape[1], *values.shape[2:])
        return exchange(torch.cat([values, padding], 1))

    return replace(
        rollout,
        completions=[],
        batch=TokenBatch(
            tokens(batch.sequences, width),
            exchange(batch.prompt_lengths[:, None])[:, 0],
            tokens(batch.completion_ids),
            tokens(batch.mask),
        ),
        trunk=None if rollout.trunk is None else tokens(rollout.trunk, width),
        scores=exchange(rollout.scores[:, None])[:, 0],
        old=type(old)(*(tokens(column) for column in old)),
        token_rewards=tokens(rollout.token_rewards),
        advantages=tokens(rollout.advantages),
        returns=tokens(rollout.returns),
        known_values=None if rollout.known_values is None else tokens(rollout.known_values),
        ref_states=None if rollout.ref_states is None else tokens(rollout.ref_states),
        learns=None if rollout.learns is None else tokens(rollout.learns),
    )


def _gather(values: Tensor) -> list[Tensor]:
    """The equally shaped tensors of all processes, by rank."""
    if not dist.is_initialized():
        return [values]
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return parts
