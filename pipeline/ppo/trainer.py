"""PPO for language models on ``transformers.Trainer``.

A rollout is made where the Trainer prepares its inputs, the loss where it computes one, and the
training loop is the Trainer's own: resume, evaluation, clipping, schedules, accumulation,
callbacks, ``report_to``, DDP and saving need no code here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from classic_rl.advantages import completion_gae, discounted_sums
from classic_rl.losses import clipped_surrogate, kl_estimate, value_loss
from pipeline.data.prompts import as_prompts
from pipeline.data.records import Prompt
from pipeline.errors import UserError
from pipeline.lm.hardware import one_device
from pipeline.lm.models import base_of
from pipeline.lm.positions import check_prompts
from pipeline.lm.scored import check_columns
from pipeline.output.console import say
from pipeline.output.versions import warn_untested
from pipeline.ppo.actor_critic import ActorCritic, TokenRecord
from pipeline.ppo.advice import advice
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.control import KLController, RunningDeviation
from pipeline.ppo.engines import Engine, Sampler
from pipeline.ppo.engines.choice import engine_of
from pipeline.ppo.packed import check_packing, tell_cost
from pipeline.ppo.prefix import PrefixCritic
from pipeline.ppo.recording import RecordingTrainer
from pipeline.ppo.rollout import (
    Microbatch,
    Rollout,
    importance_ratios,
    microbatches,
    own_kl_values,
    per_deviation,
    scaled_scores,
    whitened,
)
from pipeline.ppo.upkeep import distributed
from pipeline.ppo.upkeep.base import SampleLog
from pipeline.ppo.upkeep.gold import GoldWatch
from pipeline.ppo.upkeep.guards import reward_call
from pipeline.ppo.upkeep.metrics import evaluation_metrics, part_metrics
from pipeline.ppo.upkeep.overlap import runs_beside
from pipeline.ppo.upkeep.ready import make_ready
from pipeline.ppo.upkeep.room import make_room
from pipeline.ppo.upkeep.sharing import evaluation_part, share, whole_evaluation
from reward_models import RewardFunction

_HORIZONS = 20  # of the KL controller in a run, where its length is not configured


class PPOTrainer(RecordingTrainer):
    """Proximal policy optimisation of a causal language model against any reward function.

    Args:
        model: the policy: a causal LM with the weights to train requiring gradients, or a PEFT
            model. Its state now is the reference π_ref. Its dropout is switched off, on a
            processor its attention computed plainly while sequences are short, and its own
            sampling defaults (top-k, repetition penalty, …) are dropped.
        reward_function: ``(prompts, completions, **columns) -> scores``, lists of equal length; it
            gets what its parameters are called (:func:`reward_models.arguments.bound`). It sees
            text, so another tokenizer, rules or a service are all the same to it.
        args: see :class:`PPOConfig`.
        processing_class: the policy's tokenizer.
        train_dataset: prompts, plain text or lists of messages; or rows with a column ``prompt``,
            such as a ``datasets.Dataset``, whose other columns are the reward's.
        eval_dataset: prompts that :meth:`evaluate` samples.
        gold_function: a judge, as ``reward_function``, that is never optimised against: it scores
            the evaluation prompts' completions, and nothing else.
        callbacks: as for the Trainer.
        log_samples: called after each rollout with the step and a few rows of text and scores.
        sampler: draws the completions in the place of the trainer's own loop: any callable of a
            :class:`~pipeline.ppo.engines.Request`, or an :class:`~pipeline.ppo.engines.Engine`.
    """

    def __init__(
        self,
        model: nn.Module,
        reward_function: RewardFunction,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Sequence[Prompt] | Dataset,
        eval_dataset: Sequence[Prompt] | Dataset | None = None,
        gold_function: RewardFunction | None = None,
        callbacks: list[TrainerCallback] | None = None,
        log_samples: SampleLog | None = None,
        sampler: Sampler | Engine | None = None,
    ) -> None:
        if not train_dataset:
            raise UserError("PPO has no training prompts; check the data section")
        warn_untested()
        train_dataset = as_prompts(train_dataset)
        eval_dataset = as_prompts(eval_dataset) if eval_dataset else None
        self.reward = reward_call(reward_function, args)
        self.gold = None if gold_function is None else reward_call(gold_function, args)
        check_columns(self.reward, train_dataset)
        for function in filter(None, (self.reward, self.gold) if eval_dataset else ()):
            check_columns(function, eval_dataset or [])
        one_device(args)
        longest = make_ready(model, processing_class, args, train_dataset, eval_dataset)
        self._longest = longest
        self.engine = engine_of(sampler, args)
        self._beside = args.overlap and runs_beside(self.engine)
        if self.engine is not None:
            self.engine.begin(model, processing_class, longest)
        if args.gold_stop and self.gold is None:
            raise UserError("gold_stop: there is no judge to stop by; pass gold_function")
        self.gold_watch = GoldWatch()
        for line in advice(args):
            say(f"warning: {line}")
        horizon = args.kl_horizon or args.planned_episodes(len(train_dataset)) / _HORIZONS
        self.kl_control = KLController(args.kl_coef, args.kl_target, horizon)
        self.score_deviation = RunningDeviation()
        self.prefix_critic = PrefixCritic(args.response_length)
        self.minibatch_tokens = 0.0  # that the minibatch at hand learns from, all processes
        set_seed(args.seed)  # the Trainer does so later, but the value head is made here
        super().__init__(
            model=ActorCritic(model, args, longest),
            args=args,
            train_dataset=train_dataset,  # type: ignore[arg-type]
            eval_dataset=eval_dataset,  # type: ignore[arg-type]
            processing_class=processing_class,
            callbacks=callbacks,
            log_samples=log_samples,
        )
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole minibatch's tokens
        self.actor_critic.place_reference(self.args.device)
        if args.packing:
            check_packing(self.actor_critic, longest)
            tell_cost(self.actor_critic, args, longest)
        self._keeps, self._kept_on = make_room(self.actor_critic, args, longest, self._lowest)

    # -- rollouts ------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if "microbatch" in inputs:  # a part of one that did not fit
            return inputs
        if not self.pending:
            self.pending = self._collect(inputs["prompts"].rows)
        self.performance.start("update")
        return {"microbatch": self.pending.pop(0)}

    def _collect(self, prompts: Sequence[Prompt]) -> list[Microbatch]:
        """Make one rollout and cut it into the microbatches of its whole update."""
        args, everyone = self.args, self.sum_over_processes

        # 1. Sample a completion y ~ π(·|x) of each prompt x, or y ~ μ(·|x) one update before.
        self.performance.start("generate")
        completions = self._completions(prompts)

        # 2. Score each by the reward r(x, y).
        self.performance.start("reward")
        said = self._reward(completions)
        scores = self._column(said.total)
        self.reward_queries = len(completions)
        prefix_scores = self._prefix_scores(completions) if args.critic == "prefix" else None

        # 3. Record of every token log π, log π_ref, V(s_t), the entropy and the exact KL.
        self.performance.start("score")
        rows, exact = args.per_device_train_batch_size, args.charges_exact_kl
        keeps = exact and self._keeps
        batch, old, trunk, ref_states = self._record(completions, rows, keep_states=keeps)
        mask = batch.mask

        # 4. Pay the tokens: the (shaped) score at the last one or each its own, −β·KL at each.
        ended = torch.tensor([c.ended for c in completions], device=scores.device)
        learns = mask & ended[:, None] if args.cut_off == "mask" else None
        counted = mask if learns is None else learns
        rewards, price = self._paid(scores, said, old, mask, ended, counted)

        # 5. Estimate advantages and returns by GAE.
        beyond = self._beyond(batch, trunk, ended, scores, price)
        known = self._known_values(rewards, price, old, counted, prefix_scores, beyond)
        old = old._replace(values=old.values + known)
        advantages, returns = completion_gae(
            rewards, old.values, mask, args.gamma, args.lam, beyond
        )
        if args.whiten_advantages:
            price *= per_deviation(advantages, counted, everyone) if price else 1.0
            advantages = whitened(advantages, counted, everyone)
        importance = importance_ratios(completions, old.logps, mask)
        if importance is not None and args.importance_cap is not None:
            # A constant factor of both sides of the clipped surrogate's minimum.
            advantages = advantages * importance.clamp(max=args.importance_cap)

        # 6. Deal the rows into minibatches, in a fresh order in every epoch.
        rollout = Rollout(
            completions, batch, trunk, scores, old, rewards, advantages, returns,
            known_values=known, ref_states=ref_states, kl_price=price, parts=self._parts(said),
            importance=importance, learns=learns,
        )  # fmt: skip
        self.stopped_early = False
        own, plan = share(rollout, args, self._seed(1))
        parts = microbatches(own, plan, everyone, args.gradient_accumulation_steps)
        metrics = self.on_rollout(rollout)

        # 7. Steer β by the KL of this rollout, where it is steered.
        # The log-ratios of completions drawn from μ fall short of it by KL(μ‖π).
        measured = metrics["objective/kl_exact" if exact or args.overlap else "objective/kl"]
        self.kl_control.update(measured, args.rollout_batch_size)
        return parts

    def _known_values(
        self,
        rewards: Tensor,
        price: float,
        old: TokenRecord,
        mask: Tensor,
        prefix_scores: Tensor | None,
        beyond: Tensor | None,
    ) -> Tensor:
        """What of V(s_t) is known without the value head, ``(B, T)``; the head learns the rest.

        Args:
            rewards: what each token is paid, its KL included. price: β on their scale.
            mask: tokens that are learned from. beyond: ``(B,)`` V where texts were cut off.
        """
        known, gamma = own_kl_values(old, mask, price), self.args.gamma
        if prefix_scores is None:
            return known
        scores = scaled_scores(prefix_scores, self.args, self.score_deviation)
        paid = rewards
        if beyond is not None:
            paid = rewards.clone()
            paid[torch.arange(len(paid), device=paid.device), mask.sum(1) - 1] += gamma * beyond
        rest = discounted_sums(paid, gamma) - known
        return known + self.prefix_critic.values(scores, rest, mask, self.sum_over_processes)

    # -- the update ----------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        r"""PPO's loss of one microbatch, as its share of the whole minibatch's token mean.

        .. math:: L = \frac{1}{N} \sum_t \bigl( L^{CLIP}_t + c_v L^V_t - c_e H_t
                  \;[+\; \beta\, KL_t] \bigr)
        """
        args, data = self.args, inputs["microbatch"]
        if self.stopped_early:  # the rest of this update is skipped, see target_kl
            return torch.zeros((), device=args.device, requires_grad=True)
        mask = data.learned
        output = model(data.batch, data.trunk, args.entropy_coef > 0, data.ref_states)

        # 1. The ratio ρ = π / π_old, as its logarithm.
        log_ratio = torch.where(mask, output.logps - data.old_logps, 0.0)

        # 2. The clipped surrogate −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A).
        policy = clipped_surrogate(log_ratio, data.advantages, args.cliprange)

        # 3. The value loss ½ (V − R)².
        critic = value_loss(output.values, data.returns, data.old_values, args.cliprange_value)

        # 4. The entropy bonus.
        total = policy + args.vf_coef * critic - args.entropy_coef * output.entropy

        # 5. The KL penalty, where the reward was not charged with it: all of it, or, where that is
        # exact, a token's own, at the β and on the scale of the advantages.
        if data.kl_price:
            total = total + data.kl_price * output.kl
        elif args.kl_in == "loss":
            assert args.kl_estimator != "exact"  # see PPOConfig.clashes
            penalty = kl_estimate(output.logps, data.ref_logps, args.kl_estimator)
            total = total + self.kl_control.coefficient * penalty

        # 6. The mean over the N tokens of the whole minibatch: all microbatches, all processes.
        # DDP averages gradients over processes; the normalizer already counts all their tokens.
        self.minibatch_tokens = data.normalizer
        scale = args.world_size / max(data.normalizer, 1.0)
        loss = torch.where(mask, total, 0.0).sum() * scale
        self.update_metrics.add(args, data, log_ratio, policy, critic, output.values)
        return (loss, output) if return_outputs else loss

    def gate_gradients(self) -> None:
        """Before an optimizer step: drop the gradients that must not be applied.

        A parameter without gradient is left alone by the optimizer, momentum and weight decay
        included. That is how an update beyond ``target_kl`` ends, how the critic warms up, and how
        a minibatch without a token to learn from (``cut_off: mask``) changes nothing.
        """
        kl = self.update_metrics.minibatch_kl(self.sum_over_processes)
        limit = self.args.target_kl
        self.stopped_early |= limit is not None and bool(kl > limit)
        model = self.actor_critic
        if self.stopped_early or not self.minibatch_tokens:
            model.zero_grad(set_to_none=True)
        elif self.rollout_index < self.args.value_warmup_rollouts:
            model.policy.zero_grad(set_to_none=True)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float | None:
        """Clip actor and critic apart, or a large value error would shrink the policy's step."""
        self.keep_a_gradient()
        critic = distributed.clipped_norm(self, self.actor_critic.value_head)
        with self.loss_scale.divided():
            actor = distributed.clipped_norm(self, self.actor_critic.policy)
        self.look_at_gradient(critic)
        left_out = self.loss_scale.explains(actor) or self.loss_scale.explains(critic)
        if actor is not None and critic is not None and not (self.stopped_early or left_out):
            self.update_metrics.add_norms(actor, critic)
        return actor

    # -- evaluation ----------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Sample the evaluation prompts, always with the same seed, and measure the objective.

        Returns:
            ``eval_scores``, ``eval_kl`` (exact, nats), ``eval_objective`` = scores − β·KL with
            the configured β, ``eval_length`` and ``eval_ended``; means over all processes. Of a
            reward made of several, ``eval_rewards/<name>/mean`` and ``/std`` of each. With a judge
            also ``eval_gold`` and its standard error over prompts, ``eval_gold_se``.
            ``metric_for_best_model: objective`` with ``greater_is_better`` keeps the best.
        """
        prompts: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if not prompts:
            raise UserError("PPO's evaluate() has no prompts; pass eval_dataset")
        args = self.args
        if eval_dataset is not None:
            prompts = as_prompts(prompts)
            for function in filter(None, (self.reward, self.gold)):
                check_columns(function, prompts)
        if eval_dataset is not None and not self.is_fsdp_enabled:  # whose layers are split by now
            base = base_of(self.actor_critic.policy)
            check_prompts(base, self.tokenizer, prompts, args.response_length, "evaluation")
        encoded = self._encoded(prompts)
        rows, draws = evaluation_part([len(ids) for ids in encoded], args)
        own = [prompts[row] for row in rows], [encoded[row] for row in rows]
        completions = self._sample(*own, draws, args.seed)
        said = self._reward(completions)
        batch, record, *_ = self._record(completions, args.per_device_eval_batch_size)
        columns = {
            "scores": self._column(said.total),
            "kl": record.exact_kl.sum(1, dtype=torch.float64),
            "ended": self._column([c.ended for c in completions]),
            "length": batch.mask.sum(1),
        }
        if self.gold is not None:
            columns["gold"] = self._column(self._reward(completions, self.gold).total)
        whole, parts = (
            {
                name: whole_evaluation(self.gather_rows(column.double()), len(prompts))
                for name, column in group.items()
            }
            for group in (columns, self._parts(said))
        )
        means = evaluation_metrics(whole, args.kl_coef) | part_metrics(parts, lambda sums: sums)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(dict(metrics))
        if eval_dataset is None:
            self.on_evaluation(whole)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics
