"""PPO for language models on ``transformers.Trainer``.

A rollout is made where the Trainer prepares its inputs, the loss where it computes one, and the
training loop is the Trainer's own: resume, evaluation, clipping, schedules, accumulation,
callbacks, ``report_to``, DDP and saving need no code here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from classic_rl.losses import clipped_surrogate, kl_estimate, value_loss
from pipeline.data.records import Prompt
from pipeline.errors import UserError
from pipeline.lm.generation import Completion, longest_prompt, sample
from pipeline.lm.hardware import one_device, use_plain_attention
from pipeline.lm.models import base_of, prepare
from pipeline.lm.scoring import TokenBatch, check_head
from pipeline.output.checkpoints import require_whole
from pipeline.ppo.actor_critic import ActorCritic, ReferenceScores
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.control import KLController, RolloutSampler, RunningDeviation
from pipeline.ppo.rollout import (
    Microbatch,
    Rollout,
    assemble,
    microbatches,
    score_in_parts,
)
from pipeline.ppo.upkeep import state
from pipeline.ppo.upkeep.distribution import (
    DistributedTrainer,
    evaluation_part,
    rollout_draws,
    sample_whole,
    share,
)
from pipeline.ppo.upkeep.guarded import GuardedTrainer
from pipeline.ppo.upkeep.journal import Journal, sample_rows
from pipeline.ppo.upkeep.metrics import rollout_metrics
from pipeline.ppo.upkeep.phases import Performance
from pipeline.ppo.upkeep.rewarding import ask, reward_caller
from reward_models import RewardFunction

SampleLog = Callable[[int, list[dict[str, Any]]], None]


class PPOTrainer(GuardedTrainer, DistributedTrainer):
    """Proximal policy optimisation of a causal language model against any reward function.

    Args:
        model: the policy: a causal LM with the weights to train requiring gradients, or a PEFT
            model. Its state now is the reference π_ref. Its dropout is switched off, on a
            processor its attention computed plainly while sequences are short, and its own
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
        longest = longest_prompt(processing_class, train_dataset) + args.response_length
        use_plain_attention(base, args.device, longest)
        self.reward_function = reward_caller(reward_function, args)
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
        self._hooks = _Hooks(self)
        self.add_callback(self._hooks)
        self._pending: list[Microbatch] = []
        self._rollout_metrics: dict[str, float] = {}
        self.stopped_early = False
        self.performance = Performance(self.actor_critic, self.args)
        self.journal = Journal(Path(str(args.output_dir)) / "rollouts", processing_class)

    def add_callback(self, callback: Any) -> None:
        """As the Trainer's; our own hooks stay last, to have the last word on a step."""
        super().add_callback(callback)
        hooks = getattr(self, "_hooks", None)
        if hooks is not None:
            self.callback_handler.callbacks.sort(key=lambda known: known is hooks)

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
        self._pending = []  # an earlier call that ended in an error may have left some
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
        if "microbatch" in inputs:  # a part of one that did not fit
            return inputs
        if not self._pending:
            self._pending = self._collect(inputs["prompts"])
        self.performance.clock.start("update")
        return {"microbatch": self._pending.pop(0)}

    @property
    def rollout_index(self) -> int:
        """How many rollouts came before the current one."""
        return self.state.global_step // self.args.steps_per_rollout

    def _seed(self, purpose: int) -> int:
        """A seed of this rollout and ``purpose``, for all processes; no state to save."""
        parts = (self.args.seed, self.rollout_index, purpose)
        seed = 0
        for part in parts:
            seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
        return seed

    def _collect(self, prompts: list[Prompt]) -> list[Microbatch]:
        """Sample, score and evaluate one rollout, and cut it into microbatches."""
        args, model, clock = self.args, self.actor_critic, self.performance.clock
        clock.start("generate")
        draws = rollout_draws(self.tokenizer, prompts, args, self._seed(0))
        completions = self._sample(model, prompts, self._seed(0), draws)
        clock.start("reward")
        scores = self._reward(completions)
        clock.start("score")
        with self.accelerator.autocast():
            batch = self._collate(completions)
            old, trunk = self._score(batch, args.per_device_train_batch_size)
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
        made = microbatches(*share(rollout, args, self._seed(1)), self._sum_over_processes)
        self._record(rollout)
        return made

    def _sample(
        self, model: ActorCritic, prompts: Sequence[Prompt], seed: int, draws: Tensor | None
    ) -> list[Completion]:
        def draw(rows: int) -> list[Completion]:
            return sample(
                model.policy,
                self.tokenizer,
                prompts,
                max_new_tokens=self.args.response_length,
                temperature=self.args.temperature,
                batch_size=rows,
                seed=seed,
                draws=draws,
            )

        with self.accelerator.autocast():
            rows = self.args.generation_batch_size or len(prompts)
            return sample_whole(model, lambda: self.memory.fit("generating", rows, draw))

    def _score(self, batch: TokenBatch, rows: int) -> tuple[ReferenceScores, Tensor | None]:
        model = self.actor_critic
        return self.memory.fit("scoring", rows, lambda rows: score_in_parts(model, batch, rows))

    def _collate(self, completions: Sequence[Completion]) -> TokenBatch:
        pad: Any = self.tokenizer.pad_token_id
        return TokenBatch.collate(completions, pad, self.args.device)

    def _reward(self, completions: Sequence[Completion]) -> Tensor:
        """Scores ``(B,)`` of the completions."""
        scores = ask(self.reward_function, completions, self.args, self.state.global_step)
        return torch.tensor(scores, dtype=torch.float32, device=self.args.device)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values.to(self.args.device), reduction="sum")  # type: ignore[return-value]

    def _gather(self, values: Tensor) -> Tensor:
        return self.accelerator.gather(values.to(self.args.device)[None])  # type: ignore[return-value]

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
        if args.kl_in == "loss":
            penalty = kl_estimate(output.logps, data.ref_logps, args.kl_estimator)
            total = total + self.kl_control.coefficient * penalty
        # DDP averages gradients over processes; the normalizer already counts all their tokens.
        scale = args.world_size / data.normalizer
        loss = torch.where(mask, total, 0.0).sum() * scale
        self._update_metrics.add(args, data, log_ratio, policy, critic, output.values)
        return (loss, output) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float | None:
        """Clip actor and critic apart, or a large value error would shrink the policy's step."""
        if self.is_deepspeed_enabled:  # its engine clips, all together, as it steps
            return super()._clip_grad_norm(model)  # type: ignore[misc]
        critic = self.clipped_norm(self.actor_critic.value_head)
        actor = self.clipped_norm(self.actor_critic.policy)
        self.check_gradient(critic)
        if actor is not None and critic is not None and not self.stopped_early:
            self._update_metrics.add_norms(actor, critic)
        return actor

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
            rate = self.args.value_learning_rate or 10 * self.args.learning_rate
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
        beta, size = self.kl_control.coefficient, self.args.rollout_batch_size
        metrics = rollout_metrics(rollout, beta, self._sum_over_processes, self._gather)
        self._rollout_metrics = metrics | {"episode": float((self.rollout_index + 1) * size)}
        self.guards.look_at_rollout(rollout, metrics, self.state.global_step)
        self.kl_control.update(metrics["objective/kl"], size)
        self.performance.add(rollout.batch)
        if self.is_world_process_zero():
            step = self.state.global_step
            self.journal.write(step, rollout, self._rollout_metrics, self.args)
        if self.log_samples is not None and self.is_world_process_zero():
            self.log_samples(self.state.global_step, sample_rows(rollout, self.args))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was gathered since the last log event, over all processes."""
        if self._rollout_metrics and "loss" in logs:
            update = self._update_metrics.collect(self._sum_over_processes, self._gather)
            update["policy/stopped_early"] = float(self.stopped_early)
            update |= self.performance.collect(self._update_metrics.tokens, self._gather)
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
        mine, count, draws = evaluation_part(self.tokenizer, prompts, args)
        completions = self._sample(model, mine, args.seed, draws)
        scores = self._reward(completions)
        with self.accelerator.autocast():
            batch = self._collate(completions)
            scored, _ = self._score(batch, args.per_device_eval_batch_size)
        ended = torch.tensor([float(c.ended) for c in completions], device=args.device)
        lengths, ones = batch.mask.sum(1), torch.ones_like(ended)
        columns = (scores, scored.exact_kl.double().sum(1), ended, lengths, ones)
        total = self._sum_over_processes(torch.stack([c[:count].double().sum() for c in columns]))
        score, kl, ended, length = (total[:4] / total[4]).tolist()
        objective = score - args.kl_coef * kl
        names = ("scores", "kl", "objective", "ended", "length")
        values = (score, kl, objective, ended, length)
        metrics = {f"{metric_key_prefix}_{n}": v for n, v in zip(names, values, strict=True)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            controllers = (self.kl_control, self.score_deviation)
            state.save(folder, self.actor_critic, self.tokenizer, *controllers, state_dict)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        require_whole(folder)
        state.load(folder, self.actor_critic, self.kl_control, self.score_deviation)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class _Hooks(TrainerCallback):
    """Calls the trainer back at the moments that the Trainer has callbacks for, not methods."""

    HELD = ("should_evaluate", "should_save", "should_training_stop")

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer
        self.held: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.held.clear()
        self.trainer.performance.measure_machine()
        if state.is_world_process_zero:
            self.trainer.journal.begin(state.global_step)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.choose_epoch()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.gate_gradients()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put off to the end of the rollout what would not resume from within it."""
        self.trainer.performance.clock.stop()
        self.held.update(flag for flag in self.HELD if getattr(control, flag))
        due = state.global_step % args.steps_per_rollout == 0
        for flag in self.held:
            setattr(control, flag, due)
        if due:
            self.held.clear()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.guards.end(state)
