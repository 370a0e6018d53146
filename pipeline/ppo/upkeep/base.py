"""What PPO asks of ``transformers.Trainer`` beside the algorithm, handed on to what does it.

Nothing of PPO is computed here: :class:`BaseTrainer` holds the collaborators and overrides the
Trainer's methods where one of them has a part, :class:`~pipeline.ppo.upkeep.hooks.Hooks` is its one
callback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer

from common.words import first_line
from pipeline.data.records import Prompt
from pipeline.output.checkpoints import require_whole
from pipeline.ppo.actor_critic import ActorCritic, parameter_groups
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.control import KLController, RunningDeviation
from pipeline.ppo.measure import Measure
from pipeline.ppo.prefix import PrefixCritic
from pipeline.ppo.rollout import Microbatch, Rollout
from pipeline.ppo.upkeep import distributed, state
from pipeline.ppo.upkeep.gold import EvaluationsFile, GoldWatch
from pipeline.ppo.upkeep.guards import Guards
from pipeline.ppo.upkeep.hooks import Hooks
from pipeline.ppo.upkeep.journal import Journal, sample_rows
from pipeline.ppo.upkeep.memory import Memory
from pipeline.ppo.upkeep.metrics import UpdateMetrics, engine_metrics, rollout_metrics
from pipeline.ppo.upkeep.overlap import Ahead
from pipeline.ppo.upkeep.performance import Performance
from pipeline.ppo.upkeep.scaling import LossScale
from pipeline.ppo.upkeep.sharing import RolloutSampler

SampleLog = Callable[[int, list[dict[str, Any]]], None]


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts as they are: of a list, accelerate would make new ones, which do not know
    the columns of their rows."""

    rows: list[Prompt]


class BaseTrainer(Trainer):
    """The Trainer with guards, memory, processes, journal, metrics and performance.

    A subclass sets ``kl_control``, ``score_deviation``, ``prefix_critic`` and ``gold_watch``,
    which checkpoints hold, before it calls ``__init__``, and gives ``_prepare_inputs``,
    ``compute_loss`` and :meth:`gate_gradients`.
    """

    args: PPOConfig
    kl_control: KLController
    score_deviation: RunningDeviation
    prefix_critic: PrefixCritic
    gold_watch: GoldWatch

    def __init__(
        self,
        model: ActorCritic,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        log_samples: SampleLog | None,
        **arguments: Any,
    ) -> None:
        super().__init__(model, args, processing_class=processing_class, **arguments)
        self.tokenizer = processing_class
        self.log_samples = log_samples
        self.stopped_early = False
        self.pending: list[Microbatch] = []  # of the rollout that is learned from
        self.reward_queries = 0  # of the rollout at hand, in this process
        self._rollout_metrics: dict[str, float] = {}
        self.update_metrics = UpdateMetrics(self.args.device)
        self.performance = Performance(self.args.device)
        self.ahead = Ahead()
        self.journal = Journal(Path(str(args.output_dir)) / "rollouts", processing_class)
        self.evaluations = EvaluationsFile(Path(str(args.output_dir)) / "evaluations.jsonl")
        self._within_loop = False
        self.guards = Guards(self.args)
        self.loss_scale = LossScale(self.accelerator)
        self.memory = Memory(self.args.world_size, self._undo_minibatch, Measure.of(self.args))
        self._hooks = Hooks(self)
        self.add_callback(self._hooks)

    @property
    def actor_critic(self) -> ActorCritic:
        """The policy and value head without what DDP or the like wraps around them."""
        return self.accelerator.unwrap_model(self.model)  # type: ignore[return-value]

    @property
    def _controllers(self) -> tuple[KLController, RunningDeviation, PrefixCritic, GoldWatch]:
        return self.kl_control, self.score_deviation, self.prefix_critic, self.gold_watch

    @property
    def rollout_index(self) -> int:
        """How many rollouts came before the current one."""
        return self.state.global_step // self.args.steps_per_rollout

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """The sum of every process's tensor."""
        return self.accelerator.reduce(values.to(self.args.device), reduction="sum")  # type: ignore[return-value]

    def gather_rows(self, values: Tensor) -> Tensor:
        """Every process's ``(k,)`` tensor as the rows of one ``(P, k)``."""
        return self.accelerator.gather(values.to(self.args.device)[None])  # type: ignore[return-value]

    # -- rollouts and metrics ------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches of prompts: a rollout's, once for each of its microbatches."""
        args = self.args
        repeats = args.steps_per_rollout * args.gradient_accumulation_steps
        prompts: Any = self.train_dataset
        self.pending = []  # an earlier call that ended in an error may have left some
        self.ahead.wait()  # or still draw, and an engine is asked one thing at a time
        self.ahead = Ahead()
        self._sampler = RolloutSampler(len(prompts), args.rollout_batch_size, repeats, args.seed)
        loader = DataLoader(
            prompts,
            batch_size=args.rollout_size,
            sampler=self._sampler,
            collate_fn=lambda rows: {"prompts": Prompts(rows)},
        )
        return self.accelerator.prepare(loader)

    def choose_epoch(self) -> None:
        """Give the sampler its epoch, which wrapped for a resumed run it would not be told."""
        self._sampler.set_epoch(self.rollout_index // self._sampler.rollouts)

    def on_rollout(self, rollout: Rollout) -> dict[str, float]:
        """Look at a finished rollout: metrics (returned), guards, journal and samples."""
        step, size = self.state.global_step, self.args.rollout_batch_size
        beta = self.kl_control.coefficient
        metrics = rollout_metrics(rollout, beta, self.sum_over_processes, self.gather_rows)
        queries = self.sum_over_processes(torch.tensor([self.reward_queries]))
        metrics["val/reward_queries"] = float(queries)
        if rollout.importance is not None:
            mask, cap = rollout.batch.mask, self.args.importance_cap
            metrics |= engine_metrics(rollout.importance, mask, cap, self.sum_over_processes)
        self.reward_queries = 0
        self._rollout_metrics = metrics | {"episode": float((self.rollout_index + 1) * size)}
        self.guards.look_at_rollout(rollout, metrics, step)
        self.performance.add(rollout.batch)
        if self.is_world_process_zero():
            self.journal.write(step, rollout, self._rollout_metrics, self.args)
            if self.log_samples is not None:
                self.log_samples(step, sample_rows(rollout, self.args))
        return metrics

    def on_evaluation(self, columns: Mapping[str, Tensor]) -> None:
        """Keep what an evaluation while training measured; end the run where gold has fallen.

        Args:
            columns: ``scores``, ``kl`` and where there is a judge ``gold``; of every prompt.
        """
        step = self.state.global_step
        if not self.is_in_train or (step > 0 and not self._within_loop):
            return  # an evaluation of one's own, or the one that a resumed run begins with
        row = {
            name: columns[name].tolist() if name in columns else None
            for name in ("scores", "kl", "gold")
        }
        if self.is_world_process_zero():
            self.evaluations.write({"step": step, **row})
        judged = row["gold"]
        if judged is None:
            return
        fall = self.gold_watch.look(step, judged, self._planned_evaluations())
        if self.args.gold_stop and self.gold_watch.fallen:
            self.guards.tell_gold(step, fall, self.gold_watch.step)
            self.control.should_save = self.control.should_training_stop = True

    def _planned_evaluations(self) -> int:
        """How many there are in the whole run, the one at its start too."""
        if self.args.eval_strategy == "steps" and self.state.eval_steps:
            return int(self.state.max_steps // self.state.eval_steps) + 1
        return math.ceil(self.state.num_train_epochs) + 1

    def ended_at(self, checkpoint: Path) -> bool:
        """Whether ``gold_stop`` ended the run there: it is not to go on."""
        return self.args.gold_stop and state.gold_has_fallen(checkpoint)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was gathered since the last log event, over all processes."""
        if self._rollout_metrics and "loss" in logs:
            update = self.update_metrics.collect(self.sum_over_processes, self.gather_rows)
            update["policy/stopped_early"] = float(self.stopped_early)
            update |= self.performance.collect(self.update_metrics.tokens, self.gather_rows)
            logs = {**logs, **self._rollout_metrics, **update}
            self._rollout_metrics = {}
        super().log(logs, start_time)

    def failed_ahead(self) -> bool:
        """Wait for what is drawn ahead; whether that failed, on any process."""
        if not self.args.overlap:
            return False
        self.performance.start("generate")
        self.ahead.wait()
        self.performance.stop()
        own = self.ahead.error
        failed = self.sum_over_processes(torch.tensor([float(own is not None)]))
        if float(failed) == 0:
            return False
        reasons = gather_object([None if own is None else first_line(own)])
        self.ahead.failed_elsewhere(next(reason for reason in reasons if reason is not None))
        return True

    # -- steps ---------------------------------------------------------------------------------

    def begin_minibatch(self) -> None:
        """Note what is gone back to when a microbatch of this minibatch does not fit."""
        self.memory.begin_minibatch()
        self.update_metrics.begin_minibatch()

    def _undo_minibatch(self) -> None:
        self.update_metrics.undo_minibatch()
        model: Any = self.model
        model.zero_grad(set_to_none=True)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """The Trainer's, of the microbatch, part by part where it has some or memory asks for it.

        Processes add up their gradients once, with the last part.
        """
        plain: Any = super().training_step
        microbatch: Any = self._prepare_inputs(inputs)["microbatch"]

        def step(part: Microbatch, last: bool) -> Tensor:
            self.performance.learn(part.batch, self.args.packing)
            with nullcontext() if last else distributed.gradients_to_come(self, model):
                return plain(model, {"microbatch": part}, num_items_in_batch)

        return self.memory.learn(microbatch, step)

    def gate_gradients(self) -> None:
        """Before an optimizer step: drop the gradients that must not be applied."""
        raise NotImplementedError

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            self.keep_a_gradient()
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        self.look_at_gradient(norm)
        return norm

    def look_at_gradient(self, norm: Any) -> None:
        """Stop at a gradient that is not finite, unless the loss's scale is why."""
        if not self.loss_scale.explains(norm):
            self.guards.look_at_gradient(norm, self.state.global_step)

    def keep_a_gradient(self) -> None:
        """See :meth:`pipeline.ppo.upkeep.scaling.LossScale.keep_one`."""
        model = self.actor_critic
        self.loss_scale.keep_one(model, model.value_head.out.bias)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The configured optimizer, the value head with its own learning rate and no decay."""
        if self.optimizer is None:
            target: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(target))
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, target)
            groups = parameter_groups(target, decayed, self.args)
            if self.is_fsdp_enabled:
                groups = distributed.filled(groups)
            self.optimizer = optimizer(groups, **settings)
        return self.optimizer

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._hooks.hold(self.args, self.state, self.control)
        self._within_loop = True
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
        self._within_loop = False
        self._hooks.hold(self.args, self.state, self.control)  # on_log may ask to stop

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._finalize_training(*args, **kwargs)  # type: ignore[misc]
        self.guards.end(self.state.global_step)
        self.ahead.end(self.state.global_step)
        return output

    # -- processes and checkpoints -------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's, with FSDP as PPO needs it."""
        super().create_accelerator_and_postprocess()
        distributed.set_up(self, self.args)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        plain: Any = super()._prepare_for_training  # type: ignore[misc]
        arguments = (max_steps, train_dataloader, resume_from_checkpoint)
        return distributed.prepare(self, lambda: plain(*arguments))

    def policy_weights(self) -> dict[str, Tensor] | None:
        """See :func:`pipeline.ppo.upkeep.state.policy_weights`."""
        model: Any = self.model
        return state.policy_weights(model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; under FSDP2 the policy is gathered and process 0 writes it whole."""
        if not self.is_fsdp_enabled:
            return super().save_model(output_dir, _internal_call)
        weights = self.policy_weights() or {}
        self._save(output_dir, {f"policy.{name}": value for name, value in weights.items()})
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            distributed.save_optimizer_and_scheduler(self, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        plain: Any = super()._load_optimizer_and_scheduler  # type: ignore[misc]
        if checkpoint is None:
            return plain(checkpoint)
        with distributed.as_saved(self, Path(checkpoint)):
            plain(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """What each process has of its own: random states, and completions drawn ahead."""
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        if self.args.overlap:
            self.ahead.save(Path(output_dir), self.args.process_index, self.args.world_size)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        if self.args.overlap and checkpoint is not None:
            args = self.args
            self.ahead.load(Path(checkpoint), args.process_index, args.world_size)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            kept = self._controllers
            state.save(folder, self.actor_critic, self.tokenizer, *kept, weights=state_dict)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        require_whole(folder)
        state.load(folder, self.actor_critic, *self._controllers)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)
