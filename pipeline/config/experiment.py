"""One typed tree for an experiment: a YAML file, checked whole before any work starts.

The YAML mirrors the classes below. The sections `sft`, `reward`, `ppo` and `dpo` also take every
field of the trainer configuration they end up in, so nothing the libraries offer is out of reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from common.yamlfile import parse_override, read_yaml
from pipeline.bounds import Count
from pipeline.config.arguments import (
    ArgumentProblem,
    check_arguments,
    describe,
    listed,
    shown,
    unknown_key,
)
from pipeline.config.stages import trained
from pipeline.errors import UserError

OVER_SFT = "sft"
"""What `reward.encoder` is where the classifier is adapters over the SFT model."""

Name = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    """A part of the tree: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _one_item(cls, tree: Any) -> Any:
        """A list's only item may be given bare: `report_to: wandb`."""
        if not isinstance(tree, dict):
            return tree
        fields = cls.model_fields
        return {
            key: listed(value, _hint(fields[key])) if key in fields else value
            for key, value in tree.items()
        }


def _hint(field: FieldInfo) -> Any:
    """A field's type with its bounds."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


class _TrainerSection(_Section):
    """A section whose unknown keys go to the stage's trainer configuration."""

    model_config = ConfigDict(extra="allow")


class ModelSection(_Section):
    """The causal language model that every policy starts from."""

    model_name_or_path: Name = "embedded:smollm2-135m-instruct"
    """`embedded:smollm2-135m-instruct`, a hub id, a local folder, or `toy` (random, few layers)."""
    model_revision: str | None = None
    """Branch, tag or commit of a hub model; null is its default branch."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Null is bfloat16 where the processor or GPU computes in it, else float32."""
    trainable_layers: Count | None = None
    """Train only the upper n decoder layers and the final norm; null trains all weights."""
    use_peft: bool = False
    """Train LoRA adapters instead of the weights themselves."""
    lora_r: Count = 16
    lora_alpha: Annotated[float, Field(gt=0)] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_target_modules: list[str] | Literal["all-linear"] = "all-linear"
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off, as it should be for most."""


class DataSection(_Section):
    """The texts: where they are from, and how they are divided."""

    dataset_name: Name = "embedded:movie-reviews"
    """`embedded:<kind>`, a hub id, `toy`, a folder, or a .jsonl/.json/.csv/.parquet/.txt file."""
    dataset_config: str | None = None
    """Name of a hub dataset's configuration."""
    train_split: Name = "train"
    text_column: Name = "text"
    label_column: Name = "label"
    """A number: a human rating (such as −4..4) or a class (0 or 1)."""
    positive_above: float = 0.0
    """A label above this is positive; 0.5 for classes 0 and 1."""
    neutral_margin: Annotated[float, Field(ge=0)] = 0.5
    """The classifier trains only where |label − positive_above| is at least this."""
    min_words: Count = 8
    max_words: Count = 30
    prompt_words: Count = 4
    """A prompt is the first words of a text: this many."""
    prompts_name: Name | None = None
    """Own prompts instead: a dataset with a `prompt` column (text, or a list of messages)."""
    preferences_name: Name | None = None
    """Own preference pairs instead of labelled samples: `prompt`, `chosen`, `rejected`."""
    demonstrations: Count = 2400
    """Texts that SFT learns from."""
    heldout: Count = 256
    """Texts that only perplexity is measured on."""
    train_prompts: Count = 2048
    eval_prompts: Count = 64


class GenerationSection(_Section):
    """How completions are sampled in PPO, for preference pairs and in the comparison."""

    max_new_tokens: Count = 20
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """PPO's sampling temperature. KL and the comparison are always at temperature 1."""
    batch_size: Count = 256
    """Completions generated at once."""


class SFTSection(_TrainerSection):
    """Fields of trl.SFTConfig."""

    skip: bool = False
    """Take model.model_name_or_path as it is for the reference policy: it is fine-tuned already."""


class RewardSection(_TrainerSection):
    """The reward (proxy) and the judge (gold); fields of transformers.TrainingArguments too."""

    source: Name = "sentiment"
    """`sentiment` (trained here), a sequence-classification checkpoint, `file.py:function` or
    `module:function`."""
    gold: Name | None = None
    """The judge when the source is not `sentiment`, in the same forms; null: the proxy itself."""
    encoder: Name = "embedded:all-minilm-l6-v2"
    """Trunk of the classifier: `embedded:all-minilm-l6-v2`, a hub id, a folder, `toy`, or `sft`:
    LoRA adapters (model.lora_*) over the SFT model, in its dtype; what PPO leaves frozen is then
    held once."""
    max_length: Count = 64
    """Longest text the classifier reads, in its tokens."""


class PPOSection(_TrainerSection):
    """Fields of pipeline.ppo.config.PPOConfig, which is a transformers.TrainingArguments."""


class PairsSection(_Section):
    """Preference pairs drawn from the SFT model's own samples."""

    per_prompt: Count = 2
    """Pairs drawn for each prompt."""
    hard_labels: bool = False
    """The higher reward always wins. The default samples Bradley–Terry, P(y₁≻y₂) = σ(r₁ − r₂),
    whose DPO optimum is PPO's; hard labels have another optimum."""
    max_pairs: Count = 2000


class DPOSection(_TrainerSection):
    """Fields of trl.DPOConfig."""

    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts whose pairs are evaluated on and not trained on; with
    dpo.eval_strategy only."""


class CompareSection(_Section):
    """How the finished policies are measured."""

    samples_per_prompt: Count = 8
    reference_samples: Annotated[int, Field(ge=2)] = 64
    """Reference samples a prompt, for the optimum, the frontier and best-of-N."""
    best_of_n: Annotated[int, Field(ge=2)] = 8
    frontier_betas: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
    ]  # fmt: skip
    """KL coefficients at which the optimal frontier is computed."""
    bootstrap: Count = 1000
    """Resamples (of prompts) behind each interval."""


class TrackingSection(_Section):
    """Where metrics go beside the run's own JSONL."""

    report_to: list[str] = ["wandb"]
    """Whatever transformers.TrainingArguments.report_to takes; [] is none."""
    project: Name = "rlhf"
    log_samples: Annotated[int, Field(ge=0)] = 8
    """Samples shown and logged now and then; 0 is none."""


class Experiment(_Section):
    """The whole experiment. Paths are relative to the current directory."""

    name: Name = "experiment"
    output_dir: Annotated[Path, Field(strict=False), AfterValidator(Path.expanduser)] = Path()
    """Default: runs/<name>."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """β, the KL coefficient of PPO, DPO and the comparison, in reward units a nat. 0: PPO pays
    nothing for KL; there is then no DPO and no optimum."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    generation: GenerationSection = GenerationSection()
    sft: SFTSection = SFTSection()
    reward: RewardSection = RewardSection()
    ppo: PPOSection = PPOSection()
    pairs: PairsSection = PairsSection()
    dpo: DPOSection = DPOSection()
    compare: CompareSection = CompareSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, tree: Any) -> Any:
        """A section left empty in the YAML (null) is its defaults; output_dir follows the name."""
        if not isinstance(tree, dict):
            return tree
        empty = {name for name, value in tree.items() if value is None and name in _SECTIONS}
        tree = {name: value for name, value in tree.items() if name not in empty}
        return {"output_dir": f"runs/{tree.get('name', 'experiment')}", **tree}

    def stage_dir(self, stage: str) -> Path:
        """The output folder of a stage: output_dir/<stage>."""
        return self.output_dir / stage

    def trainer_args(self, stage: str) -> dict[str, Any]:
        """The pass-through fields of a trained stage's section, as the config gives them."""
        section: _TrainerSection = getattr(self, stage)
        return dict(section.model_extra or {})


_SECTIONS = {
    name: field.annotation
    for name, field in Experiment.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, _Section)
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
        if part not in owner.model_fields:  # an unknown key, or the name of a union's branch
            break
        key = f"{key}.{part}" if key else part
        hint = owner.model_fields[part].annotation
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            owner = hint
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
    if experiment.beta == 0 and experiment.trainer_args("ppo").get("kl_target") is not None:
        yield (
            "beta",
            "0 is no coefficient that ppo.kl_target could steer; set it above 0: beta=0.05",
        )
    if data.min_words > data.max_words:
        yield "data.min_words", f"{data.min_words} is above data.max_words ({data.max_words})"
    if data.prompt_words >= data.min_words:
        yield (
            "data.prompt_words",
            f"{data.prompt_words} leaves nothing to complete in a text of data.min_words"
            f" ({data.min_words}) words; set it lower",
        )
    if compare.best_of_n > compare.reference_samples:
        yield (
            "compare.best_of_n",
            f"{compare.best_of_n} is above compare.reference_samples"
            f" ({compare.reference_samples}), from which the best are taken",
        )


def _apply(tree: dict[str, Any], override: str) -> str:
    """Set `key.sub=value` in ``tree`` and return the dotted key.

    A section that the tree gives as null or not at all is made.
    """
    key, value = parse_override(override, UserError)
    *sections, last = key.split(".")
    place = tree
    for depth, part in enumerate(sections, start=1):
        if place.get(part) is None:
            place[part] = {}
        if not isinstance(place[part], dict):
            raise UserError(f"override {override!r}: {'.'.join(sections[:depth])} is no section")
        place = place[part]
    place[last] = value
    return key


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment.

    ``overrides`` are `key.sub=value` with YAML values. A mistake raises UserError with one line:
    the file or override, the key, what was expected, the nearest valid key. Trainer arguments are
    checked against their dataclass, which imports torch.
    """
    tree = read_yaml(Path(path), UserError)
    set_by = {_apply(tree, override): override for override in overrides}

    def complain(key: str, problem: str) -> UserError:
        override = next((o for k, o in set_by.items() if k == key or key.startswith(k + ".")), None)
        place = f"override {override}" if override else f"{path}: {key}"
        return UserError(f"{place}: {problem}")

    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        raise complain(*_explain(error.errors()[0])) from None
    for key, problem in _contradictions(experiment):
        raise complain(key, problem)
    for stage in trained():
        own = type(getattr(experiment, stage.name)).model_fields
        given = experiment.trainer_args(stage.name)
        try:
            checked = check_arguments(stage, given, own, _HOME)
        except ArgumentProblem as problem:
            raise complain(f"{stage.name}.{problem.key}", problem.problem) from None
        if checked != given:
            section = getattr(experiment, stage.name).model_copy(update=checked)
            experiment = experiment.model_copy(update={stage.name: section})
    return experiment
