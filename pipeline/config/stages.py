"""The stages and the methods, one record each.

A new method is an entry of ``METHODS``, its module, and its section: a class and a field of
`pipeline.config.experiment.Experiment`. Every policy of the config is a stage of its own, made from
its method's record. Data only: nothing of this project is imported here, so that the command line's
help and the report read the same table at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_BETA = "the top-level beta, or the policy's"
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
_OF_POLICIES = ("model.policy_modules", "model.save")
# How long a Trainer runs.
_LENGTHS = ("max_steps", "num_train_epochs")
# Of the data section, what only DPO's own pairs need.
OWN_PAIRS = ("data.preferences_name", "data.columns.chosen", "data.columns.rejected")


@dataclass(frozen=True)
class Stage:
    """A step of the experiment with inputs, an output folder and a record of its own.

    Attributes:
        name: the command and the output folder.
        method: of a policy: its method, whose section of the config it reads; else empty.
        title: of a method, for people.
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
        choices: fields of it that take these values only, which its trainer asks for late or never.
        metrics: what its evaluations measure, as `metric_for_best_model` names it, and whether
            more of it is better (None: as one sees it).
        from_pairs: whether a method learns from preference pairs: drawn here, or the user's own.
        at_zero: what a method does at β = 0, where that is nothing: why it is left out then.
        lengths: of its section, what says how long it trains.
        package: what of TRL it is made with that not every release has.
        alone: whether it runs in one process, however many train the others.
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
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: Mapping[str, bool | None] = field(default_factory=dict)
    method: str = ""
    title: str = ""
    from_pairs: bool = False
    at_zero: str = ""
    lengths: tuple[str, ...] = ()
    package: str = ""
    alone: bool = False

    @property
    def section(self) -> str:
        """The config's section that it reads."""
        return self.method or self.name


# Of TRL's on-policy trainers: what stands elsewhere in the config, or would be another problem.
_OWN_DISTRIBUTION = "nothing: completions are drawn from the policy's own distribution"
_ROLLOUTS_OWNED = {
    "beta": _BETA,
    "max_completion_length": "generation.max_new_tokens",
    "temperature": "generation.temperature",
    "chat_template_kwargs": "nothing: conversations are written as everywhere, by the template",
    "reward_weights": "the weights of reward.source's parts",
    **dict.fromkeys(
        ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"), _OWN_DISTRIBUTION
    ),
    "cache_implementation": "nothing: the pipeline's own sampler has a cache of its own",
}
_SAMPLER = "completions are drawn by the pipeline's own sampler"
_REFERENCE = "the reference is the SFT model, from the first step to the last"
_ROLLOUTS_REFUSED = {
    "use_vllm": _SAMPLER,
    "use_transformers_continuous_batching": _SAMPLER,
    "use_transformers_paged": _SAMPLER,
    "sync_ref_model": _REFERENCE,
    "auto_find_batch_size": "a rollout is whole groups of completions, whatever memory there is",
    "mask_truncated_completions": "the reward is for every completion, whether it ended or not",
}
_ROLLOUTS_METRICS = {"reward": True, "reward_std": None, "kl": None, "entropy": None}
_ROLLOUTS_METRICS["completions/mean_length"] = None
_SELECTED_REFUSED = {
    "packing": "a completion is learnt as it was sampled, behind its own prompt",
    "padding_free": "a completion is learnt as it was sampled, behind its own prompt",
    "assistant_only_loss": "the loss is on the sampled completions",
    "eval_strategy": "nothing is held out: that the chosen grow likelier says little of the reward",
    "eval_on_start": "nothing is held out: that the chosen grow likelier says little of the reward",
}
_SELECTED_OWNED = {"completion_only_loss": "nothing: the loss is on the sampled completions"}
_GRPO_CHOICES = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "scale_rewards": ("none", "group", "batch"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
_TOKEN_PAIRS_OWNED = {
    "max_completion_length": "max_length, or generation.max_new_tokens",
    "is_encoder_decoder": "nothing: the model says what it is",
}
_TOKEN_PAIRS_REFUSED = {"generate_during_eval": _SAMPLER}
_PAIRS_METRICS = {
    **{"loss": False, "rewards/accuracies": True, "rewards/margins": True, "nll_loss": False},
    **{"rewards/chosen": None, "rewards/rejected": None},
    **{"logps/chosen": None, "logps/rejected": None},
}

STAGES: tuple[Stage, ...] = (
    Stage(
        name="sft",
        module="pipeline.stages.sft",
        does="fine-tune the model on demonstrations: the reference policy",
        reads=("model", "data", "sft", "seed"),
        unread=(
            *OWN_PAIRS,
            *_OF_POLICIES,
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
        lengths=_LENGTHS,
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
        alone=True,
    ),
    Stage(
        name="compare",
        module="pipeline.stages.compare",
        does="measure SFT, every policy and best-of-N against the optimum",
        needs=("sft", "reward"),
        reads=("data", "generation", "beta", "compare", "seed"),
        unread=(*OWN_PAIRS, "data.validation_prompts"),
        alone=True,
    ),
)

# Where a generation server is, and how it is asked.
_SERVER = tuple(
    f"ppo.server{part}"
    for part in ("", "_weights", "_folder", "_header_env", "_timeout", "_retries", "_tolerance")
)

METHODS: tuple[Stage, ...] = (
    Stage(
        name="ppo",
        title="PPO",
        module="pipeline.stages.ppo",
        does="optimise the reward by PPO with a KL penalty",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "beta", "ppo", "seed"),
        unread=(*OWN_PAIRS, *_SERVER),
        arguments="pipeline.ppo.config:PPOConfig",
        owned={
            "kl_coef": _BETA,
            "response_length": "generation.max_new_tokens",
            "generation_batch_size": "generation.batch_size",
            "temperature": "generation.temperature",
        },
        metrics=_PPO_METRICS,
        lengths=("total_episodes", *_LENGTHS),
    ),
    Stage(
        name="dpo",
        title="DPO",
        module="pipeline.stages.dpo",
        does="draw preference pairs from the SFT model and train DPO on them",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "beta", "pairs", "dpo", "seed"),
        unread=("data.validation_prompts",),
        arguments="trl:DPOConfig",
        owned={"beta": _BETA},
        metrics=_DPO_METRICS,
        lengths=_LENGTHS,
        from_pairs=True,
        at_zero="DPO learns nothing at 0, where no preference tells",
    ),
    Stage(
        name="kto",
        title="KTO",
        module="pipeline.stages.kto",
        does="train KTO on the completions of the pairs, each labelled alone",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "beta", "pairs", "kto", "seed"),
        unread=("data.validation_prompts",),
        arguments="trl:KTOConfig",
        owned={"beta": _BETA},
        refused={"sync_ref_model": _REFERENCE},
        choices={"loss_type": ("kto", "apo_zero_unpaired")},
        metrics={
            **{"loss": False, "kl": None, "rewards/margins": True},
            **{"rewards/chosen": None, "rewards/rejected": None},
            **{"logps/chosen": None, "logps/rejected": None},
        },
        lengths=_LENGTHS,
        from_pairs=True,
        at_zero="KTO learns nothing at 0, where no label tells",
    ),
    Stage(
        name="rloo",
        title="RLOO",
        module="pipeline.stages.rloo",
        does="optimise the reward by RLOO with the KL in the reward",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "beta", "rloo", "seed"),
        unread=OWN_PAIRS,
        arguments="trl:RLOOConfig",
        owned=_ROLLOUTS_OWNED,
        refused=_ROLLOUTS_REFUSED,
        metrics=_ROLLOUTS_METRICS,
        lengths=_LENGTHS,
    ),
    Stage(
        name="grpo",
        title="GRPO",
        module="pipeline.stages.grpo",
        does="optimise the reward by GRPO with the KL in the loss",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "beta", "grpo", "seed"),
        unread=OWN_PAIRS,
        arguments="trl:GRPOConfig",
        owned=_ROLLOUTS_OWNED,
        refused=_ROLLOUTS_REFUSED,
        choices=_GRPO_CHOICES,
        metrics=_ROLLOUTS_METRICS,
        lengths=_LENGTHS,
    ),
    Stage(
        name="rejection",
        title="rejection sampling",
        module="pipeline.stages.rejection",
        does="fine-tune on the best of n samples of the SFT model for each prompt",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "rejection", "seed"),
        unread=(*OWN_PAIRS, "data.validation_prompts"),
        arguments="trl:SFTConfig",
        owned=_SELECTED_OWNED,
        refused=_SELECTED_REFUSED,
        metrics=_SFT_METRICS,
        lengths=_LENGTHS,
    ),
    Stage(
        name="reweighted",
        title="reward-weighted",
        module="pipeline.stages.reweighted",
        does="fine-tune on samples of the SFT model, drawn again by exp(reward/β)",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "beta", "reweighted", "seed"),
        unread=(*OWN_PAIRS, "data.validation_prompts"),
        arguments="trl:SFTConfig",
        owned=_SELECTED_OWNED,
        refused=_SELECTED_REFUSED,
        metrics=_SFT_METRICS,
        lengths=_LENGTHS,
        at_zero="reweighting at 0 takes the best alone, which is rejection",
    ),
    Stage(
        name="orpo",
        title="ORPO",
        module="pipeline.stages.orpo",
        does="train ORPO on the pairs, without a reference",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "pairs", "orpo", "seed"),
        unread=("data.validation_prompts",),
        arguments="trl.experimental.orpo:ORPOConfig",
        owned=_TOKEN_PAIRS_OWNED,
        refused=_TOKEN_PAIRS_REFUSED,
        metrics=_PAIRS_METRICS,
        lengths=_LENGTHS,
        from_pairs=True,
        package="trl.experimental.orpo",
    ),
    Stage(
        name="cpo",
        title="CPO",
        module="pipeline.stages.cpo",
        does="train CPO on the pairs, without a reference",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "pairs", "cpo", "seed"),
        unread=("data.validation_prompts",),
        arguments="trl.experimental.cpo:CPOConfig",
        owned=_TOKEN_PAIRS_OWNED,
        refused=_TOKEN_PAIRS_REFUSED,
        choices={"loss_type": ("sigmoid", "hinge", "ipo", "simpo")},
        metrics=_PAIRS_METRICS,
        lengths=_LENGTHS,
        from_pairs=True,
        package="trl.experimental.cpo",
    ),
    Stage(
        name="simpo",
        title="SimPO",
        module="pipeline.stages.simpo",
        does="train SimPO on the pairs, without a reference",
        needs=("sft", "reward"),
        reads=(*_OF_POLICIES, "data", "generation", "pairs", "simpo", "seed"),
        unread=("data.validation_prompts",),
        arguments="pipeline.stages.simpo:SimPOConfig",
        owned={
            **_TOKEN_PAIRS_OWNED,
            "loss_type": "nothing: SimPO is one loss; the others are the method cpo",
        },
        refused=_TOKEN_PAIRS_REFUSED,
        metrics=_PAIRS_METRICS,
        lengths=_LENGTHS,
        from_pairs=True,
        package="trl.experimental.cpo",
    ),
)
"""How a policy can be trained. A policy's stage is one of these under the policy's name."""

NO_METHODS = {
    "online_dpo": "TRL's trainer asks a judge or a reward model for pairs, and not this project's"
    " reward: DPO on pairs drawn again is `dpo`, and learning from own samples `rloo` or `ppo`",
}
"""What one may look for in TRL, and why it is no method here."""

SHARED = ("sft", "reward")
"""Stages whose output may be another experiment's, see `Experiment.shared`."""

DEFAULT_POLICIES = {"ppo": "ppo", "dpo": "dpo"}


def stages_with(policies: Mapping[str, str] = DEFAULT_POLICIES) -> tuple[Stage, ...]:
    """All stages of an experiment in the order they run in.

    Args:
        policies: the name of each and its method's.
    """
    made = [
        replace(find_stage(method), name=name, method=method) for name, method in policies.items()
    ]
    at = [stage.name for stage in STAGES].index("compare")
    compare = replace(STAGES[at], takes=tuple(policies))
    return (*STAGES[:at], *made, compare, *STAGES[at + 1 :])


def stage_names(policies: Mapping[str, str] = DEFAULT_POLICIES) -> tuple[str, ...]:
    """The names of all stages, in the order they run in."""
    return tuple(stage.name for stage in stages_with(policies))


def trained() -> tuple[Stage, ...]:
    """What has a Trainer, whose arguments its section takes: fixed stages and methods."""
    return tuple(row for row in (*STAGES, *METHODS) if row.arguments is not None)


def find_stage(name: str) -> Stage:
    """The record of a fixed stage or a method; KeyError when there is none of this name."""
    for row in (*STAGES, *METHODS):
        if row.name == name:
            return row
    raise KeyError(name)
