"""What does not go together among the settings of an experiment, told before any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.config.loading import model_problems
from pipeline.config.losses import loss_problems
from pipeline.config.methods import ON_POLICY, kto_problems, missing, rollout_problems
from pipeline.config.policies import name_problem, own_key
from pipeline.config.rewards import reward_problems
from pipeline.config.sections import TRAINED_LENGTH
from pipeline.config.training import training_problems

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment


def of(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Pairs of a key and why its value does not go with another one's."""
    model, data, compare = experiment.model, experiment.data, experiment.compare
    if model.use_peft and model.policy_modules is not None:
        yield (
            "model.policy_modules",
            "does not go with model.use_peft, whose modules are model.lora_target_modules;"
            " set model.policy_modules=null",
        )
    if model.save != "merged" and not model.use_peft:
        yield (
            "model.save",
            f"{model.save} is of LoRA adapters, and there are none: set model.use_peft=true, or"
            " leave it out",
        )
    yield from model_problems(model)
    if data.min_words > data.max_words:
        yield "data.min_words", f"{data.min_words} is above data.max_words ({data.max_words})"
    if data.prompt_words >= data.min_words:
        yield (
            "data.prompt_words",
            f"{data.prompt_words} leaves nothing to complete in a text of data.min_words"
            f" ({data.min_words}) {data.unit}; set it lower",
        )
    own_texts = data.dataset_name == "toy" or data.dataset_name.startswith("embedded:")
    for switch in ("assistant_only_loss", "completion_only_loss"):
        if own_texts and experiment.trainer_args("sft").get(switch):
            yield (
                f"sft.{switch}",
                f"true cannot work here: demonstrations are plain texts of {data.dataset_name}, "
                "without an assistant's turns or a prompt set apart",
            )
    if compare.best_of_n > compare.reference_samples:
        yield (
            "compare.best_of_n",
            f"{compare.best_of_n} is above compare.reference_samples"
            f" ({compare.reference_samples}), from which the best are taken",
        )
    for name in compare.policies:
        problem = name_problem(name)
        if name.lower() in {policy.lower() for policy in experiment.policies}:
            problem = f"{name!r} is a policy of this experiment; choose another name"
        if problem:
            yield f"compare.policies.{name}", problem
    if experiment.shared is not None and experiment.shared == experiment.output_dir:
        yield "shared", "is output_dir itself; name the folder of another experiment, or null"
    section = experiment.overoptimise
    for size in section.ppo_sizes if section.betas else ():
        if size not in section.sizes:
            yield "overoptimise.ppo_sizes", f"{size} is none of overoptimise.sizes; add it there"
    yield from _of_reward(experiment)


def of_method(experiment: Experiment, method: str) -> Iterator[tuple[str, str]]:
    """The same of what one method reads, in a policy's view or as the sections have it."""
    given, reward = experiment.trainer_args(method), experiment.reward
    if method == "ppo":
        if experiment.beta == 0 and given.get("kl_target") is not None:
            yield (
                "beta",
                "0 is no coefficient that ppo.kl_target could steer; set it above 0: beta=0.05",
            )
        yield from _of_engine(given, experiment.model.use_peft)
        no_judge = not reward.trains_here() and reward.gold in (None, reward.source)
        if no_judge and given.get("gold_stop"):
            yield (
                "ppo.gold_stop",
                "true has no judge to stop by: it would be the reward itself; set reward.gold",
            )
    if method == "dpo":
        own_pairs = experiment.data.preferences_name is not None
        yield from loss_problems(given, experiment.pairs, own_pairs)
    if method in ("cpo", "simpo") and given.get("beta") == 0:
        yield f"{method}.beta", "expected a number above 0, found 0: the slope of the loss"
    if method == "kto":
        yield from kto_problems(given)
    if method in ON_POLICY:
        yield from rollout_problems(method, given, experiment.generation.temperature)
    yield from missing(method)


def _of_engine(given: Mapping[str, Any], lora: bool) -> Iterator[tuple[str, str]]:
    """What PPO's completions are drawn by, among the arguments that are given for it."""
    engine = given.get("generation") or "loop"
    if given.get("overlap") and engine in ("loop", "continuous"):
        yield (
            "ppo.overlap",
            f"true gains nothing with ppo.generation={engine}, which draws in this process from"
            " the weights that an update changes; set ppo.generation=vllm, or it to false",
        )
    weights = given.get("server_weights") or "auto"
    if engine == "vllm" and weights == "adapter" and not lora:
        yield (
            "ppo.server_weights",
            "adapter is for LoRA, and the policy has no adapters: set model.use_peft=true, or leave"
            " it out",
        )
    if engine == "vllm" and weights in ("folder", "nccl") and lora:
        yield (
            "ppo.server_weights",
            f"{weights} is for policies without LoRA (model.use_peft): leave it out",
        )


def _of_reward(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Settings of the reward that would cut completions away, or that nothing reads."""
    reward, tokens = experiment.reward, experiment.generation.max_new_tokens
    length = reward.max_length or TRAINED_LENGTH
    if reward.trains_here() and tokens >= length:
        yield (
            "reward.max_length",
            f"a completion of generation.max_new_tokens ({tokens}) does not fit in {length} tokens;"
            f" set it to {2 * tokens} or so, and the classifier is trained to read them",
        )
    yield from reward_problems(reward)
    yield from training_problems(reward, experiment.data)


def pushed_to_one_place(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Policies whose models would replace each other on the hub."""
    pushed: dict[str, str] = {}
    for name, method in experiment.methods().items():
        given = experiment.of(name).trainer_args(method)
        place = given.get("hub_model_id") if given.get("push_to_hub") else None
        if place in pushed:
            key = own_key(name, experiment.policies[name], f"{method}.hub_model_id")
            yield key, f"{place} is that of {pushed[place]} too; leave it out, or set another"
        if place:
            pushed[str(place)] = name
