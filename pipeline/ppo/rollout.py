"""One rollout: completions of the current policy with everything that the update needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from classic_rl.advantages import masked_whiten, mean_and_variance, moments
from classic_rl.losses import KLEstimator, kl_estimate
from pipeline.errors import UserError
from pipeline.lm.generation import Completion
from pipeline.lm.scoring import TokenBatch
from pipeline.ppo.actor_critic import ActorCritic, TokenRecord
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.control import RunningDeviation
from pipeline.ppo.measure import Measure

ReduceSum = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""
_LARGEST = 80.0  # nats of a log-ratio


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
    known_values: Tensor | None = None
    """What values and returns hold beside the value head's part: own KL and prefixes' lines."""
    ref_states: Tensor | None = None  # (B, T, d)
    kl_price: float = 0.0
    """β on the advantages' scale, where the update itself charges each token's exact KL."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Of a reward made of several: each one's own scores ``(B,)``, NaN where it does not apply."""
    importance: Tensor | None = None
    """π_old/μ of each token where an engine with a distribution μ of its own drew it."""
    learns: Tensor | None = None
    """``(B, T)`` tokens that are learned from; ``None`` is all of them."""

    @property
    def learned(self) -> Tensor:
        """``(B, T)`` tokens that are learned from: what losses, deviations and fits count."""
        return self.batch.mask if self.learns is None else self.learns


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
    """Tokens that the whole minibatch learns from, over all microbatches and processes."""
    kept_ref_states: Tensor | None = None
    """The whole rollout's."""
    kl_price: float = 0.0
    sizes: tuple[int, ...] = ()
    """Rows of each part that is learned from at once; none where that is all of them."""
    learns: Tensor | None = None
    """``(B, T)`` as the rollout's."""

    @property
    def learned(self) -> Tensor:
        """``(B, T)`` tokens that are learned from."""
        return self.batch.mask if self.learns is None else self.learns

    @property
    def trunk(self) -> Tensor | None:
        """Activations ``(B, L, d)`` of the rows, copied at every call; ``None`` without a trunk."""
        return self._rows_of(self.kept_trunk, self.batch.sequences.shape[1])

    @property
    def ref_states(self) -> Tensor | None:
        """The reference's final states ``(B, T, d)`` of the rows, copied; ``None`` if not kept."""
        return self._rows_of(self.kept_ref_states, self.batch.mask.shape[1])

    def _rows_of(self, kept: Tensor | None, width: int) -> Tensor | None:
        if kept is None:
            return None
        rows = kept[self.index.to(kept.device), :width]
        return rows.to(self.batch.mask.device, non_blocking=True)


def record_in_parts(
    model: ActorCritic,
    batch: TokenBatch,
    cut: Callable[[list[int]], list[int]],
    keep_states: bool = False,
    kept_on: torch.device | None = None,
) -> tuple[TokenRecord, Tensor | None, Tensor | None]:
    """The tokens' record, made of some completions of like length at a time, and the trunk.

    Args:
        cut: how many rows each part takes, given all rows' tokens, the shortest first.
        kept_on: where what is kept for later passes lies; ``None`` is the model's device.

    Returns:
        ``(B, T)`` columns; the activations ``(B, L, d)`` that every later pass starts from; and
        with ``keep_states`` the reference's final states ``(B, T, d)``.
    """
    lengths = batch.prompt_lengths + batch.mask.sum(1)
    order = lengths.argsort(stable=True)
    trunk: Tensor | None = None
    kept: Tensor | None = None
    columns = [torch.zeros(batch.mask.shape, device=batch.mask.device) for _ in range(5)]
    for index in order.split(cut(lengths[order].tolist())):
        part = batch.rows(index)
        activations = model.trunk(part.sequences, part)
        if activations is not None:
            trunk = _kept(trunk, activations, index, batch.sequences.shape[1], len(order), kept_on)
        if keep_states:
            record, states = model.record_and_states(part, activations)
            kept = _kept(kept, states, index, batch.mask.shape[1], len(order), kept_on)
        else:
            record = model.token_record(part, activations)
        for column, values in zip(columns, record, strict=True):
            column[index, : values.shape[1]] = values
    return TokenRecord(*columns), trunk, kept


def _kept(
    whole: Tensor | None,
    part: Tensor,
    index: Tensor,
    width: int,
    count: int,
    device: torch.device | None,
) -> Tensor:
    """``whole`` ``(count, width, d)``, made if there is none, with ``part`` as its rows."""
    if whole is None:
        shape = (count, width, part.shape[-1])
        whole = torch.zeros(shape, dtype=part.dtype, device=device or part.device)
    whole[index.to(whole.device), : part.shape[1]] = part.to(whole.device)
    return whole


def importance_ratios(
    completions: Sequence[Completion], logps: Tensor, mask: Tensor
) -> Tensor | None:
    """π_old/μ of each token, ``(B, T)``, 1 off the mask; ``None`` where no engine told its μ.

    Args:
        logps: log π_old by the trainer, ``(B, T)``.
    """
    if any(completion.logps is None for completion in completions):
        return None
    engine = torch.zeros(mask.shape, device=mask.device)
    engine[mask] = torch.tensor(
        [x for completion in completions for x in completion.logps or ()], device=mask.device
    )
    # Of float32's range, or a token that one of the two holds for impossible has no logarithm.
    return torch.where(mask, logps - engine, 0.0).clamp(-_LARGEST, _LARGEST).exp()


def shaped_scores(
    scores: Tensor,
    ended: Tensor,
    args: PPOConfig,
    deviation: RunningDeviation,
    reduce_sum: ReduceSum,
) -> Tensor:
    """Scores ``(B,)`` as PPO is paid them: clipped, normalised, less the missing-EOS penalty.

    ``deviation`` takes in the clipped ones: an outlier must not set the scale of all others. Where
    ``cut_off`` is not "keep", one that did not end is not in it; bootstrapped, it is paid nothing.
    """
    clipped = _clipped(scores, args)
    paid = torch.ones_like(ended) if args.cut_off == "keep" else ended
    deviation.update(*reduce_sum(moments(clipped, paid)).tolist())
    scores = scaled_scores(scores, args, deviation)
    if args.cut_off == "bootstrap":
        scores = torch.where(ended, scores, 0.0)
    if args.missing_eos_penalty is not None:
        scores = torch.where(ended, scores, scores - args.missing_eos_penalty)
    return scores


def dense_scores(
    tokens: list[list[float]], mask: Tensor, ended: Tensor, args: PPOConfig, scale: RunningDeviation
) -> Tensor:
    """What each token is paid of a dense reward, ``(B, T)``: its sum is what `shaped_scores` gives.

    ``normalize_rewards`` divides by the deviation of the completions' totals, which ``scale`` has
    taken in; ``missing_eos_penalty`` is the last token's.

    Raises:
        UserError: a setting that means nothing where every token is paid.
    """
    if args.reward_clip is not None:
        raise UserError(
            "reward_clip: the reward gives every token its own score, and a limit of their sum does"
            " not say which of them to change; set it to null and clip in the reward"
        )
    if args.critic == "prefix":
        raise UserError(
            "critic=prefix: the reward gives every token its own score, so that of a beginning says"
            " what was paid and not what is to come; set critic to head"
        )
    paid = torch.zeros(mask.shape)  # on the processor, so that it goes to the device in one piece
    for row, values in enumerate(tokens):
        paid[row, : len(values)] = torch.tensor(values, dtype=paid.dtype)
    paid = scaled_scores(paid.to(mask.device), args, scale)
    if args.missing_eos_penalty is not None:
        rows = torch.arange(len(paid), device=paid.device)
        paid[rows, mask.sum(1) - 1] -= torch.where(ended, 0.0, args.missing_eos_penalty)
    return paid


def scaled_scores(scores: Tensor, args: PPOConfig, deviation: RunningDeviation) -> Tensor:
    """Scores of whatever text, clipped and normalised as those that PPO is paid; any shape."""
    scores = _clipped(scores, args)
    return scores / deviation.value if args.normalize_rewards else scores


def _clipped(scores: Tensor, args: PPOConfig) -> Tensor:
    limit = args.reward_clip
    return scores if limit is None else scores.clamp(-limit, limit)


def token_rewards(
    scores: Tensor,
    old: TokenRecord,
    mask: Tensor,
    beta: float,
    estimator: KLEstimator | Literal["exact"],
) -> Tensor:
    r"""What each token is paid, ``(B, T)``, zero off the mask.

    .. math:: r_t = -\beta\, \widehat{KL}_t + [t = T - 1]\, r(x, y)

    Scores that are ``(B, T)`` already, each token's own, stand in the place of the last term. With
    "exact", KL_t is that of the whole next-token distribution in the state before token t.
    """
    if estimator == "exact":
        charged = old.exact_kl
    else:
        charged = kl_estimate(old.logps, old.ref_logps, estimator)
    penalty = -beta * charged
    rewards = torch.where(mask, penalty, torch.zeros_like(penalty))
    if scores.dim() == 2:
        return rewards + torch.where(mask, scores, 0.0)
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def own_kl_values(old: TokenRecord, mask: Tensor, price: float) -> Tensor:
    r"""The part −β KL_t of V(s_t), ``(B, T)``, where the exact KL is charged; else zeros.

    The return from s_t begins with a token's own KL, which is a number of the state alone and is
    differentiated in the loss instead. Being known, it is not learned: the value head predicts
    V'(s_t), the return after it, and V = V' − β KL_t takes it out of every advantage,

    .. math:: \delta_t = (r_t - \beta KL_t) + \gamma (V'_{t+1} - \beta KL_{t+1})
              - (V'_t - \beta KL_t) = r_t - \gamma \beta KL_{t+1} + \gamma V'_{t+1} - V'_t

    whatever λ and γ: a token answers for the KL of the states it leads to, once.

    Args:
        price: β on the scale of the token rewards; 0 where the KL charged is not exact.
    """
    return torch.where(mask, -price * old.exact_kl, 0.0)


def per_deviation(values: Tensor, mask: Tensor, reduce_sum: ReduceSum) -> float:
    """The factor by which :func:`whitened` scales ``(B, T)`` values: one over their deviation."""
    _, variance = mean_and_variance(reduce_sum(moments(values, mask)))
    return float(torch.rsqrt(variance + 1e-8))


def whitened(
    values: Tensor, mask: Tensor, reduce_sum: ReduceSum, keep_mean: bool = False
) -> Tensor:
    """``(B, T)`` values with variance 1, and mean 0 unless it is kept, over all processes."""
    mean, variance = mean_and_variance(reduce_sum(moments(values, mask)))
    mean, variance = mean.to(values.dtype), variance.to(values.dtype)
    return masked_whiten(values, mask, torch.zeros_like(mean) if keep_mean else mean, variance)


def schedule(lengths: Tensor, args: PPOConfig, seed: int, process: int = 0) -> list[list[Tensor]]:
    """Row indices of what a process learns from at once, minibatch by minibatch, for all epochs.

    Every epoch is a fresh permutation of all processes' rows; each process takes an equal part of
    every minibatch. Within a minibatch rows are put together by length, which saves padding and
    changes no gradient: the minibatch's mean is over its tokens.

    Args:
        lengths: tokens of every row of all processes, prompt and completion, on the CPU.

    Returns:
        one list of index tensors per optimizer step: ``per_device_train_batch_size`` rows each, or
        ``microbatch_tokens``; every process has equally many, as each waits for the others'.
    """
    generator = torch.Generator().manual_seed(seed)
    plan = []
    for _ in range(args.num_ppo_epochs):
        order = torch.randperm(len(lengths), generator=generator)
        for minibatch in order.chunk(args.num_mini_batches):
            by_length = minibatch[lengths[minibatch].argsort(stable=True)]
            shares = [by_length[rank :: args.world_size] for rank in range(args.world_size)]
            plan.append(_divided(shares, lengths, args)[process])
    return plan


def _divided(shares: list[Tensor], lengths: Tensor, args: PPOConfig) -> list[list[Tensor]]:
    """Each process's rows of one minibatch in parts, equally many in all."""
    if args.microbatch_tokens is None:
        return [list(share.split(args.per_device_train_batch_size)) for share in shares]
    measure, limit = Measure.of(args), args.microbatch_tokens
    tokens = [lengths[share].tolist() for share in shares]
    most = max(len(measure.cut(each, limit)) for each in tokens)
    count = max(most, args.gradient_accumulation_steps)
    sizes = [measure.cut(each, limit, count) for each in tokens]
    return [list(share.split(each)) for share, each in zip(shares, sizes, strict=True)]


def microbatches(
    rollout: Rollout, plan: list[list[Tensor]], reduce_sum: ReduceSum, steps: int | None = None
) -> list[Microbatch]:
    """The microbatches of a :func:`schedule`, each knowing its whole minibatch's token count.

    Args:
        steps: how many a minibatch is to have, each with as many of its parts as fall to it;
            ``None`` is one for each part.
    """
    lengths = rollout.learned.sum(1).double()
    counts = reduce_sum(torch.stack([lengths[torch.cat(parts)].sum() for parts in plan]))
    old, values, returns = rollout.old, rollout.old.values, rollout.returns
    if rollout.known_values is not None:  # the value head learns the rest
        values, returns = values - rollout.known_values, returns - rollout.known_values
    columns = (old.logps, old.ref_logps, values, rollout.advantages, returns)
    made = []
    for parts, count in zip(plan, counts.tolist(), strict=True):
        for group in _grouped(parts, steps or len(parts)):
            index = torch.cat(group).to(lengths.device)
            batch = rollout.batch.rows(index)
            width = batch.mask.shape[1]
            parts_of = (column[index, :width] for column in columns)
            microbatch = Microbatch(
                batch,
                index,
                rollout.trunk,
                *parts_of,
                normalizer=count,
                kept_ref_states=rollout.ref_states,
                kl_price=rollout.kl_price,
                sizes=tuple(map(len, group)) if len(group) > 1 else (),
                learns=None if rollout.learns is None else rollout.learns[index, :width],
            )
            made.append(microbatch)
    return made


def _grouped(parts: list[Tensor], groups: int) -> list[list[Tensor]]:
    """``parts`` in ``groups`` of neighbours, as equally many each as can be."""
    bounds = [len(parts) * group // groups for group in range(groups + 1)]
    return [parts[start:end] for start, end in pairwise(bounds)]
