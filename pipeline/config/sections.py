"""The sections of an experiment's file, a class each; a key's docstring stands under it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from pipeline.bounds import Count
from pipeline.config.base import Name, Section, TrainerSection, Unsaid
from pipeline.config.rewards import OneOrParts, RewardPart, is_trained_here, with_parts

OVER_SFT = "sft"
"""What `reward.encoder` is where the classifier is adapters over the SFT model."""
NORMALIZE_SAMPLES = 4096
COMPARISONS = 8
TRAINED_LENGTH = 64
"""Tokens that the classifier trained here reads unless `reward.max_length` says otherwise."""


class ModelSection(Section):
    """The causal language model that every policy starts from."""

    model_name_or_path: Name = "embedded:smollm2-135m-instruct"
    """`embedded:smollm2-135m-instruct`, a hub id, a local folder, or `toy` (random, few layers)."""
    model_revision: str | None = None
    """Branch, tag or commit of a hub model; null is its default branch."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Null is bfloat16 where the processor or GPU computes in it, else float32. float16, with loss
    scaling, is for GPUs without bfloat16."""
    attn_implementation: Unsaid[Name] = None
    """How attention is computed: eager, sdpa, flex_attention, flash_attention_2,
    flash_attention_3, or a kernel of the hub (`kernels-community/flash-attn3`). Null is
    transformers' choice; on a processor plain products for short sequences."""
    quantization: Unsaid[Literal["4bit", "8bit"] | dict[str, Any]] = None
    """Hold the frozen weights under LoRA (`use_peft`) in 4 bits (NF4, scales quantised too) or 8,
    by bitsandbytes: QLoRA. Or a mapping: what transformers.BitsAndBytesConfig takes."""
    init_kwargs: Unsaid[dict[Name, Any]] = None
    """Whatever else `from_pretrained` takes: `{experts_implementation: grouped_mm}`."""
    trainable_layers: Count | None = None
    """Train only the upper n decoder layers and the final norm, or with `use_peft` adapters on
    those layers alone; null trains all."""
    policy_modules: Unsaid[Annotated[list[Name], Field(min_length=1)]] = None
    """PPO and DPO train only these modules of the trainable layers, by the end of their names
    (`[v_proj, o_proj]`, `[self_attn]`, `[mlp.gate_proj]`), and no norm outside of them; null trains
    what SFT does. With few weights an update's noise costs less KL for the same reward."""
    use_peft: bool = False
    """Train LoRA adapters instead of the weights themselves."""
    lora_r: Count = 16
    lora_alpha: Annotated[float, Field(gt=0)] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_target_modules: list[str] | Literal["all-linear"] = "all-linear"
    save: Literal["merged", "adapter", "both"] = Field(
        default="merged", exclude_if=lambda form: form == "merged"
    )
    """What is kept of a policy trained by LoRA: a whole model (`<policy>/model`), its adapters over
    the SFT model (`<policy>/adapter`), or both."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off, as it should be for most."""


def _is_unset(value: Any) -> bool:
    """Keys that came later are left out of a record while unset: it stays that of older runs."""
    return not value


class ColumnsSection(Section):
    """What the data files call the columns, where it is not what TRL calls them."""

    prompt: Name | None = None
    completion: Name | None = None
    messages: Name | None = None
    chosen: Name | None = None
    rejected: Name | None = None
    system: Name | None = None


class DataSection(Section):
    """The texts: where they are from, and how they are divided."""

    dataset_name: Name = "embedded:movie-reviews"
    """`embedded:<kind>`, a hub id, `toy`, a folder (one of `save_to_disk` too), or a .jsonl, .json,
    .csv, .tsv, .parquet, .arrow or .txt file, compressed (.gz, .bz2, .xz, .zip) or not. Rows are
    rated texts (`text`, `label`), or demonstrations: `prompt` and `completion`, or conversations
    (`messages`, ShareGPT's `conversations`), whose last answer SFT learns."""
    dataset_config: str | None = None
    """Name of a hub dataset's configuration."""
    train_split: Name = "train"
    text_column: Name = "text"
    label_column: Name = "label"
    """A number: a human rating (such as −4..4) or a class (0 or 1)."""
    columns: ColumnsSection = Field(
        default=ColumnsSection(), exclude_if=lambda c: c == ColumnsSection()
    )
    """What the files call TRL's columns: `{prompt: question, chosen: better, rejected: worse}`."""
    label_values: dict[Name, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default={}, exclude_if=_is_unset
    )
    """Numbers for labels that are words: `{negative: 0, positive: 1}`."""
    positive_above: float = 0.0
    """A label above this is positive; 0.5 for classes 0 and 1."""
    neutral_margin: Annotated[float, Field(ge=0)] = 0.5
    """The classifier trains only where |label − positive_above| is at least this."""
    min_words: Count = 8
    max_words: Count = 30
    prompt_words: Count = 4
    """A prompt is the first words of a text: this many."""
    unit: Literal["words", "tokens"] = Field(
        default="words", exclude_if=lambda unit: unit == "words"
    )
    """What min_words, max_words and prompt_words count. A word is what blanks divide; in scripts
    without blanks two characters (Chinese, Japanese) or four (Thai, Lao, Khmer, Burmese). Tokens
    are the policy's."""
    long_texts: Literal["drop", "cut"] = Field(default="drop", exclude_if=lambda how: how == "drop")
    """Texts above max_words are left out, or cut after max_words; SFT then learns to end there."""
    prompts_name: Name | None = None
    """Own prompts instead: a dataset with a `prompt` column (text, or a list of messages)."""
    preferences_name: Name | None = None
    """Own preference pairs instead of labelled samples: `prompt`, `chosen`, `rejected`, or one of
    the shapes that other trainers read."""
    demonstrations: Count = 2400
    """Texts that SFT learns from."""
    heldout: Count = 256
    """Texts that only perplexity is measured on, and whose beginnings are validation prompts."""
    train_prompts: Count = 2048
    validation_prompts: Count = 64
    """At most this many prompts that PPO is evaluated on while it trains, where it is
    (`ppo.eval_strategy`), and chooses its best by; neither trained on nor in the comparison."""
    eval_prompts: Count = 64
    """Prompts that the comparison is made on; nothing is trained on them or chosen by them."""
    seed: Unsaid[Annotated[int, Field(ge=0, lt=2**32)]] = None
    """Divides the data where that is not to be the top-level seed: runs of different seeds then
    train on the same texts and are compared on the same prompts."""

    def column_names(self) -> dict[str, str]:
        """This project's names of columns to the files', where the config gives them."""
        own = {"text": self.text_column, "label": self.label_column}
        return own | self.columns.model_dump(exclude_none=True)


class GenerationSection(Section):
    """How completions are sampled in PPO, for preference pairs and in the comparison."""

    max_new_tokens: Count = 20
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """PPO's sampling temperature. KL and the comparison are always at temperature 1."""
    batch_size: Count = 256
    """Completions generated at once."""


class SFTSection(TrainerSection):
    """Fields of trl.SFTConfig."""

    skip: bool = False
    """Take model.model_name_or_path as it is for the reference policy: it is fine-tuned already."""


class RewardSection(TrainerSection):
    """The reward (proxy) and the judge (gold); fields of transformers.TrainingArguments too."""

    source: OneOrParts = "sentiment"
    """`sentiment` or `pairwise` (trained here, on rated texts or on comparisons), a
    sequence-classification checkpoint, `file.py:function`, `module:function`, `rules:name`, or the
    `http://` or `https://` address of a service; or a list of such parts, each `{source, weight,
    name, …}`."""
    combine: Literal["sum", "mean", "min", "pessimistic"] = Field(
        default="sum", exclude_if=lambda how: how == "sum"
    )
    """What becomes of a list's parts, or of `members`: their weighted sum, mean, minimum, or mean
    less `uncertainty_penalty` standard deviations of them (Coste et al. 2023)."""
    uncertainty_penalty: Unsaid[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = None
    """In standard deviations, with `combine: pessimistic`; null is 1."""
    gold: OneOrParts | None = None
    """The judge, in the same forms, parts always summed. Null: as the source, but what is trained
    here learns from the other half of the ratings; where nothing is, the proxy itself."""
    normalize_samples: Annotated[int, Field(ge=2)] = Field(
        default=NORMALIZE_SAMPLES, exclude_if=lambda n: n == NORMALIZE_SAMPLES
    )
    """Samples of π_ref that mean and deviation of a part with `normalize: reference` are taken
    from; the mean is then known to 1/√n deviations."""
    encoder: Name = "embedded:all-minilm-l6-v2"
    """Trunk of the classifier: `embedded:all-minilm-l6-v2`, a hub id, a folder, `toy`, or `sft`:
    LoRA adapters (model.lora_*) over the SFT model, in its dtype; what PPO leaves frozen is then
    held once."""
    labels: Literal["hard", "soft", "mean"] = Field(
        default="hard", exclude_if=lambda labels: labels == "hard"
    )
    """What `sentiment` learns of a text: `hard`, whether its mean rating is positive (neutral texts
    left out); `soft`, the share of its raters who are on the positive side, undecided ones half;
    `mean`, the mean rating less data.positive_above itself, by least squares: the reward, and so
    the unit of β, is then in points of the ratings, unless `calibrate` makes it nats."""
    calibrate: bool = Field(default=False, exclude_if=_is_unset)
    """Fit a temperature to `sentiment` on a tenth of its texts, which it is then not trained on
    (Guo et al. 2017), and divide the reward by it: σ(reward) is then how often such a text is
    positive, whatever `labels` are. The reward's scale, and so what β means, changes."""
    comparisons_per_rater: Count = Field(
        default=COMPARISONS, exclude_if=lambda most: most == COMPARISONS
    )
    """`pairwise` learns from at most so many pairs of texts that the same person rated. Pairs of
    the same texts share their pass, so many cost little in large batches."""
    margins: bool = Field(default=False, exclude_if=_is_unset)
    """`pairwise` asks for a difference of rewards of at least that of the two ratings."""
    center_rewards_coefficient: Unsaid[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = None
    """`pairwise` pays this much for (r⁺ + r⁻)², which holds the mean reward near 0; 0.01, say."""
    members: Count = Field(default=1, exclude_if=lambda members: members == 1)
    """Train the proxy so many times, each with a seed of its own; `combine` says how they count."""
    member_texts: Literal["all", "half"] = Field(
        default="all", exclude_if=lambda which: which == "all"
    )
    """What each member learns from: all that the proxy may, or a random half of its own."""
    max_length: Count | None = None
    """Longest text a classifier reads, in its tokens; a longer one loses its beginning, which is
    said. Null is 64 for one that is trained here, and all that it can take for another."""
    format: Unsaid[Literal["text", "pair", "chat"]] = None
    """How a checkpoint reads prompt and completion: joined to one `text`, as a `pair`, or as a
    `chat` in its template, the completion as the assistant's message. Null is `chat` for one with a
    single output and a chat template, else `text`. A function is given texts with `text` and lists
    of messages with `chat`, as TRL has it; null is texts, unless its annotations say dict."""
    gold_format: Unsaid[Literal["text", "pair", "chat"]] = None
    """The same for the judge."""
    positive_labels: Unsaid[Annotated[list[str], Field(min_length=1)]] = None
    """Labels of a checkpoint that are good, where their names do not tell; its reward is their
    log-odds against the others'."""
    gold_positive_labels: Unsaid[Annotated[list[str], Field(min_length=1)]] = None
    """The same for the judge."""
    header_env: Annotated[Name | None, Field(exclude=True)] = None
    """Environment variable that holds a header for services, as `Authorization: Bearer …`."""
    concurrency: Annotated[Count | None, Field(exclude=True)] = None
    """Requests to a service at once; null is 4."""
    timeout: Annotated[Annotated[float, Field(gt=0)] | None, Field(exclude=True)] = None
    """Seconds that a reward may take for one batch (in PPO for a rollout, but of a service for one
    request); null is for ever."""
    retries: Annotated[int, Field(ge=0, exclude=True)] = 2
    """Further calls with the same texts, after 1, 2, 4, … seconds, where a reward gives no answer;
    PPO's own are `ppo.reward_timeout` and `ppo.reward_retries`."""

    _with_parts = field_validator("source", "gold", mode="before")(with_parts)

    @field_serializer("max_length")
    def _length_as_trained(self, value: int | None) -> int | None:
        """What null amounts to where both parts are trained here."""
        here = is_trained_here(self.source) and (self.gold is None or is_trained_here(self.gold))
        return TRAINED_LENGTH if value is None and here else value

    def parts(self, key: Literal["source", "gold"]) -> list[RewardPart]:
        """What a key names, as parts; a single name with the section's keys is its only one."""
        named = self.source if key == "source" else self.gold
        if not isinstance(named, str):
            return named or []
        judge = key == "gold"
        return [
            RewardPart(
                source=named,
                format=self.gold_format if judge else self.format,
                positive_labels=self.gold_positive_labels if judge else self.positive_labels,
            )
        ]

    def shown(self, key: Literal["source", "gold"]) -> str:
        """What a key names, in a few words: `sentiment + 0.5·length`."""
        named = self.source if key == "source" else self.gold
        if not isinstance(named, list):
            return str(named)
        if len(named) > 1 and key == "source" and self.combine != "sum":
            return f"{self.combine} of {', '.join(part.called() for part in named)}"
        terms = (f"{p.weight:g}·{p.called()}" if p.weight != 1 else p.called() for p in named)
        return " + ".join(terms).replace("+ -", "− ")

    def sources(self) -> list[str]:
        """Everything that the proxy and the judge are made of."""
        return [part.source for part in [*self.parts("source"), *self.parts("gold")]]

    def trains_here(self) -> bool:
        """True where the reward stage trains something."""
        return any(is_trained_here(source) for source in self.sources())

    def normalizes(self) -> bool:
        """True where a part's scale is estimated on samples of π_ref."""
        return any(part.normalize for part in [*self.parts("source"), *self.parts("gold")])


class PPOSection(TrainerSection):
    """Fields of pipeline.ppo.config.PPOConfig, which is a transformers.TrainingArguments."""

    save_value_head: bool = Field(default=False, exclude_if=_is_unset)
    """Keep the trained value head too, in `<policy>/value_head`."""


class PairsSection(Section):
    """Preference pairs drawn from the SFT model's own samples."""

    per_prompt: Count = 2
    """Groups of samples drawn for each prompt: pairs, where a group has two."""
    samples_per_prompt: Annotated[int, Field(ge=2)] = 2
    """Samples in a group, m: all m(m − 1)/2 pairs of them are used, so that the reward of a
    completion serves m − 1 pairs. Where each also runs once for all of them (DPO's `sigmoid` and
    `rebel`), a batch has as many completions as `dpo.per_device_train_batch_size` pairs of two,
    of whole groups where m divides their number; trainers of other losses run every pair."""
    labels: Literal["sampled", "soft", "hard"] = "sampled"
    """`sampled` draws who is chosen by Bradley–Terry, P(y₁≻y₂) = σ(r₁ − r₂), whose DPO optimum is
    PPO's; `soft` takes that probability itself as the label: the same optimum, less noise; with
    `hard` the higher reward always wins, which has another optimum."""
    hard_labels: Annotated[bool | None, Field(exclude=True)] = None
    """The older key for `labels`: true is hard, false is sampled."""
    max_pairs: Count = 2000
    """Pairs in all. They cost 2·max_pairs/(samples_per_prompt − 1) reward queries."""

    @property
    def of_group(self) -> int:
        """Pairs that the samples of a group make."""
        return math.comb(self.samples_per_prompt, 2)

    def batch(self, rows: int) -> int:
        """Pairs that the completions of ``rows`` pairs of two make in groups."""
        return rows * (self.samples_per_prompt - 1)

    def groups(self, prompts: int) -> int:
        """Groups that are drawn where there are so many ``prompts``."""
        return min(-(-self.max_pairs // self.of_group), prompts * self.per_prompt)

    @model_validator(mode="before")
    @classmethod
    def _former(cls, tree: Any) -> Any:
        """The labels that the older key asks for."""
        hard = tree.get("hard_labels") if isinstance(tree, dict) else None
        if not isinstance(hard, bool):
            return tree
        return {"labels": "hard" if hard else "sampled", **tree}


class DPOSection(TrainerSection):
    """Fields of trl.DPOConfig; `loss_type` may also be `rebel`: regression of β times the
    difference of log-ratios on that of the rewards (arXiv 2404.16767)."""

    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts whose pairs are evaluated on and not trained on; with
    dpo.eval_strategy only."""


class CompareSection(Section):
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
    policies: dict[Name, Name] = Field(default={}, exclude_if=_is_unset)
    """Checkpoints from elsewhere that are measured too, by name: a folder, an adapter's folder, or
    a hub id."""
    reverse_kl_samples: Annotated[int, Field(ge=0)] = 2
    """Of the reference samples of a prompt so many are given to each policy, for KL(π_ref‖π)."""
    fluency_model: Name | None = "base"
    """What finds the answers fluent or not: a folder or a hub id; ``base``, the model that SFT
    started from; null, nothing."""


class OveroptimiseSection(Section):
    """`rlhf overoptimise`: proxies of several sizes, optimised ever harder, and what gold says.

    Every reward is on one scale: mean 0 and standard deviation 1 over π_ref's samples.
    """

    sizes: Annotated[list[Count | Literal["all"]], Field(min_length=1)] = [100, 400, "all"]
    """Rated texts that a proxy learns from: so many of the proxy's half, drawn from positive and
    negative ones in turn, or all of it."""
    members: Annotated[int, Field(ge=2)] = 3
    """Proxies of each size; they differ by their seed, and together are the ensemble."""
    penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """k of the uncertainty penalty: the members' mean less k of their standard deviations."""
    samples: Annotated[int, Field(ge=2)] = 128
    """Samples of π_ref for each evaluation prompt; best-of-n goes up to this n."""
    betas: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = [0.05, 0.2]
    """PPO's KL coefficients here, in standard deviations a nat. [] is no PPO: best-of-n only."""
    ppo_rewards: Annotated[
        list[Literal["single", "mean", "minimum", "uncertainty"]], Field(min_length=1)
    ] = ["single", "uncertainty"]
    """What PPO optimises; best-of-n is done with all four."""
    ppo_sizes: Annotated[list[Count | Literal["all"]], Field(min_length=1)] = [100]
    """The sizes of the proxies that PPO optimises, from `sizes`."""
    episodes: Count = 640
    """Completions of each PPO run, in the place of `ppo.total_episodes`."""


class ReportSection(Section):
    """Where the report goes beside its folder: a static Space of the hub, which shows the page."""

    push_to_hub: bool = False
    hub_space_id: Unsaid[Name] = None
    """`owner/name`, or a name in your own account; null is `<name>-report`."""
    hub_private_repo: Unsaid[bool] = None
    """Null is as the account has it: public, mostly."""


class TrackingSection(Section):
    """Where metrics go beside the run's own JSONL."""

    report_to: list[str] = ["wandb"]
    """Whatever transformers.TrainingArguments.report_to takes; [] is none."""
    project: Name = "rlhf"
    log_samples: Annotated[int, Field(ge=0)] = 8
    """Samples shown and logged now and then; 0 is none."""
