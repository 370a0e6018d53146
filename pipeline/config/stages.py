"""The stages, one record each. A new stage is an entry of ``STAGES`` and its module.

Data only: nothing of this project is imported here, so that the command line's help and the
report read the same table at no cost. A stage with settings of its own also has a section, which
is a class and a field of `pipeline.config.experiment.Experiment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_BETA = "the top-level beta, shared by PPO, DPO and the comparison"
# Whether more is better; None is as one sees it.
_SFT_METRICS = {"loss": False, "mean_token_accuracy": True, "entropy": None}
_DPO_METRICS = {
    **_SFT_METRICS,
    **{"rewards/accuracies": True, "rewards/margins": True},
    **{"rewards/chosen": None, "rewards/rejected": None},
    **{"logps/chosen": None, "logps/rejected": None},
    **{"logits/chosen": None, "logits/rejected": None},
}
_PPO_METRICS = {"objective": True, "scores": True, "gold": True}
_PPO_METRICS |= {"kl": None, "length": None, "ended": None}


# Of the model section, what SFT does without.
_POLICY_MODULES = "model.policy_modules"
# Of the data section, what only DPO's own pairs need.
OWN_PAIRS = ("data.preferences_name", "data.columns.chosen", "data.columns.rejected")


@dataclass(frozen=True)
class Stage:
    """A step of the experiment with inputs, an output folder and a record of its own.

    Attributes:
        name: the command, the output folder and, where it has one, the config's section.
        module: dotted module with ``run(experiment)``; imported only when the stage runs.
        does: one line for ``--help``.
        needs: stages whose output it reads. They stand before it in the table.
        takes: stages whose output it reads where it is there; at least one must be.
        reads: what it reads of the config: sections, or dotted keys.
        unread: parts of those sections, by dotted key, that change nothing in its output.
        whether: dotted keys of which it reads only whether they are set.
        arguments: ``module:class`` of the dataclass that its section's further keys are fields
            of; None where the section takes no others.
        owned: fields of that dataclass that the pipeline sets, and what to set instead.
        refused: fields of it that must stay off here (false, ``no`` or null), and why.
        metrics: what its evaluations measure, as `metric_for_best_model` names it, and whether
            more of it is better (None: as one sees it).
    """

    name: str
    module: str
    does: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("seed",)
    unread: tuple[str, ...] = ()
    whether: tuple[str, ...] = ()
    arguments: str | None = None
    owned: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, bool | None] = field(default_factory=dict)


STAGES: tuple[Stage, ...] = (
    Stage(
        name="sft",
        module="pipeline.stages.sft",
        does="fine-tune the model on demonstrations: the reference policy",
        reads=("model", "data", "sft", "seed"),
        unread=(
            *OWN_PAIRS,
            _POLICY_MODULES,
            "data.train_prompts",
            "data.validation_prompts",
            "data.label_column",
            "data.label_values",
            "data.positive_above",
            "data.neutral_margin",
        ),
        whether=("data.prompts_name",),
        arguments="trl:SFTConfig",
        metrics=_SFT_METRICS,
    ),
    Stage(
        name="reward",
        module="pipeline.stages.reward",
        does="train the reward model (proxy) and the judge (gold)",
        reads=("data", "reward", "seed"),
        unread=(*OWN_PAIRS, "data.train_prompts", "data.validation_prompts"),
        whether=("data.prompts_name",),
        arguments="transformers:TrainingArguments",
        metrics={"loss": False, "accuracy": True},
    ),
    Stage(
        name="ppo",
        module="pipeline.stages.ppo",
        does="optimise the reward by PPO with a KL penalty",
        needs=("sft", "reward"),
        reads=(_POLICY_MODULES, "data", "generation", "beta", "ppo", "seed"),
        unread=OWN_PAIRS,
        arguments="pipeline.ppo.config:PPOConfig",
        owned={
            "kl_coef": _BETA,
            "response_length": "generation.max_new_tokens",
            "generation_batch_size": "generation.batch_size",
            "temperature": "generation.temperature",
        },
        metrics=_PPO_METRICS,
    ),
    Stage(
        name="dpo",
        module="pipeline.stages.dpo",
        does="draw preference pairs from the SFT model and train DPO on them",
        needs=("sft", "reward"),
        reads=(_POLICY_MODULES, "data", "generation", "beta", "pairs", "dpo", "seed"),
        unread=("data.validation_prompts",),
        arguments="trl:DPOConfig",
        owned={"beta": _BETA},
        metrics=_DPO_METRICS,
    ),
    Stage(
        name="compare",
        module="pipeline.stages.compare",
        does="measure SFT, PPO, DPO and best-of-N against the optimum",
        needs=("sft", "reward"),
        takes=("ppo", "dpo"),
        reads=("data", "generation", "beta", "compare", "seed"),
        unread=(*OWN_PAIRS, "data.validation_prompts"),
    ),
)


def stage_names() -> tuple[str, ...]:
    """The names of all stages, in the order they run in."""
    return tuple(stage.name for stage in STAGES)


def trained() -> tuple[Stage, ...]:
    """The stages with a Trainer, whose sections take its arguments."""
    return tuple(stage for stage in STAGES if stage.arguments is not None)


def find_stage(name: str) -> Stage:
    """The record of a stage; KeyError when there is none of this name."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise KeyError(name)
