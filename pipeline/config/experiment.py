"""One typed tree for an experiment: a YAML file, checked whole before any work starts.

The YAML mirrors the classes here and in `sections`. The sections `sft`, `reward`, `ppo` and `dpo`
also take every field of the trainer configuration they end up in, so nothing the libraries offer is
out of reach.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from common.yamlfile import read_yaml
from pipeline.config.arguments import (
    ArgumentProblem,
    check_arguments,
    describe,
    shown,
    unknown_key,
)
from pipeline.config.base import Name, Section, TrainerSection, Unsaid
from pipeline.config.losses import loss_problems
from pipeline.config.method_sections import (
    CPOSection,
    GRPOSection,
    KTOSection,
    ORPOSection,
    RejectionSection,
    ReweightedSection,
    RLOOSection,
    SimPOSection,
)
from pipeline.config.methods import ON_POLICY, kto_problems, missing, rollout_problems
from pipeline.config.overrides import apply
from pipeline.config.policies import (
    Policies,
    PolicySection,
    method_of,
    name_problem,
    name_problems,
    over,
    own_key,
    reads_beta,
    unread_problems,
    written_out,
)
from pipeline.config.rewards import PARTS, RewardPart, reward_problems
from pipeline.config.sections import (
    TRAINED_LENGTH,
    CompareSection,
    DataSection,
    DPOSection,
    GenerationSection,
    ModelSection,
    OveroptimiseSection,
    PairsSection,
    PPOSection,
    RewardSection,
    SFTSection,
    TrackingSection,
)
from pipeline.config.stages import (
    DEFAULT_POLICIES,
    SHARED,
    Stage,
    find_stage,
    stages_with,
    trained,
)
from pipeline.config.sweeps import SweepSection
from pipeline.config.training import training_problems
from pipeline.errors import UserError


class Experiment(Section):
    """The whole experiment. Paths are relative to the current directory."""

    name: Name = "experiment"
    output_dir: Annotated[Path, Field(strict=False), AfterValidator(Path.expanduser)] = Path()
    """Default: runs/<name>."""
    shared: Unsaid[Annotated[Path, Field(strict=False), AfterValidator(Path.expanduser)]] = None
    """An experiment's folder whose finished SFT model and rewards this one builds on; they are only
    read. They may be of another `seed`: that of this one is its policies' and the comparison's."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """β, the KL coefficient of PPO, DPO and the comparison, in reward units a nat. 0: PPO pays
    nothing for KL; there is then no DPO and no optimum."""
    policies: Policies = {name: PolicySection() for name in DEFAULT_POLICIES}
    """What is trained and compared: a name for each policy, its method and its own settings."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    generation: GenerationSection = GenerationSection()
    sft: SFTSection = SFTSection()
    reward: RewardSection = RewardSection()
    ppo: PPOSection = PPOSection()
    pairs: PairsSection = PairsSection()
    dpo: DPOSection = DPOSection()
    kto: KTOSection = KTOSection()
    rloo: RLOOSection = RLOOSection()
    grpo: GRPOSection = GRPOSection()
    rejection: RejectionSection = RejectionSection()
    reweighted: ReweightedSection = ReweightedSection()
    orpo: ORPOSection = ORPOSection()
    cpo: CPOSection = CPOSection()
    simpo: SimPOSection = SimPOSection()
    compare: CompareSection = CompareSection()
    overoptimise: OveroptimiseSection = OveroptimiseSection()
    sweep: SweepSection = Field(default=SweepSection(), exclude_if=lambda s: s == SweepSection())
    tracking: TrackingSection = TrackingSection()

    _policy: str | None = PrivateAttr(None)

    _policies_written_out = field_validator("policies", mode="before")(written_out)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, tree: Any) -> Any:
        """A section left empty in the YAML (null) is its defaults; output_dir follows the name."""
        if not isinstance(tree, dict):
            return tree
        empty = {name for name, value in tree.items() if value is None and name in _SECTIONS}
        tree = {name: value for name, value in tree.items() if name not in empty}
        return {"output_dir": f"runs/{tree.get('name', 'experiment')}", **tree}

    @property
    def data_seed(self) -> int:
        """What divides the data: ``data.seed``, else the top-level seed."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def policy(self) -> str | None:
        """The policy whose view this is, see :meth:`of`; None for the whole experiment."""
        return self._policy

    def methods(self) -> dict[str, str]:
        """The policies' names and their methods', in order."""
        return {name: method_of(name, policy) for name, policy in self.policies.items()}

    def stages(self) -> tuple[Stage, ...]:
        """All stages in the order they run in: the fixed ones, and one for each policy."""
        return stages_with(self.methods())

    def stage(self, name: str) -> Stage:
        """A stage of this experiment; KeyError when there is none of this name."""
        return {stage.name: stage for stage in self.stages()}[name]

    def of(self, stage: str) -> Experiment:
        """The experiment as a stage has it: itself, but for a policy its view.

        In a policy's view its method's section, `pairs`, `beta`, `seed` and `data.preferences_name`
        are the policy's own, and the method's output folder is the policy's.

        Raises:
            pydantic.ValidationError: a value of the policy's is none of its method's section.
        """
        if stage not in self.policies:
            return self
        own = self.policies[stage]
        method = method_of(stage, own)
        settings, changed = own.settings(), {}
        if own.beta is not None and reads_beta(method):
            changed["beta"] = own.beta
        elif own.beta is not None:  # a method without a reference has a β of another meaning
            settings["beta"] = own.beta
        if settings:
            changed[method] = over(getattr(self, method), settings)
        if own.pairs:
            changed["pairs"] = over(self.pairs, own.pairs)
        data: dict[str, Any] = {}
        if own.preferences_name is not None:
            data["preferences_name"] = own.preferences_name
        if own.seed not in (None, self.seed):
            changed["seed"], data["seed"] = own.seed, self.data_seed
        if data:
            changed["data"] = self.data.model_copy(update=data)
        if own.policy_modules is not None:
            changed["model"] = self.model.model_copy(update={"policy_modules": own.policy_modules})
        view = self.model_copy(update=changed)
        view._policy = stage
        return view

    def called(self, stage: str) -> str:
        """What people know a stage by: a method in its policy's view by the policy's name."""
        mine = self._policy is not None and stage == self.methods()[self._policy]
        return str(self._policy) if mine else stage

    def stage_dir(self, stage: str) -> Path:
        """The output folder of a stage: output_dir/<stage>, or of a view's policy: its own."""
        return (self.shares(stage) or self.output_dir) / self.called(stage)

    def shares(self, stage: str) -> Path | None:
        """The folder of another experiment whose stage this one reads; None where it is its own."""
        return self.shared if stage in SHARED else None

    def trainer_args(self, stage: str) -> dict[str, Any]:
        """The pass-through fields of a section with a trainer, as the config gives them."""
        section: TrainerSection = getattr(self, stage)
        return dict(section.model_extra or {})


_SECTIONS = {
    name: field.annotation
    for name, field in Experiment.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
# Where a bare key belongs: {"max_new_tokens": "generation.max_new_tokens", ...}.
_HOME = {
    key: f"{name}.{key}" for name, section in _SECTIONS.items() for key in section.model_fields
} | {key: key for key in Experiment.model_fields}


def _explain(error: ErrorDetails) -> tuple[str, str]:
    """The dotted key of a pydantic error and what is wrong there."""
    owner: type[BaseModel] = Experiment
    hint: Any = Experiment
    key = ""
    for part in error["loc"]:
        if isinstance(part, int):
            key += f"[{part}]"
            continue
        if part == PARTS and key:  # the branch of a union that is a list of sections
            owner = hint = RewardPart
            continue
        if key == "policies":
            key, owner = f"policies.{part}", PolicySection
            hint = owner
            continue
        if part not in owner.model_fields:  # an unknown key, or the name of a union's branch
            break
        key = f"{key}.{part}" if key else part
        hint = owner.model_fields[part].annotation
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            owner = hint
    if error["loc"][-1] == "[key]":
        name = f"the name {error['input']!r} must be text: put it in quotes"
        return key.partition("[")[0], name
    if error["type"] == "invalid_key":
        return key.rpartition("[")[0] or "top level", f"the key {error['input']!r} is not text"
    if error["type"] == "extra_forbidden":
        bare = str(error["loc"][-1])
        full = f"{key}.{bare}" if key else bare
        return full, unknown_key(key, bare, owner.model_fields, _HOME)
    found = f"found {shown(error['input'])}"
    limits = {"greater_than": "above {gt:g}", "greater_than_equal": "at least {ge:g}"}
    limits |= {"less_than": "below {lt:g}", "less_than_equal": "at most {le:g}"}
    if error["type"] in limits:
        limit = limits[error["type"]].format(**error.get("ctx", {}))
        return key, f"expected a number {limit}, {found}"
    if error["type"] == "missing":
        return key, "is missing"
    if error["type"] in ("string_too_short", "too_short"):
        return key, "must not be empty"
    if error["type"] == "finite_number":
        return key, f"expected a finite number, {found}"
    expected = "a section (`key: value` lines)" if hint is owner else describe(hint)
    return key, f"expected {expected}, {found}"


def _contradictions(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Pairs of a key and why its value does not go with another one's."""
    model, data, compare = experiment.model, experiment.data, experiment.compare
    if model.use_peft and model.trainable_layers is not None:
        yield (
            "model.trainable_layers",
            "does not go with model.use_peft: LoRA adapts every layer; set one of them",
        )
    if model.use_peft and model.policy_modules is not None:
        yield (
            "model.policy_modules",
            "does not go with model.use_peft, whose modules are model.lora_target_modules;"
            " set model.policy_modules=null",
        )
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
    yield from _reward_contradictions(experiment)


def _method_contradictions(experiment: Experiment, method: str) -> Iterator[tuple[str, str]]:
    """The same of what one method reads, in a policy's view or as the sections have it."""
    given, reward = experiment.trainer_args(method), experiment.reward
    if method == "ppo":
        if experiment.beta == 0 and given.get("kl_target") is not None:
            yield (
                "beta",
                "0 is no coefficient that ppo.kl_target could steer; set it above 0: beta=0.05",
            )
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


def _reward_contradictions(experiment: Experiment) -> Iterator[tuple[str, str]]:
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


def _without_passwords(line: str) -> str:
    """A message without what stands before the host in an address."""
    return re.sub(r"://\S*@", "://…@", line)


Complain = Callable[[str, str], UserError]
"""Makes the error about a dotted key and what is wrong there."""


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment.

    ``overrides`` are `key.sub=value` with YAML values. A mistake raises UserError with one line:
    the file or override, the key, what was expected, the nearest valid key. Trainer arguments are
    checked against their dataclass, which imports torch.
    """
    return check_tree(*read_tree(path, overrides))


def read_tree(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Complain]:
    """The tree of a config file with ``overrides``, unchecked, and what makes errors about it."""
    tree = read_yaml(Path(path), UserError)
    if tree.get("policies") is None:  # an override says what is other, not which there are
        tree["policies"] = dict.fromkeys(DEFAULT_POLICIES)
    set_by = {apply(tree, override): override for override in overrides}

    def complain(key: str, problem: str) -> UserError:
        under = [k for k in set_by if f"{key}.".startswith((f"{k}.", f"{k}["))]
        if not under:
            return UserError(_without_passwords(f"{path}: {key}: {problem}"))
        nearest = max(under, key=len)
        inside = "" if nearest == key else f"{key}: "
        return UserError(_without_passwords(f"override {set_by[nearest]}: {inside}{problem}"))

    return tree, complain


def check_tree(tree: dict[str, Any], complain: Complain) -> Experiment:
    """The experiment of a config's tree; what ``complain`` makes is raised for a mistake."""
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        raise complain(*_explain(error.errors()[0])) from None
    for key, problem in [*_contradictions(experiment), *name_problems(experiment.policies)]:
        raise complain(key, problem)
    methods = set(experiment.methods().values())
    for row in trained():
        if row.name in methods or experiment.trainer_args(row.name):
            experiment = _with_checked(experiment, row.name, complain)
    for name, policy in experiment.policies.items():
        if policy != PolicySection(method=policy.method):
            _check_policy(experiment, name, complain)
    for key, problem in _pushed_to_one_place(experiment):
        raise complain(key, problem)
    return experiment


def _pushed_to_one_place(experiment: Experiment) -> Iterator[tuple[str, str]]:
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


def _with_checked(experiment: Experiment, section: str, complain: Complain) -> Experiment:
    """``experiment`` with the arguments of one of its sections as their dataclass takes them."""
    own, given = type(getattr(experiment, section)).model_fields, experiment.trainer_args(section)
    for place, problem in _method_contradictions(experiment, section):
        raise complain(place, problem)
    try:
        checked = check_arguments(find_stage(section), given, own, _HOME)
    except ArgumentProblem as problem:
        raise complain(f"{section}.{problem.key}", problem.problem) from None
    if checked == given:
        return experiment
    changed = getattr(experiment, section).model_copy(update=checked)
    return experiment.model_copy(update={section: changed})


def _check_policy(experiment: Experiment, name: str, complain: Complain) -> None:
    """Check a policy's own settings as those of its method's section.

    Raises:
        UserError: One is wrong, or does not go with the others.
    """
    policy = experiment.policies[name]
    method = method_of(name, policy)
    for place, problem in unread_problems(name, policy, experiment.model.use_peft):
        raise complain(place, problem)

    def complain_of(key: str, problem: str) -> UserError:
        return complain(own_key(name, policy, key), problem)

    try:
        view = experiment.of(name)
    except ValidationError as error:
        first = error.errors()[0]
        section = "pairs" if error.title == "PairsSection" else method
        key, problem = _explain({**first, "loc": (section, *first["loc"])})
        raise complain_of(key, problem) from None
    _with_checked(view, method, complain_of)
