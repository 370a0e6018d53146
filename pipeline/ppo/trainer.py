"""PPO for language models on ``transformers.Trainer``.

A rollout is made where the Trainer prepares its inputs, the loss where it computes one, and the
training loop is the Trainer's own: resume, evaluation, clipping, schedules, accumulation,
callbacks, ``report_to``, DDP and saving need no code here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, set_seed

from classic_rl.losses import clipped_surrogate, value_loss
from pipeline.errors import UserError
from pipeline.generation import Completion, sample
from pipeline.models import base_of, one_device, prepare
from pipeline.ppo import state
from pipeline.ppo.actor_critic import ActorCritic
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.control import KLController, RolloutSampler, RunningDeviation
from pipeline.ppo.metrics import UpdateMetrics, rollout_metrics
from pipeline.ppo.rollout import (
    Microbatch,
    Rollout,
    assemble,
    microbatches,
    schedule,
    score_in_parts,
)
from pipeline.records import Prompt
from pipeline.scoring import TokenBatch, check_head
from reward_models import RewardFunction, checked

SampleLog = Callable[[int, list[dict[str, Any]]], None]


class PPOTrainer(Trainer):
    """Proximal policy optimisation of a causal language model against any reward function.

    Args:
        model: the policy: a causal LM with the weights to train requiring gradients, or a PEFT
            model. Its state now is the reference π_ref. Its dropout is switched off and its own
            sampling defaults (top-k, repetition penalty, …) are dropped.
        reward_function: ``(prompts, completions) -> scores``, lists of equal length. It sees text
            only, so another tokenizer, rules or a service are all the same to it.
        args: see :class:`PPOConfig`.
        processing_class: the policy's tokenizer.
        train_dataset: prompts, plain text or lists of messages.
        eval_dataset: prompts that :meth:`evaluate` samples.
        callbacks: as for the Trainer.
        log_samples: called after each rollout with the step and a few rows of text and scores.
    """

    args: PPOConfig

    def __init__(
        self,
        model: nn.Module,
        reward_function: RewardFunction,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Sequence[Prompt],
        eval_dataset: Sequence[Prompt] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        log_samples: SampleLog | None = None,
    ) -> None:
        if not train_dataset:
            raise UserError("PPO has no training prompts; check the data section")
        one_device(args)
        base = prepare(base_of(model), processing_class)
        if isinstance(model, PeftModel):  # keeps one of its own, which generate() puts in place
            model.generation_config = base.generation_config  # type: ignore[assignment]
        check_head(base)
        self.reward_function = checked(reward_function)
        self.log_samples = log_samples
        self.kl_control = KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        self.score_deviation = RunningDeviation()
        set_seed(args.seed)  # the Trainer does so later, but the value head is made here
        super().__init__(
            model=ActorCritic(model, args),
            args=args,
            train_dataset=list(train_dataset),  # type: ignore[arg-type]
            eval_dataset=list(eval_dataset) if eval_dataset else None,  # type: ignore[arg-type]
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.tokenizer = processing_class
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole minibatch's tokens
        self.actor_critic.place_reference(self.args.device)
        self.add_callback(_Hooks(self))
        self._pending: list[Microbatch] = []
        self._rollout_metrics: dict[str, float] = {}
        self._update_metrics = UpdateMetrics()
        self._critic_grad_norm: Tensor | float | None = None
        self.stopped_early = False
        self._updating_since = 0.0

    @property
    def actor_critic(self) -> ActorCritic:
        """The policy and value head without what DDP or the like wraps around them."""
        return self.accelerator.unwrap_model(self.model)  # type: ignore[return-value]

    # -- rollouts ------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches of prompts: a rollout's, once for each of its microbatches."""
        args = self.args
        repeats = args.steps_per_rollout * args.gradient_accumulation_steps
        prompts: Any = self.train_dataset
        self._sampler = RolloutSampler(len(prompts), args.rollout_batch_size, repeats, args.seed)
        loader = DataLoader(
            prompts,
            batch_size=args.rollout_size,
            sampler=self._sampler,
            collate_fn=lambda rows: {"prompts": rows},
        )
        return self.accelerator.prepare(loader)

    def choose_epoch(self) -> None:
        """Give the sampler its epoch, which wrapped for a resumed run it would not be told."""
        self._sampler.set_epoch(self.rollout_index // self._sampler.rollouts)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if not self._pending:
            self._pending = self._collect(inputs["prompts"])
        return {"microbatch": self._pending.pop(0)}

    @property
    def rollout_index(self) -> int:
        """How many rollouts came before the current one."""
        return self.state.global_step // self.args.steps_per_rollout

    def _seed(self, purpose: int) -> int:
        """A seed of this rollout, this process and ``purpose``; no state to save or restore."""
        parts = (self.args.seed, self.rollout_index, self.args.process_index, purpose)
        seed = 0
        for part in parts:
            seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
        return seed

    def _collect(self, prompts: list[Prompt]) -> list[Microbatch]:
        """Sample, score and evaluate one rollout, and cut it into microbatches."""
        args, model, started = self.args, self.actor_critic, time.perf_counter()
        completions = self._sample(model, prompts, self._seed(0))
        sampled = time.perf_counter()
        scores = self._reward(completions)
        rewarded = time.perf_counter()
        with self.accelerator.autocast():
            batch = self._collate(completions)
            old, trunk = score_in_parts(model, batch, args.per_device_train_batch_size)
        rollout = assemble(
            completions,
            batch,
            trunk,
            scores,
            old,
            args,
            self.kl_control,
            self.score_deviation,
            self._sum_over_processes,
        )
        self.stopped_early = False
        made = microbatches(
            rollout, schedule(rollout, args, self._seed(1)), self._sum_over_processes
        )
        self._record(rollout)
        now = time.perf_counter()
        self._rollout_metrics |= {
            "time/generate": sampled - started,
            "time/reward": rewarded - sampled,
            "time/score": now - rewarded,
        }
        self._updating_since = now
        return made

    def _sample(self, model: ActorCritic, prompts: Sequence[Prompt], seed: int) -> list[Completion]:
        with self.accelerator.autocast():
            return sample(
                model.policy,
                self.tokenizer,
                prompts,
                max_new_tokens=self.args.response_length,
                temperature=self.args.temperature,
                batch_size=self.args.generation_batch_size or len(prompts),
                seed=seed,
            )

    def _collate(self, completions: Sequence[Completion]) -> TokenBatch:
        pad: Any = self.tokenizer.pad_token_id
        return TokenBatch.collate(completions, pad, self.args.device)

    def _reward(self, completions: Sequence[Completion]) -> Tensor:
        """Scores ``(B,)`` of the completions."""
        prompts, texts = [c.prompt for c in completions], [c.text for c in completions]
        scores = self.reward_function(prompts, texts)
        return torch.tensor(scores, dtype=torch.float32, device=self.args.device)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values.to(self.args.device), reduction="sum")  # type: ignore[return-value]

    # -- the loss ------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """PPO's loss of one microbatch, as its share of the whole minibatch's token mean."""
        args, data = self.args, inputs["microbatch"]
        if self.stopped_early:  # the rest of this update is skipped, see target_kl
            return torch.zeros((), device=args.device, requires_grad=True)
        mask = data.batch.mask
        output = model(data.batch, data.trunk, with_entropy=args.entropy_coef > 0)
        log_ratio = torch.where(mask, output.logps - data.old_logps, 0.0)
        policy = clipped_surrogate(log_ratio, data.advantages, args.cliprange)
        critic = value_loss(output.values, data.returns, data.old_values, args.cliprange_value)
        total = policy + args.vf_coef * critic - args.entropy_coef * output.entropy
        # DDP averages gradients over processes; the normalizer already counts all their tokens.
        share = args.world_size / data.normalizer
        loss = torch.where(mask, total, 0.0).sum() * share
        self._update_metrics.add(args, data, log_ratio, policy, critic, output.values)
        return (loss, output) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float | None:
        """Clip actor and critic apart, or a large value error would shrink the policy's step."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)  # type: ignore[misc]
        limit = self.args.max_grad_norm
        critic = self.actor_critic.value_head.parameters()
        self._critic_grad_norm = self.accelerator.clip_grad_norm_(critic, limit)
        return self.accelerator.clip_grad_norm_(self.actor_critic.policy.parameters(), limit)

    def gate_gradients(self) -> None:
        """Before an optimizer step: drop the gradients that must not be applied.

        A parameter without gradient is left alone by the optimizer, momentum and weight decay
        included. That is how an update beyond ``target_kl`` ends and how the critic warms up.
        """
        kl = self._update_metrics.minibatch_kl(self._sum_over_processes)
        limit = self.args.target_kl
        self.stopped_early |= limit is not None and kl > limit
        model = self.actor_critic
        if self.stopped_early:
            model.zero_grad(set_to_none=True)
        elif self.rollout_index < self.args.value_warmup_rollouts:
            model.policy.zero_grad(set_to_none=True)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The configured optimizer, the value head with its own learning rate and no decay."""
        if self.optimizer is None:
            target: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(target))
            policy: dict[bool, list[nn.Parameter]] = {True: [], False: []}
            critic = []
            for name, parameter in target.named_parameters():
                if not parameter.requires_grad:
                    continue
                if "value_head." in name:
                    critic.append(parameter)
                else:
                    policy[name in decayed].append(parameter)
            rate = self.args.value_learning_rate or self.args.learning_rate
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, target)
            self.optimizer = optimizer(
                [
                    {"params": policy[True], "weight_decay": self.args.weight_decay},
                    {"params": policy[False], "weight_decay": 0.0},
                    {"params": critic, "weight_decay": 0.0, "lr": rate},
                ],
                **settings,
            )
        return self.optimizer

    # -- metrics -------------------------------------------------------------------------------

    def _record(self, rollout: Rollout) -> None:
        """Note the rollout's metrics, steer β by its KL, and show some of its text."""
        metrics = rollout_metrics(rollout, self.kl_control.coefficient, self._sum_over_processes)
        size = self.args.rollout_batch_size
        self._rollout_metrics = metrics | {"episode": float((self.rollout_index + 1) * size)}
        self.kl_control.update(metrics["objective/kl"], size)
        if self.log_samples is not None and self.is_world_process_zero():
            self.log_samples(self.state.global_step, self._sample_rows(rollout))

    def _sample_rows(self, rollout: Rollout) -> list[dict[str, Any]]:
        kl = rollout.old.exact_kl.sum(1).tolist()
        rows = []
        for i, completion in enumerate(rollout.completions[: self.args.log_completions]):
            score = round(float(rollout.scores[i]), 3)
            row = {"prompt": completion.prompt, "completion": completion.text, "score": score}
            rows.append(row | {"kl": round(kl[i], 3)})
        return rows

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was gathered since the last log event, over all processes."""
        if self._rollout_metrics and "loss" in logs:
            update = self._update_metrics.collect(self._sum_over_processes)
            update["policy/stopped_early"] = float(self.stopped_early)
            if self._critic_grad_norm is not None:
                update["val/grad_norm"] = float(self._critic_grad_norm)
            self._rollout_metrics["time/update"] = time.perf_counter() - self._updating_since
            logs = {**logs, **self._rollout_metrics, **update}
            self._rollout_metrics = {}
        super().log(logs, start_time)

    # -- evaluation and checkpoints ------------------------------------------------------------

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
            the configured β, ``eval_length`` and ``eval_ended``; means over all processes.
            ``metric_for_best_model: objective`` with ``greater_is_better`` keeps the best.
        """
        prompts: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if not prompts:
            raise UserError("PPO's evaluate() has no prompts; pass eval_dataset")
        args, model = self.args, self.actor_critic
        mine = list(prompts)[args.process_index :: args.world_size]
        columns = torch.zeros(5, dtype=torch.float64, device=args.device)
        if mine:
            completions = self._sample(model, mine, seed=args.seed)
            scores = self._reward(completions)
            with self.accelerator.autocast():
                batch = self._collate(completions)
                scored, _ = score_in_parts(model, batch, args.per_device_eval_batch_size)
            columns[0], columns[1] = scores.double().sum(), scored.exact_kl.double().sum()
            columns[2] = sum(c.ended for c in completions)
            columns[3], columns[4] = batch.mask.sum(), len(completions)
        total = self._sum_over_processes(columns)
        score, kl, ended, length = (total[:4] / total[4]).tolist()
        objective = score - args.kl_coef * kl
        names = ("scores", "kl", "objective", "ended", "length")
        values = (score, kl, objective, ended, length)
        metrics = {f"{metric_key_prefix}_{n}": v for n, v in zip(names, values, strict=True)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        state.save(folder, self.actor_critic, self.tokenizer, self.kl_control, self.score_deviation)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        state.load(folder, self.actor_critic, self.kl_control, self.score_deviation)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class _Hooks(TrainerCallback):
    """Calls the trainer back at the moments that the Trainer has callbacks for, not methods."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.choose_epoch()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.gate_gradients()
