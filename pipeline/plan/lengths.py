"""How long the experiment's texts are, in the policy's tokens, where its data can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from common.words import first_line
from pipeline.config import Experiment
from pipeline.data.records import Demonstration
from pipeline.data.splits import ExperimentData, load_data
from pipeline.data.tally import listening
from pipeline.data.tokenizer import load_tokenizer
from pipeline.errors import UserError
from pipeline.lm.generation import encode_prompt
from pipeline.stages.tokens import learnt_tokens

_TOKENISED = 500  # texts: the longest by their characters, and as many others for the mean
_LOOKED_AT = 20_000  # of more than so many, as many that lie evenly among them
# Where no data is read: what the data section would let through, at tokens a word.
_TOKENS_A_WORD = 1.5


@dataclass(frozen=True)
class Lengths:
    """Tokens of the experiment's texts.

    Attributes:
        prompt: of the longest prompt. prompt_mean: of one. response: that may follow.
        text: of the longest demonstration. text_mean: of one.
        prompts, texts: how many there are; 0 where that is not known.
        known: where the lengths are from: "" for the data itself, else why it is not.
        looked_at: of how many texts of each kind the longest was taken; 0 where of none.
    """

    prompt: int
    prompt_mean: float
    response: int
    text: int
    text_mean: float
    prompts: int
    texts: int
    known: str = ""
    looked_at: int = 0

    @property
    def sequence(self) -> int:
        """Of the longest prompt with the longest completion."""
        return self.prompt + self.response

    @property
    def sequence_mean(self) -> float:
        """Of a prompt with a completion of full length."""
        return self.prompt_mean + self.response


def read_lengths(
    experiment: Experiment, most: float | None = None
) -> tuple[Lengths, ExperimentData | None]:
    """The lengths, and the data where they are from it.

    Data that cannot be read from here (a hub that is not reached, say) are no error: the lengths
    are then those that the data section's words allow, and ``known`` says so.

    Args:
        most: bytes of files above which they are not read either.
    """
    if most is not None and _size(experiment) > most:
        return _guessed(experiment, "its files are large"), None
    try:
        tokenizer = load_tokenizer(experiment.model)
        with listening():
            data = _load(experiment)
    except UserError as error:
        return _guessed(experiment, first_line(error)), None
    return measured(experiment, data, tokenizer), data


def _size(experiment: Experiment) -> float:
    """Bytes of the local files that the data are read from."""
    section = experiment.data
    paths = [
        Path(name).expanduser() for name in (section.dataset_name, section.prompts_name) if name
    ]
    files = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()]
    return float(sum(file.stat().st_size for file in files))


def _load(experiment: Experiment) -> ExperimentData:
    """The splits; without ratings where there are none that a classifier could learn from."""
    try:
        return load_data(experiment)
    except UserError:
        return load_data(experiment, labels=False)


def measured(
    experiment: Experiment, data: ExperimentData, tokenizer: PreTrainedTokenizerBase
) -> Lengths:
    """The lengths of what stands in ``data``."""
    found = [
        _lengths(prompts, lambda prompt: len(encode_prompt(tokenizer, prompt)))
        for prompts in (data.train_prompts, data.validation_prompts, data.eval_prompts)
    ]
    longest, mean = max(most for most, _ in found), found[0][1]

    def learnt(item: Any) -> int:
        pair = (item.prompt, item.completion) if isinstance(item, Demonstration) else ("", item)
        return len(learnt_tokens(tokenizer, *pair)[1])

    text, text_mean = _lengths(data.demonstrations, learnt)
    return Lengths(
        prompt=longest,
        prompt_mean=mean,
        response=experiment.generation.max_new_tokens,
        text=text,
        text_mean=text_mean,
        prompts=len(data.train_prompts),
        texts=len(data.demonstrations),
        looked_at=min(_LOOKED_AT, max(len(data.train_prompts), len(data.demonstrations))),
    )


def _lengths(items: Sequence[Any], tokens: Callable[[Any], int]) -> tuple[int, float]:
    """The longest, found among the longest by characters, and the mean of some."""
    if not len(items):
        return 0, 0.0
    some = [items[i] for i in range(0, len(items), -(-len(items) // _LOOKED_AT))]
    by_size = sorted(some, key=_characters, reverse=True)[:_TOKENISED]
    every = -(-len(some) // _TOKENISED)
    return max(map(tokens, by_size)), fmean(map(tokens, some[::every]))


def _characters(item: Any) -> int:
    """Of a text, a conversation, or a prompt with its answer."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, Demonstration):
        return _characters(item.prompt) + _characters(item.completion)
    return sum(len(str(message.get("content") or "")) for message in item)


def _guessed(experiment: Experiment, why: str) -> Lengths:
    section, response = experiment.data, experiment.generation.max_new_tokens
    a_unit = 1.0 if section.unit == "tokens" else _TOKENS_A_WORD
    prompt = round(a_unit * section.prompt_words)
    text = round(a_unit * section.max_words)
    return Lengths(prompt, prompt, response, text, text, 0, 0, why)
