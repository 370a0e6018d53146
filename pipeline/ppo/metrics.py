"""What PPO reports, under the names that TRL's trainer used."""

from __future__ import annotations

import torch
from torch import Tensor

from classic_rl.advantages import masked_mean, mean_and_variance, moments
from classic_rl.losses import clip_active, explained_variance, kl_estimate
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.rollout import Microbatch, ReduceSum, Rollout


@torch.no_grad()
def rollout_metrics(rollout: Rollout, beta: float, reduce_sum: ReduceSum) -> dict[str, float]:
    """Metrics of a rollout over all processes; KL and entropy are nats per completion.

    ``objective/kl`` is the log-ratio that the reward is charged with when the estimator is k1;
    ``objective/kl_exact`` is the project's definition of KL, on the same completions.
    """
    old, mask = rollout.old, rollout.batch.mask
    scores, device = rollout.scores, mask.device
    kl = (old.logps - old.ref_logps).sum(1)
    ended = torch.tensor([c.ended for c in rollout.completions], device=device).float()
    columns = {
        "objective/kl": kl,
        "objective/kl_exact": old.exact_kl.sum(1),
        "objective/entropy": old.entropy.sum(1),
        "objective/scores": scores,
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": scores - beta * kl,
        "val/ended": ended,
        "val/length": mask.sum(1).float(),
        "val/count": torch.ones_like(scores),
    }
    sums = reduce_sum(torch.stack([column.double().sum() for column in columns.values()]))
    metrics = dict(zip(columns, (sums / sums[-1]).tolist(), strict=True))
    count = float(sums[-1])
    everyone = torch.ones_like(scores, dtype=torch.bool)
    variance = mean_and_variance(reduce_sum(moments(scores, everyone)))[1]
    del metrics["val/count"]
    return metrics | {
        "objective/scores_std": float(variance.sqrt()),
        "objective/kl_coef": beta,
        "policy/entropy_avg": float(masked_mean(old.entropy, mask)),
        "val/explained_variance": float(
            explained_variance(old.values[mask], rollout.returns[mask])
        ),
        "val/num_eos_tokens": metrics["val/ended"] * count,
    }


class UpdateMetrics:
    """Token means over an update, gathered microbatch by microbatch."""

    NAMES = (
        "loss/policy_avg",
        "loss/value_avg",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/ratio_squared",
    )

    def __init__(self) -> None:
        self._sums = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64)
        self._minibatch_kl = torch.zeros(2, dtype=torch.float64)

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
        mask = data.batch.mask
        clip_value = args.cliprange_value or float("inf")
        columns = (
            policy,
            critic,
            kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k2"),
            clip_active(log_ratio, data.advantages, args.cliprange).float(),
            ((values - data.old_values).abs() > clip_value).float(),
            log_ratio.exp(),
            log_ratio.exp().square(),
        )
        sums = torch.stack([torch.where(mask, c, 0.0).double().sum() for c in columns])
        self._sums += torch.cat([sums, mask.sum()[None].double()]).cpu()
        self._minibatch_kl += torch.stack([sums[2], mask.sum().double()]).cpu()

    def minibatch_kl(self, reduce_sum: ReduceSum) -> float:
        """Approximate KL to the rollout policy over the minibatch just gone through; resets."""
        total, count = reduce_sum(self._minibatch_kl).tolist()
        self._minibatch_kl.zero_()
        return total / max(count, 1.0)

    def collect(self, reduce_sum: ReduceSum) -> dict[str, float]:
        """The means over all processes since the last call; resets."""
        sums = reduce_sum(self._sums).cpu()
        self._sums.zero_()
        count = max(float(sums[-1]), 1.0)
        means: list[float] = (sums[:-1] / count).tolist()
        metrics: dict[str, float] = dict(zip(self.NAMES, means, strict=True))
        squared = metrics.pop("val/ratio_squared")
        metrics["val/ratio_var"] = max(squared - metrics["val/ratio"] ** 2, 0.0)
        return metrics
