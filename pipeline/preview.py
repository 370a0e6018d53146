"""`rlhf data`: what is read of the data files, and examples of it as the model sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter

from transformers import PreTrainedTokenizerBase

from pipeline.config import Experiment
from pipeline.data.preferences import Pair, read_pairs
from pipeline.data.records import Demonstration, Prompt, RatedText
from pipeline.data.sources import read_rows
from pipeline.data.splits import ExperimentData, load_data
from pipeline.data.stored import column
from pipeline.data.tally import listening
from pipeline.data.tokenizer import load_tokenizer
from pipeline.errors import UserError
from pipeline.lm.generation import encode_prompt
from pipeline.stages.ahead import check_data, check_pairs
from pipeline.stages.tokens import learnt_tokens

_SHOWN = 3
_LONGEST = 600
ANSWER = "▶"
"""Stands where the answer begins, which is what the loss is on."""


def show(experiment: Experiment) -> None:
    """Print, on stdout, what each data set of the experiment holds and becomes.

    Raises:
        UserError: One of them cannot be read, or not with this tokenizer.
    """
    section = experiment.data
    tokenizer = load_tokenizer(experiment.model)
    _show_rows(experiment, "data.dataset_name", section.dataset_name)
    if section.prompts_name:
        _show_rows(experiment, "data.prompts_name", section.prompts_name)
    with listening() as lines:
        data = _load(experiment, lines)
        check_data(experiment, data)
    _show_lines(lines)
    _show_splits(experiment, data)
    _show_examples("demonstrations", data.demonstrations, lambda d: _learnt(tokenizer, d))
    _show_examples("training prompts", data.train_prompts, lambda p: _asked(tokenizer, p))
    if section.preferences_name:
        _show_rows(experiment, "data.preferences_name", section.preferences_name)
        with listening() as lines:
            pairs = read_pairs(
                section.preferences_name, section.column_names(), section.train_split
            )
            check_pairs(experiment, pairs, tokenizer)
        _show_lines(lines)
        print(f"  {len(pairs):,} pairs")
        _show_examples("pairs", pairs, lambda pair: _compared(tokenizer, pair))


def _load(experiment: Experiment, lines: list[str]) -> ExperimentData:
    """The splits; without ratings where there are none that a classifier could learn from."""
    try:
        return load_data(experiment)
    except UserError as error:
        data = load_data(experiment, labels=False)
        lines.append(f"the reward stage cannot learn from this: {error}")
        return data


def _show_rows(experiment: Experiment, key: str, name: str) -> None:
    """Rows and columns of a data set, as they stand in it."""
    print(f"{key}: {name}")
    if name == "toy" or name.startswith("embedded:"):
        return
    section, whole = experiment.data, key == "data.dataset_name"
    with listening() as lines:
        rows = read_rows(
            name,
            key=key,
            split=section.train_split,
            config=section.dataset_config if whole else None,
            column=section.text_column if whole else section.columns.prompt or "prompt",
        )
        filled: Counter[str] = Counter()
        count = 0
        for row in rows:
            count += 1
            filled.update({str(c): value not in (None, "") for c, value in row.values.items()})
    _show_lines(lines)
    shown = [f"{c} ({n:,} filled)" if n < count else c for c, n in filled.items()]
    print(f"  {count:,} rows; columns: {', '.join(shown)}")


def _show_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"  {line}")


def _show_splits(experiment: Experiment, data: ExperimentData) -> None:
    sizes = {
        "demonstrations": len(data.demonstrations),
        "held out": len(data.heldout),
        "training prompts": len(data.train_prompts),
        "validation prompts": len(data.validation_prompts),
        "evaluation prompts": len(data.eval_prompts),
    }
    print("  " + ", ".join(f"{size:,} {name}" for name, size in sizes.items()))
    limit = experiment.data.positive_above
    rated: dict[str, Sequence[RatedText]] = {"the reward": data.proxy, "the judge": data.gold}
    for name, texts in rated.items():
        if texts:
            positive = int((column(texts, "rating", attrgetter("rating")) > limit).sum())
            print(f"  {name} learns from {len(texts):,} texts, {positive:,} of them positive")


def _show_examples(
    name: str, items: Sequence[object], lines_of: Callable[..., dict[str, str]]
) -> None:
    """The first few, a line a part, special tokens and line ends visible."""
    for number, item in enumerate(items[:_SHOWN], start=1):
        print(f"  {name}, example {number}")
        for part, text in lines_of(item).items():
            print(f"    {part}{_one_line(text)}")


def _one_line(text: str) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    cut = len(text) - _LONGEST
    if cut <= 0:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} […{cut:,} characters…] {text[-half:]}"


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False))


def _learnt(tokenizer: PreTrainedTokenizerBase, item: str | Demonstration) -> dict[str, str]:
    if isinstance(item, str):
        return {"": _decoded(tokenizer, learnt_tokens(tokenizer, "", item)[1])}
    begin, tokens = learnt_tokens(tokenizer, item.prompt, item.completion)
    answer = _decoded(tokenizer, tokens[begin:])
    return {"": f"{_decoded(tokenizer, tokens[:begin])}{ANSWER}{answer}"}


def _asked(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> dict[str, str]:
    return {"": f"{_decoded(tokenizer, encode_prompt(tokenizer, prompt))}{ANSWER}"}


def _compared(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> dict[str, str]:
    chosen = learnt_tokens(tokenizer, pair.prompt, pair.chosen)
    rejected = learnt_tokens(tokenizer, pair.prompt, pair.rejected)
    begin = min(chosen[0], rejected[0])
    return {
        "prompt   ": _decoded(tokenizer, chosen[1][:begin]),
        f"chosen   {ANSWER}": _decoded(tokenizer, chosen[1][begin:]),
        f"rejected {ANSWER}": _decoded(tokenizer, rejected[1][begin:]),
    }
