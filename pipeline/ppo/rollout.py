"""One rollout: completions of the current policy with everything that the update needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from classic_rl.advantages import masked_whiten, mean_and_variance, moments
from classic_rl.losses import KLEstimator, kl_estimate
from pipeline.lm.generation import Completion
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo.actor_critic import ActorCritic, TokenRecord
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.control import RunningDeviation

ReduceSum = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


@dataclass
class Rollout:
    """B completions, their scores, and per token what PPO trains on; tensors are ``(B, T)``."""

    completions: list[Completion]
    batch: TokenBatch
    trunk: Tensor | None  # (B, L, d)
    scores: Tensor  # (B,) what the reward function said
    old: TokenRecord
    token_rewards: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True)
class Microbatch:
    """The rows of a rollout that one forward and backward pass learns from.

    The rollout's activations, its one large tensor, are not copied before a pass needs them: an
    epoch's microbatches together would hold all of them once more, in every epoch.
    """

    batch: TokenBatch
    index: Tensor
    """``(B,)`` of its rows in the rollout."""
    kept_trunk: Tensor | None
    """The whole rollout's."""
    old_logps: Tensor
    ref_logps: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    normalizer: float
    """Completion tokens in the whole minibatch, over all microbatches and processes."""

    @property
    def trunk(self) -> Tensor | None:
        """Activations ``(B, L, d)`` of the rows, copied at every call; ``None`` without a trunk."""
        width = self.batch.sequences.shape[1]
        return None if self.kept_trunk is None else self.kept_trunk[self.index, :width]


def record_in_parts(
    model: ActorCritic, batch: TokenBatch, rows: int
) -> tuple[TokenRecord, Tensor | None]:
    """The tokens' record, made of ``rows`` completions of like length at a time, and the trunk.

    Returns:
        ``(B, T)`` columns, and the activations ``(B, L, d)`` that every later pass starts from.
    """
    lengths = batch.prompt_lengths + batch.mask.sum(1)
    trunk: Tensor | None = None
    columns = [torch.zeros(batch.mask.shape, device=batch.mask.device) for _ in range(5)]
    for index in lengths.argsort(stable=True).split(rows):
        part = batch.rows(index)
        activations = model.trunk(part.sequences)
        if activations is not None:
            if trunk is None:
                shape = (*batch.sequences.shape, activations.shape[-1])
                trunk = torch.zeros(shape, dtype=activations.dtype, device=activations.device)
            trunk[index, : activations.shape[1]] = activations
        for column, values in zip(columns, model.token_record(part, activations), strict=True):
            column[index, : values.shape[1]] = values
    return TokenRecord(*columns), trunk


def shaped_scores(
    scores: Tensor,
    ended: Tensor,
    args: PPOConfig,
    deviation: RunningDeviation,
    reduce_sum: ReduceSum,
) -> Tensor:
    """Scores ``(B,)`` as PPO is paid them: clipped, normalised, less the missing-EOS penalty.

    ``deviation`` takes in the clipped ones: an outlier must not set the scale of all others.
    """
    if args.reward_clip is not None:
        scores = scores.clamp(-args.reward_clip, args.reward_clip)
    everyone = torch.ones_like(scores, dtype=torch.bool)
    deviation.update(*reduce_sum(moments(scores, everyone)).tolist())
    if args.normalize_rewards:
        scores = scores / deviation.value
    if args.missing_eos_penalty is not None:
        scores = torch.where(ended, scores, scores - args.missing_eos_penalty)
    return scores


def token_rewards(
    scores: Tensor, old: TokenRecord, mask: Tensor, beta: float, estimator: KLEstimator
) -> Tensor:
    r"""What each token is paid, ``(B, T)``, zero off the mask.

    .. math:: r_t = -\beta\, \widehat{KL}_t + [t = T - 1]\, r(x, y)
    """
    penalty = -beta * kl_estimate(old.logps, old.ref_logps, estimator)
    rewards = torch.where(mask, penalty, torch.zeros_like(penalty))
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def whitened(
    values: Tensor, mask: Tensor, reduce_sum: ReduceSum, keep_mean: bool = False
) -> Tensor:
    """``(B, T)`` values with variance 1, and mean 0 unless it is kept, over all processes."""
    mean, variance = mean_and_variance(reduce_sum(moments(values, mask)))
    mean, variance = mean.to(values.dtype), variance.to(values.dtype)
    return masked_whiten(values, mask, torch.zeros_like(mean) if keep_mean else mean, variance)


def schedule(lengths: Tensor, args: PPOConfig, seed: int, process: int = 0) -> list[list[Tensor]]:
    """Row indices of a process's microbatches, minibatch by minibatch, for all PPO epochs.

    Every epoch is a fresh permutation of all processes' rows; each process takes an equal part of
    every minibatch. Within a minibatch rows are put into microbatches by length, which saves
    padding and changes no gradient: the minibatch's mean is over its tokens.

    Args:
        lengths: tokens of every row of all processes, prompt and completion, on the CPU.

    Returns:
        one list of microbatch index tensors per optimizer step.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = args.per_device_train_batch_size
    plan = []
    for _ in range(args.num_ppo_epochs):
        order = torch.randperm(len(lengths), generator=generator)
        for minibatch in order.chunk(args.num_mini_batches):
            by_length = minibatch[lengths[minibatch].argsort(stable=True)]
            plan.append(list(by_length[process :: args.world_size].split(rows)))
    return plan


def microbatches(
    rollout: Rollout, plan: list[list[Tensor]], reduce_sum: ReduceSum
) -> list[Microbatch]:
    """The microbatches of a :func:`schedule`, each knowing its whole minibatch's token count."""
    lengths = rollout.batch.mask.sum(1).double()
    counts = reduce_sum(torch.stack([lengths[torch.cat(parts)].sum() for parts in plan]))
    made = []
    for parts, count in zip(plan, counts.tolist(), strict=True):
        for index in parts:
            index = index.to(lengths.device)
            batch = rollout.batch.rows(index)
            steps = batch.mask.shape[1]
            old = rollout.old
            columns = (old.logps, old.ref_logps, old.values, rollout.advantages, rollout.returns)
            parts_of = (column[index, :steps] for column in columns)
            made.append(Microbatch(batch, index, rollout.trunk, *parts_of, normalizer=count))
    return made
