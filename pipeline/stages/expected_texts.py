"""What the expected time counts of an experiment's texts: how many there are, and how long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, TrainingArguments

from pipeline.config import PAIRWISE, Experiment
from pipeline.config.choices import on_own_pairs, ppo_evaluates
from pipeline.data.comparisons import Comparison, load_comparisons
from pipeline.data.preferences import load_preferences
from pipeline.data.records import Demonstration
from pipeline.data.splits import ExperimentData
from pipeline.stages.pair_data import token_pairs
from pipeline.stages.reward_sources import PARTS, folders_of, trained_source
from pipeline.stages.reward_training import DEFAULTS, texts_of
from pipeline.stages.tokens import learnt_tokens
from pipeline.stages.training import stage_arguments

_LOOKED_AT = 500  # texts that lengths are taken from


@dataclass(frozen=True)
class Texts:
    """How long the texts are, in tokens, and how many there are.

    Attributes:
        demonstrations: tokens of a sample of them. learnt: how many there are.
        prompt: tokens of a prompt, on average. response: of a completion, as far as the
            demonstrations tell.
        heldout: texts held out. rated: rows, texts or pairs, that each model of the reward stage
            learns from.
        prompts: training prompts. evaluated: the comparison's prompts.
        validation: prompts that PPO is evaluated on.
        a_row: texts that a row of each model costs; of pairs two, less where they share texts.
        own_pairs: by the name of a file of pairs, how many it has and the tokens of some of their
            texts, each with its prompt.
    """

    demonstrations: Sequence[int]
    learnt: int
    prompt: float
    response: float
    heldout: int
    rated: Sequence[int]
    prompts: int
    evaluated: int
    validation: int
    a_row: Sequence[float] = ()
    own_pairs: Mapping[str, tuple[int, Sequence[int]]] = field(default_factory=dict)


def look_at(
    experiment: Experiment, data: ExperimentData, tokenizer: PreTrainedTokenizerBase
) -> Texts:
    """The lengths of the experiment's texts, from some of them."""
    most, lengths, responses = experiment.generation.max_new_tokens, [], []
    prompts = data.train_prompts[:_LOOKED_AT]
    begins = [learnt_tokens(tokenizer, prompt, _nothing(prompt))[0] for prompt in prompts]
    prompt = fmean(begins)
    for item in data.demonstrations[:_LOOKED_AT]:
        pair = (item.prompt, item.completion) if isinstance(item, Demonstration) else ("", item)
        begin, tokens = learnt_tokens(tokenizer, *pair)
        lengths.append(len(tokens))
        begin = begin or round(prompt)
        responses.append(min(most, max(1, len(tokens) - begin)))
    learnt = list(_learnt(experiment, data))
    return Texts(
        demonstrations=lengths,
        learnt=len(data.demonstrations),
        prompt=prompt,
        response=fmean(responses),
        heldout=len(data.heldout),
        rated=[rows for rows, _ in learnt],
        a_row=[texts for _, texts in learnt],
        prompts=len(data.train_prompts),
        evaluated=len(data.eval_prompts),
        validation=len(data.validation_prompts) if ppo_evaluates(experiment) else 0,
        own_pairs=dict(_own_pairs(experiment, tokenizer)),
    )


def _own_pairs(
    experiment: Experiment, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, tuple[int, list[int]]]]:
    """Of each file of pairs that a policy learns from: its pairs, and tokens of some texts."""
    files = {str(view.data.preferences_name): view for view in on_own_pairs(experiment).values()}
    for name, view in files.items():
        data = view.data
        pairs = load_preferences(name, data.column_names(), data.train_split)
        some = token_pairs(cast(Any, pairs[:_LOOKED_AT]), tokenizer, None, name)
        lengths = [
            len(pair["prompt_ids"]) + len(pair[side])
            for pair in some
            for side in ("chosen_ids", "rejected_ids")
        ]
        yield name, (len(pairs), lengths)


def _learnt(experiment: Experiment, data: ExperimentData) -> Iterator[tuple[int, float]]:
    """Rows that each model of the reward stage learns from, and the texts that a row costs."""
    section = experiment.reward
    comparisons = load_comparisons(experiment, data) if PAIRWISE in section.sources() else None
    for part in PARTS:
        source = trained_source(experiment, part)
        if source is None:
            continue
        if source == PAIRWISE:
            own: list[Comparison] = getattr(comparisons, part)
            rows = len(own), _texts_of_a_pair(experiment, own)
        else:
            rows = round(len(texts_of(experiment, data, part)) * (0.9 if section.calibrate else 1))
            rows = rows, 1.0
        half = part == "proxy" and section.member_texts == "half"
        for _ in folders_of(experiment, part):
            yield (rows[0] + 1) // 2 if half else rows[0], rows[1]


def _texts_of_a_pair(experiment: Experiment, pairs: list[Comparison]) -> float:
    """Different texts in a batch, for each of its pairs: pairs of a group share theirs."""
    size = min(reward_arguments(experiment).per_device_train_batch_size, len(pairs))
    batches = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    texts = sum(len({str(side) for c in b for side in (c.chosen, c.rejected)}) for b in batches)
    return texts / len(pairs)


def reward_arguments(experiment: Experiment) -> TrainingArguments:
    """The training arguments of the reward's classifiers."""
    return stage_arguments(experiment, "reward", TrainingArguments, **DEFAULTS)


def _nothing(prompt: Any) -> Any:
    """An empty answer of the prompt's kind."""
    return "" if isinstance(prompt, str) else [{"role": "assistant", "content": ""}]
