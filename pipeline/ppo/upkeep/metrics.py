"""What PPO reports, under the names that TRL's trainer used; ``docs/ppo-metrics.md`` explains them.

Sums, means and extremes are over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from classic_rl.advantages import mean_and_variance, moments
from classic_rl.losses import clip_active, kl_estimate
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.rollout import Microbatch, ReduceSum, Rollout

Gather = Callable[[Tensor], Tensor]
"""Every process's ``(k,)`` tensor as the rows of one ``(P, k)``."""

QUANTILES = (5, 25, 50, 75, 95)


@torch.no_grad()
def rollout_metrics(
    rollout: Rollout, beta: float, reduce_sum: ReduceSum, gather: Gather
) -> dict[str, float]:
    """Metrics of a rollout; KL and entropy are nats per completion.

    ``objective/kl`` is the log-ratio that the reward is charged with when the estimator is k1;
    ``objective/kl_exact`` is the project's definition of KL, on the same completions.
    """
    old, mask = rollout.old, rollout.batch.mask
    scores, device = rollout.scores, mask.device
    kl = (old.logps - old.ref_logps).sum(1)
    k3 = torch.where(mask, kl_estimate(old.logps, old.ref_logps, "k3"), 0.0).sum(1)
    ended = torch.tensor([c.ended for c in rollout.completions], device=device).float()
    lengths = mask.sum(1).float()
    columns = {
        "objective/kl": kl,
        "objective/kl_k3": k3,
        "objective/kl_exact": old.exact_kl.sum(1),
        "objective/entropy": old.entropy.sum(1),
        "objective/scores": scores,
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": scores - beta * kl,
        "val/ended": ended,
        "val/length": lengths,
        "val/count": torch.ones_like(scores),
    }
    sums = reduce_sum(torch.stack([column.double().sum() for column in columns.values()]))
    metrics = dict(zip(columns, (sums / sums[-1]).tolist(), strict=True))
    count = float(sums[-1])
    del metrics["val/count"]
    learned = rollout.learned
    advantages = rollout.returns - old.values  # as they were before whitening
    everyone = torch.ones_like(scores, dtype=torch.bool)
    spread = (
        (scores, everyone), (lengths, everyone), (advantages, learned), (rollout.returns, learned)
    )  # fmt: skip
    sums = reduce_sum(torch.cat([moments(*each) for each in spread])).view(-1, 3)
    variances: list[float] = torch.stack([mean_and_variance(row)[1] for row in sums]).tolist()
    score_variance, length_variance, unexplained, return_variance = variances
    explained = 1 - unexplained / return_variance if return_variance > 1e-12 else 0.0
    metrics |= _extremes(scores, lengths, advantages, learned, gather)
    metrics |= part_metrics(rollout.parts, reduce_sum)
    return metrics | {
        "objective/scores_std": score_variance**0.5,
        "objective/kl_coef": beta,
        "policy/entropy_avg": metrics["objective/entropy"] * count / float(sums[1, 1]),
        "val/advantages_std": unexplained**0.5,
        "val/explained_variance": explained,  # see classic_rl.losses.explained_variance
        "val/length_std": length_variance**0.5,
        "val/num_eos_tokens": metrics["val/ended"] * count,
    }


def part_metrics(parts: Mapping[str, Tensor], reduce_sum: ReduceSum) -> dict[str, float]:
    """``rewards/<name>/mean`` and ``/std`` of each part over the completions that it applies to.

    Args:
        parts: a name to scores ``(B,)``, NaN where it does not apply; the same names on all
            processes. One that applies nowhere is left out.
    """
    if not parts:
        return {}
    applies = {name: ~torch.isnan(scores) for name, scores in parts.items()}
    sums = torch.cat([moments(torch.nan_to_num(parts[name]), applies[name]) for name in parts])
    metrics: dict[str, float] = {}
    for name, row in zip(parts, reduce_sum(sums).view(-1, 3), strict=True):
        if float(row[0]) > 0:
            mean, variance = mean_and_variance(row)
            metrics[f"rewards/{name}/mean"] = float(mean)
            metrics[f"rewards/{name}/std"] = float(variance) ** 0.5
    return metrics


def engine_metrics(
    importance: Tensor, mask: Tensor, cap: float | None, reduce_sum: ReduceSum
) -> dict[str, float]:
    """How far the engine that drew the completions is from the policy, over all tokens.

    ``engine/kl`` is KL(μ‖π_old) in nats a token, estimated on the completions (k3, which is never
    negative); ``engine/importance`` the mean of π_old/μ, 1 where μ is what the engine says it is;
    ``engine/truncated`` the share of tokens above the cap.

    Args:
        importance: π_old/μ, ``(B, T)``.
    """
    ratio = importance[mask].double()
    above = ratio > (float("inf") if cap is None else cap)
    columns = (ratio - 1 - ratio.log(), ratio.log().abs(), ratio, above, torch.ones_like(ratio))
    sums = reduce_sum(torch.stack([column.double().sum() for column in columns]))
    names = ("kl", "logp_difference", "importance", "truncated")
    means = (sums[:-1] / sums[-1]).tolist()
    return {f"engine/{name}": value for name, value in zip(names, means, strict=True)}


def _extremes(
    scores: Tensor, lengths: Tensor, advantages: Tensor, learned: Tensor, gather: Gather
) -> dict[str, float]:
    """Quantiles of the scores ``(B,)``; the range of lengths ``(B,)`` and of the advantages
    ``(B, T)`` that are learned from, 0 where none is."""
    least = torch.where(learned, advantages, float("inf")).amin()
    most = torch.where(learned, advantages, -float("inf")).amax()
    ranges = [lengths.amin(), lengths.amax(), least, most]
    everyone = gather(torch.cat([scores.double(), torch.stack(ranges).double()]))
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=everyone.device) / 100
    values: list[float] = everyone[:, :-4].flatten().quantile(levels).tolist()
    low: list[float] = everyone[:, -4:].amin(0).tolist()
    high: list[float] = everyone[:, -4:].amax(0).tolist()
    if low[2] > high[3]:
        low[2] = high[3] = 0.0
    quantiles = {f"objective/scores_q{q:02d}": v for q, v in zip(QUANTILES, values, strict=True)}
    return quantiles | {
        "val/length_min": low[0],
        "val/length_max": high[1],
        "val/advantages_min": low[2],
        "val/advantages_max": high[3],
    }


class UpdateMetrics:
    """Token means and extremes over an update, gathered microbatch by microbatch."""

    NAMES = (
        "loss/policy_avg",
        "loss/value_avg",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/ratio_squared",
    )

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """They stay on ``device`` until they are asked for: reading one makes it wait."""
        self._sums = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64, device=device)
        self._minibatch_kl = self._sums.new_zeros(2)
        self._largest_kl = self._sums.new_zeros(())
        self._reset_ratios()
        self._norms: list[tuple[Tensor | float, Tensor | float]] = []
        self.tokens = 0.0
        """Completion tokens that were learned from, over all processes, at the last `collect`."""
        self.begin_minibatch()

    def _reset_ratios(self) -> None:
        self._least_ratio = self._sums.new_full((), float("inf"))
        self._greatest_ratio = self._sums.new_full((), -float("inf"))

    def begin_minibatch(self) -> None:
        """Note what :meth:`undo_minibatch` goes back to."""
        tensors = (self._sums, self._minibatch_kl, self._least_ratio, self._greatest_ratio)
        self._before = tuple(tensor.clone() for tensor in tensors), list(self._norms)

    def undo_minibatch(self) -> None:
        """Forget the microbatches since :meth:`begin_minibatch`: they are learned from again."""
        tensors, norms = self._before
        self._sums, self._minibatch_kl, self._least_ratio, self._greatest_ratio = (
            tensor.clone() for tensor in tensors
        )
        self._norms = list(norms)

    @torch.no_grad()
    def add(
        self,
        args: PPOConfig,
        data: Microbatch,
        log_ratio: Tensor,
        policy: Tensor,
        critic: Tensor,
        values: Tensor,
    ) -> None:
        """Take in one microbatch; all tensors are ``(B, T)``."""
        mask = data.learned
        clip_value = args.cliprange_value or float("inf")
        ratio = log_ratio.exp()
        columns = (
            policy,
            critic,
            kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k2"),
            clip_active(log_ratio, data.advantages, args.cliprange).float(),
            ((values - data.old_values).abs() > clip_value).float(),
            ratio,
            ratio.square(),
        )
        sums = torch.stack([torch.where(mask, c, 0.0).double().sum() for c in columns])
        self._sums += torch.cat([sums, mask.sum()[None].double()])
        self._minibatch_kl += torch.stack([sums[2], mask.sum().double()])
        least = torch.where(mask, ratio, float("inf")).amin().double()
        greatest = torch.where(mask, ratio, -float("inf")).amax().double()
        self._least_ratio = torch.minimum(self._least_ratio, least)
        self._greatest_ratio = torch.maximum(self._greatest_ratio, greatest)

    def add_norms(self, actor: Tensor | float, critic: Tensor | float) -> None:
        """Take in one optimizer step's gradient norms, before clipping."""
        self._norms.append((actor, critic))

    def minibatch_kl(self, reduce_sum: ReduceSum) -> Tensor:
        """Approximate KL to the rollout policy over the minibatch just gone through; resets."""
        total, count = reduce_sum(self._minibatch_kl).unbind()
        self._minibatch_kl = torch.zeros_like(self._minibatch_kl)
        kl = total / count.clamp(min=1.0)
        self._largest_kl = torch.maximum(self._largest_kl, kl)
        return kl

    def collect(self, reduce_sum: ReduceSum, gather: Gather) -> dict[str, float]:
        """The means and extremes since the last call; resets."""
        sums = reduce_sum(self._sums).cpu()
        ratios = gather(torch.stack([self._least_ratio, self._greatest_ratio])).cpu()
        norms = [(float(actor), float(critic)) for actor, critic in self._norms]
        self._sums = torch.zeros_like(self._sums)
        self._reset_ratios()
        self._norms = []
        self.tokens = float(sums[-1])
        means: list[float] = (sums[:-1] / max(self.tokens, 1.0)).tolist()
        metrics: dict[str, float] = dict(zip(self.NAMES, means, strict=True))
        squared = metrics.pop("val/ratio_squared")
        metrics["policy/approxkl_max"] = float(self._largest_kl)
        self._largest_kl = torch.zeros_like(self._largest_kl)
        metrics["val/ratio_var"] = max(squared - metrics["val/ratio"] ** 2, 0.0)
        metrics["val/ratio_min"] = float(ratios[:, 0].min())
        metrics["val/ratio_max"] = float(ratios[:, 1].max())
        if not self.tokens:  # completions were all cut off, and are not learned from
            metrics |= dict.fromkeys(("val/ratio", "val/ratio_min", "val/ratio_max"), 1.0)
            metrics["val/ratio_var"] = 0.0
        for name, column in zip(("policy", "val"), zip(*norms, strict=True), strict=False):
            metrics[f"{name}/grad_norm"] = sum(column) / len(column)
            metrics[f"{name}/grad_norm_max"] = max(column)
        return metrics


def evaluation_metrics(columns: Mapping[str, Tensor], beta: float) -> dict[str, float]:
    """Means over the completions of all processes.

    Args:
        columns: ``scores``, ``kl`` (nats), ``ended`` and ``length``, and where there is a judge
            ``gold``; ``(B,)`` each.

    Returns:
        the means under these names, ``objective`` = scores − β·KL, and with a judge and two prompts
        or more ``gold_se``, the standard error over the prompts.
    """
    means = {name: float(column.double().mean()) for name, column in columns.items()}
    means["objective"] = means["scores"] - beta * means["kl"]
    gold = columns.get("gold")
    if gold is not None and len(gold) > 1:
        means["gold_se"] = float(gold.double().std()) / len(gold) ** 0.5
    return means
