"""RLOO and GRPO on TRL's trainers, with our prompts, sampler, reward and reference.

TRL's step, loss and metrics stay as they are. What is replaced are the doors through which another
problem than ours could come in:

* the reference is a copy of the weights that training starts from. TRL would load it again by the
  model's name;
* prompts are encoded, and completions sampled, as everywhere here: from the policy's own
  distribution at temperature 1, by the sampler that an interrupted run repeats to the bit;
* rewards are asked by `pipeline.lm.scored`: texts, columns, whether a completion ended, time-outs;
* tokens have their own positions. TRL pads prompts on the left and leaves positions to the model,
  which counts the padding: with learned positions (GPT-2) those are not the sampled policy's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer, RLOOTrainer
from trl.models import prepare_fsdp, unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from pipeline.config import Experiment
from pipeline.data.records import Prompt
from pipeline.data.splits import load_data
from pipeline.data.validation import validation_prompts
from pipeline.errors import UserError
from pipeline.lm.generation import Completion, encode_prompt, sample
from pipeline.lm.hardware import best_device
from pipeline.lm.models import base_of, frozen_copy
from pipeline.lm.scored import check_columns, score_completions
from pipeline.stages import tracking
from pipeline.stages.batches import epoch_of
from pipeline.stages.cost import Spent, count, spent_by, write_cost
from pipeline.stages.reward_sources import proxy_reward
from pipeline.stages.training import (
    evaluates,
    fit,
    load_trainable_sft,
    save_trained,
    stage_arguments,
)
from pipeline.stages.trl_compat import fit_tiles_to
from reward_models import RewardFunction

Tell = Callable[[int, list[dict[str, Any]]], None]
_LARGEST_SEED = 2**63


def updates_per_rollout(arguments: Any) -> int:
    """Optimizer steps from one rollout; of as many rollouts as end together with a step."""
    passes = arguments.steps_per_generation * arguments.num_iterations
    accumulated = arguments.gradient_accumulation_steps
    return math.lcm(passes, accumulated) // accumulated


def whole_rollouts(arguments: Any) -> None:
    """Move ``save_steps`` and ``eval_steps`` up to whole rollouts.

    The policy that sampled a rollout is gone after its first update: from a checkpoint within one
    its other updates could not be made again.
    """
    every = updates_per_rollout(arguments)
    for name in ("save_steps", "eval_steps"):
        given = getattr(arguments, name)
        if given is not None and given >= 1:
            setattr(arguments, name, math.ceil(given / every) * every)


def _own_positions(model: nn.Module) -> None:
    """Give each real token of a left-padded row its position, in the passes that TRL scores by."""
    if "position_ids" not in inspect.signature(type(base_of(model)).forward).parameters:
        return

    def add(_: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        mask = given.get("attention_mask")
        if not given.get("fused_lm_head") or mask is None or "position_ids" in given:
            return None
        return args, {**given, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}

    model.register_forward_pre_hook(add, with_kwargs=True)  # PEFT calls the inner one's forward


class EpochSampler(RepeatSampler):
    """TRL's order of the prompts, which a resumed run finds again in any epoch.

    TRL's sampler draws an order an epoch from one generator: a run that is resumed in its second
    epoch would get the first one's.
    """

    epoch: Callable[[], int]
    """`epoch_of` the trainer."""

    def __iter__(self) -> Iterator[int]:
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


def proxy(**_: Any) -> list[float]:
    raise AssertionError("rewards are asked by score_completions")


class OnPolicy:
    """What :class:`RLOO` and :class:`GRPO` share; stands before one of TRL's trainers."""

    def __init__(
        self,
        *,
        model: nn.Module,
        reward: RewardFunction,
        args: Any,
        prompts: Sequence[Prompt],
        held: Sequence[Prompt] | None = None,
        processing_class: PreTrainedTokenizerBase,
        sampled_at_once: int,
        tell: Tell | None = None,
    ) -> None:
        """Make the trainer.

        Args:
            model: π_ref, prepared to be trained. reward: asked of every completion.
            args: TRL's config; its ``beta`` is in reward per nat. prompts: trained on.
            held: evaluated on. sampled_at_once: completions of one batch of the sampler.
            tell: given the step and samples with their scores, after each rollout.

        Raises:
            UserError: the prompts have not the columns that the reward asks for, or are too few.
        """
        self._prompts = [*prompts, *(held or ())]
        check_columns(reward, self._prompts)
        self._reward, self._sampled_at_once, self._tell = reward, sampled_at_once, tell
        self._asked: list[Prompt] = []
        self._drawn: list[Completion] = []
        whole_rollouts(args)
        asked = args.generation_batch_size // args.num_generations
        if len(prompts) < asked:
            raise UserError(
                f"data.train_prompts: {len(prompts)} prompts do not fill one rollout of {asked}; "
                f"raise num_generations, or lower per_device_train_batch_size"
            )
        beta, peft = args.beta, isinstance(model, PeftModel)
        reference = None if peft or beta == 0 else frozen_copy(model)
        args.beta = 0.0  # so that TRL loads none
        given: dict[str, Any] = {
            "model": model,
            "reward_funcs": proxy,
            "args": args,
            "train_dataset": self._rows(0, len(prompts)),
            "eval_dataset": self._rows(len(prompts), len(self._prompts)) if held else None,
            "processing_class": processing_class,
        }
        super().__init__(**given)
        self.args.beta = self.beta = beta
        adapted: Any = model
        # TRL's copy of the new adapters, which add nothing yet: the model without any is the same.
        if peft and "ref" in adapted.peft_config:
            adapted.delete_adapter("ref")
        _own_positions(self.model)
        if reference is not None:
            self.ref_model = self._prepared(reference)
        self.add_callback(Spent())  # type: ignore[attr-defined]

    model: Any
    args: Any
    accelerator: Any
    state: Any

    def _rows(self, first: int, end: int) -> Dataset:
        """Prompts by their numbers: as columns of a `Dataset` they would lose what they know."""
        texts = [str(prompt) for prompt in self._prompts[first:end]]
        return Dataset.from_dict({"prompt": texts, "row": list(range(first, end))})

    def _prepared(self, reference: nn.Module) -> Any:
        """The reference as TRL prepares the one that it loads."""
        fp32_head = getattr(self.args, "cast_lm_head_to_fp32", False)
        add_fused_lm_head(base_of(reference), self.temperature, fp32_head)  # type: ignore
        _own_positions(reference)
        if self.is_fsdp_enabled:  # type: ignore[attr-defined]
            return prepare_fsdp(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    # TRL's names of what these two are given are not transformers'.

    def _get_train_sampler(self, *given: Any, **named: Any) -> EpochSampler:
        plain = super()._get_train_sampler(*given, **named)  # type: ignore[misc]
        made = EpochSampler(
            plain.data_source,
            plain.mini_repeat_count,
            batch_size=plain.batch_size,
            repeat_count=plain.repeat_count,
            shuffle=plain.shuffle,
            seed=plain.seed,
        )
        made.epoch = epoch_of(self)  # type: ignore[arg-type]
        return made

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt", "row"]

    def _prepare_inputs(self, *given: Any, **named: Any) -> Any:
        if self.model.training and self._buffered_inputs is None:  # type: ignore[has-type]
            # TRL counts from 0 again after a resume: its rollouts would straddle two batches.
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super()._prepare_inputs(*given, **named)  # type: ignore[misc]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._asked = [self._prompts[row["row"]] for row in inputs]
        self._first_row = inputs[0]["row"]
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        tokenizer: Any = self.processing_class  # type: ignore[attr-defined]
        known: dict[int, list[int]] = {}  # a group's prompt is one object
        for prompt in self._asked:
            if id(prompt) not in known:
                known[id(prompt)] = list(encode_prompt(tokenizer, prompt))
        return [known[id(prompt)] for prompt in self._asked], None, {}

    def _seed(self) -> int:
        """Of this rollout on this process; the same evaluation prompts get the same numbers."""
        step = self._step + 1 if self.model.training else -1 - self._first_row
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        return ((self.args.seed * 1_000_003 + step) * count + rank) % _LARGEST_SEED

    def _sample(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Completions of ``self._asked``, EOS included where there is one; kept for the reward."""
        with (
            unwrap_model_for_generation(
                self.model_wrapped,  # type: ignore[attr-defined]
                self.accelerator,
            ) as policy,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),  # type: ignore
        ):
            self._drawn = sample(
                policy,  # type: ignore[arg-type]
                self.processing_class,  # type: ignore[attr-defined]
                self._asked,
                max_new_tokens=self.args.max_completion_length,
                temperature=self.args.temperature,
                batch_size=self._sampled_at_once,
                seed=self._seed(),
                encoded=[tuple(ids) for ids in prompt_ids],
            )
        return [list(completion.completion_ids) for completion in self._drawn]

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """Scores ``(B, 1)`` of the completions that all processes have just sampled."""
        scores = score_completions(self._reward, self._drawn).total
        count(self, sampled=self._drawn, scored=len(self._drawn))  # type: ignore[arg-type]
        if self._tell is not None and self.model.training and self.accelerator.is_main_process:
            rows = [
                {"prompt": str(c.prompt), "completion": c.text, "score": score}
                for c, score in zip(self._drawn, scores, strict=True)
            ]
            self._tell(self.state.global_step, rows)
        mine = torch.tensor(scores, dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.gather(mine[:, None])


class RLOO(OnPolicy, RLOOTrainer):
    """TRL's RLOO: REINFORCE with the other completions' mean as the baseline (arXiv 2402.14740).

    It charges β(log π − log π_ref) of a whole completion in its reward, so its optimum is π*.
    """

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        return self._sample(prompt_ids)


class GRPO(OnPolicy, GRPOTrainer):
    """TRL's GRPO (arXiv 2402.03300), whose KL is a term of each token's loss.

    Its optimum is near π*, and not π*: a token's term has no gradient at the tokens before.
    """

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        return self._sample(prompt_ids), None


def learn(
    experiment: Experiment, stage: str, config_class: Any, trainer_class: Any, **defaults: Any
) -> None:
    """Train on ``data.train_prompts`` against the config's reward and write ``<stage>/model``.

    What it is evaluated on, where it is, are ``data.validation_prompts``.

    Args:
        defaults: fields of ``config_class`` where the config does not say.
    """
    data, generation = load_data(experiment), experiment.generation
    arguments = stage_arguments(
        experiment,
        stage,
        config_class,
        gradient_checkpointing=False,
        beta=experiment.beta,
        max_completion_length=generation.max_new_tokens,
        temperature=generation.temperature,
        **defaults,
    )
    held, prompts = None, data.train_prompts
    if evaluates(arguments):
        held, prompts = validation_prompts(experiment, data, stage)
    model, tokenizer = load_trainable_sft(experiment)
    fit_tiles_to(best_device().type)

    def tell(step: int, rows: list[dict[str, Any]]) -> None:
        if step % (8 * updates_per_rollout(arguments)) == 0:
            tracking.log_samples(experiment, stage, step, rows)

    trainer = trainer_class(
        model=model,
        reward=proxy_reward(experiment),
        args=arguments,
        prompts=prompts,
        held=held,
        processing_class=tokenizer,
        sampled_at_once=generation.batch_size,
        tell=tell,
    )
    fit(trainer, experiment, stage)
    save_trained(trainer, experiment, stage, trainer.accelerator.unwrap_model(trainer.model))
    write_cost(experiment, stage, **spent_by(trainer))
