"""One typed tree for an experiment: a YAML file, checked whole before any work starts.

The YAML mirrors the classes here and in `sections`. The sections `sft`, `reward`, `ppo` and `dpo`
also take every field of the trainer configuration they end up in, so nothing the libraries offer is
out of reach.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
from pipeline.config import contradictions
from pipeline.config.arguments import (
    ArgumentProblem,
    check_arguments,
    describe,
    shown,
    unknown_key,
)
from pipeline.config.base import Name, Section, TrainerSection, Unsaid
from pipeline.config.hub import HUB_KEYS
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
from pipeline.config.overrides import apply
from pipeline.config.policies import (
    Policies,
    PolicySection,
    method_of,
    name_problems,
    over,
    own_key,
    reads_beta,
    unread_problems,
    written_out,
)
from pipeline.config.rewards import PARTS, RewardPart
from pipeline.config.sections import (
    CompareSection,
    DataSection,
    DPOSection,
    GenerationSection,
    ModelSection,
    OveroptimiseSection,
    PairsSection,
    PPOSection,
    ReportSection,
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
    report: ReportSection = Field(
        default=ReportSection(), exclude_if=lambda s: s == ReportSection()
    )
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
    key: f"{name}.{key}"
    for name, section in _SECTIONS.items()
    for key in section.model_fields
    if key not in HUB_KEYS  # many sections have them
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
    for key, problem in [*contradictions.of(experiment), *name_problems(experiment.policies)]:
        raise complain(key, problem)
    methods = set(experiment.methods().values())
    for row in trained():
        if row.name in methods or experiment.trainer_args(row.name):
            experiment = _with_checked(experiment, row.name, complain)
    for name, policy in experiment.policies.items():
        if policy != PolicySection(method=policy.method):
            _check_policy(experiment, name, complain)
    for key, problem in contradictions.pushed_to_one_place(experiment):
        raise complain(key, problem)
    return experiment


def _with_checked(experiment: Experiment, section: str, complain: Complain) -> Experiment:
    """``experiment`` with the arguments of one of its sections as their dataclass takes them."""
    own, given = type(getattr(experiment, section)).model_fields, experiment.trainer_args(section)
    for place, problem in contradictions.of_method(experiment, section):
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
