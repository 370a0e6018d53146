"""What every stage with a Trainer does the same way: arguments, model, callbacks, resume."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from accelerate.utils import TorchDynamoPlugin, broadcast_object_list
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from pipeline.config import Experiment
from pipeline.config.arguments import listed
from pipeline.config.hub import without_hub
from pipeline.errors import UserError
from pipeline.lm import quantization
from pipeline.lm.checkpointing import SpareFrozenLayers
from pipeline.lm.compiling import compile_layers
from pipeline.lm.hardware import compute_dtype, one_device, policy_dtype, trainer_precision
from pipeline.lm.loading import loading
from pipeline.lm.models import (
    base_of,
    load_base,
    load_pretrained,
    make_trainable,
    prepare,
    upcast_trained,
)
from pipeline.lm.saving import save_adapter, save_policy
from pipeline.output.checkpoints import (
    CompleteMarker,
    beside,
    flaw,
    last_complete,
    set_aside_after,
)
from pipeline.output.console import is_main_process, say
from pipeline.output.policies import ADAPTER, MODEL
from pipeline.ppo.config import sharded
from pipeline.ppo.upkeep import distributed
from pipeline.ppo.upkeep.base import BaseTrainer
from pipeline.ppo.upkeep.state import gathered, put
from pipeline.stages import tracking

QUANTIZED = "quantized"
"""Of SFT: its adapters over the quantised base, which is π_ref; ``model`` is both in float32."""

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def stage_arguments(
    experiment: Experiment, stage: str, config_class: type[Arguments], **defaults: Any
) -> Arguments:
    """The trainer configuration of ``stage``: our defaults, then whatever the experiment says.

    Raises:
        UserError: the configuration class rejects a value.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UserError(
            "DeepSpeed is not supported; FSDP splits weights, gradients and optimizer state too:"
            " start with configs/accelerate/fsdp2.yaml"
        )
    hints = get_type_hints(config_class)
    given = without_hub(experiment.trainer_args(stage))  # a list's only item may be given bare
    arguments = {
        "seed": experiment.seed,
        "save_strategy": "steps",
        "save_total_limit": 2,
        **trainer_precision(experiment.model),
        **defaults,
        **{key: listed(value, hints.get(key)) for key, value in given.items()},
        "output_dir": str(experiment.stage_dir(stage) / "checkpoints"),
        "report_to": tracking.report_to(experiment),
        "disable_tqdm": True,
    }
    try:
        made = config_class(**arguments)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{stage}: {reason}") from error
    one_device(made)
    dtype = compute_dtype(experiment.model)
    for flag, its in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        asked, name = getattr(made, flag), str(dtype).removeprefix("torch.")
        if asked != (dtype == its):
            wanted = str(its).removeprefix("torch.") if asked else "float32"
            raise UserError(
                f"{stage}.{flag}: {str(asked).lower()} does not go with the model's {name}; "
                f"leave it out and set model.dtype={wanted}"
            )
    if experiment.model.quantization is not None and sharded(made):
        raise UserError(
            "model.quantization: not under FSDP, which would split the codes; run on one device,"
            " or on one a process (DDP)"
        )
    return made


def load_trainable_sft(experiment: Experiment) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """π_ref (the SFT checkpoint), prepared to be trained further by PPO or DPO."""
    section = experiment.model
    path = experiment.stage_dir("sft") / "model"
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: there is no SFT model; run `rlhf sft` with this config first")
    if section.quantization is None:
        more = loading(section, base=False)
        model, tokenizer = load_pretrained(str(path), compute_dtype(section), more=more)
    else:  # SFT's model is its base, held in few bits, and its adapters
        kept = path.with_name(QUANTIZED)
        model, tokenizer = load_base(section, quantization.base_seed(kept))
        model = quantization.load_reference(model, kept)
    ready, chosen = prepare(model, tokenizer), section.policy_modules
    return make_trainable(ready, section, experiment.seed, chosen), tokenizer


class StopOnNaN(TrainerCallback):
    """Ends the run, with the last good checkpoint kept, when the loss is no longer a number."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Look at the loss and the gradient norm of each log event."""
        # Under float16 a scale that was too large is halved, and that step left out.
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(
                    f"{args.output_dir}: {name} is {value} at step {state.global_step}; "
                    "lower the learning rate and run again (the last checkpoint is kept)"
                )


def fit(trainer: Trainer, experiment: Experiment, stage: str) -> None:
    """Train to the end, from the last whole checkpoint where there is one.

    Raises:
        UserError: the length limit has left no row to train on.
    """
    rows: Any = trainer.train_dataset
    if len(rows) == 0:
        key = f"{stage}.max_length"
        raise UserError(f"{key}: it leaves nothing of any answer to train on; raise it")
    tracking.quieten(trainer)
    _compiled(trainer)
    if experiment.model.quantization is not None and trainer.model is not None:
        upcast_trained(trainer.model)  # TRL makes adapters over a quantised base bfloat16
    for callback in [*tracking.callbacks(experiment, stage), StopOnNaN(), SpareFrozenLayers()]:
        trainer.add_callback(callback)
    if not any(isinstance(c, CompleteMarker) for c in trainer.callback_handler.callbacks):
        trainer.add_callback(CompleteMarker())
    if sharded(trainer.args) and not isinstance(trainer, BaseTrainer):  # which has done so
        distributed.set_up(trainer, trainer.args)
        distributed.save_in_parts(trainer)
    try:
        resume(trainer)
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{stage}.metric_for_best_model: {reason}") from error


def _compiled(trainer: Trainer) -> None:
    """Compile layers instead of what the Trainer calls, which not all of these trainers call."""
    model: Any = trainer.model
    if not trainer.args.torch_compile or not isinstance(base_of(model), PreTrainedModel):
        return
    compile_layers(model, trainer.args)
    trainer.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="no")  # type: ignore


def evaluates(arguments: TrainingArguments) -> bool:
    """True when something is to be held out, to be evaluated on while training."""
    return arguments.eval_strategy != "no" or arguments.eval_on_start


def save_trained(trainer: Trainer, experiment: Experiment, stage: str, policy: nn.Module) -> None:
    """Write the finished ``policy`` with its tokenizer, on one process.

    It goes to ``<stage>/model``, or as ``model.save`` has it to ``<stage>/adapter``, or to both.
    Every process must call this: where FSDP has split the policy, all have a part of it.
    """
    if any(isinstance(module, FSDPModule) for module in policy.modules()):
        weights = gathered(policy)
        if trainer.is_world_process_zero():
            policy = _untrained(experiment, stage)
            put(weights, policy, stage)
    if trainer.is_world_process_zero():
        tokenizer: Any = trainer.processing_class
        folder, form = experiment.stage_dir(stage), experiment.model.save
        # π_ref is what is saved, so it may be rounded; what is measured against it may not.
        dtype = compute_dtype if stage == "sft" else policy_dtype
        if stage == "sft" and experiment.model.quantization is not None:
            # There π_ref is the quantised base with these adapters, so nothing may be.
            quantization.keep_reference(policy, folder / QUANTIZED, experiment.seed)
            dtype = policy_dtype
        if stage == "sft" or not isinstance(policy, PeftModel):
            form = "merged"  # π_ref is the base of all adapters
        if isinstance(policy, PeftModel) and form != "merged":
            base = experiment.stage_dir("sft") / MODEL
            save_adapter(policy, tokenizer, folder / ADAPTER, base)
        if form != "adapter":  # last: adapters are gone once they are merged
            save_policy(policy, tokenizer, folder / MODEL, dtype(experiment.model))


def _untrained(experiment: Experiment, stage: str) -> nn.Module:
    """The policy as ``stage`` began with it, whole."""
    if stage != "sft":
        return load_trainable_sft(experiment)[0]
    model, _ = load_base(experiment.model, experiment.seed)
    return make_trainable(model, experiment.model, experiment.seed)


def resume(trainer: Trainer) -> None:
    """Train from the last whole checkpoint in the output folder, or from the start.

    Checkpoints after it, which are not whole, are set aside. One of the last step is only loaded,
    or the best where that is asked for: the Trainer's loop would make one step more when that step
    lies within an epoch.
    """
    checkpoint = _resume_point(Path(str(trainer.args.output_dir)))
    if checkpoint is not None:
        distributed.check_saved(trainer, checkpoint)
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        ended = isinstance(trainer, BaseTrainer) and trainer.ended_at(checkpoint)
        if ended:
            say(f"PPO: gold_stop has ended this run at step {state.global_step}")
        if ended or (
            state.global_step >= state.max_steps and state.global_step >= _last_step(trainer)
        ):
            _load_finished(trainer, checkpoint, state)
            return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _last_step(trainer: Trainer) -> int:
    """How many optimizer steps the trainer is to take in all: more than before in a longer run."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    return trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]


def _load_finished(trainer: Trainer, checkpoint: Path, state: TrainerState) -> None:
    """Give the trainer the weights that its run ended with: the last, or the best as configured."""
    trainer.state = state
    trainer._load_from_checkpoint(str(checkpoint))
    if not trainer.args.load_best_model_at_end or state.best_global_step is None:
        return
    best = beside(checkpoint, state.best_global_step)
    problem = flaw(best)
    if problem is not None:
        raise UserError(
            f"{best}: the best checkpoint {problem}; bring it back, or remove {checkpoint} to train"
            " its last steps again"
        )
    state.best_model_checkpoint = str(best)
    trainer._load_best_model()


def _resume_point(folder: Path) -> Path | None:
    """The last whole checkpoint; chosen by one process, as others may not see the same files."""
    points: list[Path | None] = [None]
    if is_main_process():
        points = [last_complete(folder)]
        set_aside_after(folder, points[0])
    return broadcast_object_list(points)[0]
