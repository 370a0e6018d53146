"""Prompts, demonstrations, rated texts and preference pairs: from a data set to the splits.

all texts ── cleaned, 8–30 words, duplicates removed, shuffled by the seed
  ├─ eval prompts     first words of texts that nothing trains on
  ├─ held-out texts   for perplexity
  ├─ classifier test  a tenth, at most 1,000
  └─ training texts   ├─ demonstrations (SFT) and training prompts (PPO, DPO)
                      └─ two disjoint halves: the proxy's and the gold judge's
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.config import DataSection, Experiment
from pipeline.data import embedded
from pipeline.data.records import Prompt, RatedText
from pipeline.data.sources import Row, read_rows
from pipeline.data.toy import toy_texts
from pipeline.errors import UserError

__all__ = ["ExperimentData", "Prompt", "RatedText", "load_data", "load_preferences"]

_EMBEDDED = "embedded:"
_TOY_TEXTS = 3000
_MOST_TEST_TEXTS = 1000
_FIXED_COLUMNS = ("prompt", "chosen", "rejected")
_BREAK = re.compile(r"(?:\s*<br\s*/?>\s*)+", re.IGNORECASE)


@dataclass(frozen=True)
class ExperimentData:
    """Everything the stages learn from and are measured on.

    Attributes:
        demonstrations: Texts for SFT.
        heldout: Texts for perplexity; in no training split.
        train_prompts: Prompts for PPO and for preference pairs; none is an evaluation prompt.
        eval_prompts: Prompts for the comparison, all different, from texts in no training split.
        proxy: Rated texts for the reward's classifier, neutral ones left out; empty when no
            classifier is trained (``reward.source`` is not ``sentiment``).
        gold: The same for the judge; disjoint from ``proxy``.
        classifier_test: Rated texts for measuring both, neutral ones included.
    """

    demonstrations: list[str]
    heldout: list[str]
    train_prompts: list[Prompt]
    eval_prompts: list[Prompt]
    proxy: list[RatedText]
    gold: list[RatedText]
    classifier_test: list[RatedText]


def load_data(experiment: Experiment) -> ExperimentData:
    """Read the experiment's data set and divide it; same config and seed, same splits.

    Raises:
        UserError: The data cannot be read, a row lacks a column or has one of another type, or
            there are too few texts for the splits that the config asks for.
    """
    section = experiment.data
    labelled = "sentiment" in (experiment.reward.source, experiment.reward.gold)
    texts = _suitable(_rated_texts(section, labelled), section)
    random.Random(experiment.seed).shuffle(texts)
    own = _own_prompts(section, experiment.seed) if section.prompts_name else None

    evaluation, rest = ([], texts) if own else _take_evaluation(texts, section)
    tested = min(_MOST_TEST_TEXTS, len(texts) // 10) if labelled else 0
    _check_enough(len(texts), len(evaluation), tested, section, own is not None)
    heldout, rest = rest[: section.heldout], rest[section.heldout :]
    test, training = rest[:tested], rest[tested:]
    demonstrations = training[: section.demonstrations]
    if own:
        eval_prompts, train_prompts = own
    else:
        eval_prompts = [first_words(text.text, section.prompt_words) for text in evaluation]
        # Fresh texts first: a prompt from a demonstration is one whose answer SFT has seen.
        others = training[section.demonstrations :] + demonstrations
        train_prompts = _training_prompts(others, eval_prompts, section)
    proxy, gold = training[0::2], training[1::2]
    return ExperimentData(
        demonstrations=[text.text for text in demonstrations],
        heldout=[text.text for text in heldout],
        train_prompts=train_prompts,
        eval_prompts=list(eval_prompts),
        proxy=_decided(proxy, section, "the proxy's half") if labelled else [],
        gold=_decided(gold, section, "the gold judge's half") if labelled else [],
        classifier_test=test,
    )


def load_preferences(name: str) -> list[dict[str, Any]]:
    """Read preference pairs: rows of ``prompt``, ``chosen`` and ``rejected``.

    Each is a text, or all three are conversations (lists of messages). A data set without a
    ``prompt`` column, whose two conversations or texts start alike, has it taken from there.

    Args:
        name: A local file or folder, or a hub id (its ``train`` split).

    Raises:
        UserError: It cannot be read, or a row lacks a column or has one of another type.
    """
    pairs = []
    for row in read_rows(name, key="data.preferences_name"):
        pair = {column: _value(row, column) for column in ("chosen", "rejected")}
        if row.values.get("prompt") is None:
            # TRL is slow to import and only data sets without prompts need it.
            from trl import extract_prompt

            kinds = {type(side) for side in pair.values()}
            if kinds not in ({str}, {list}):
                raise UserError(f"{row.place}: chosen and rejected must both be text or messages")
            pair = extract_prompt(pair)
        else:
            pair = {"prompt": row.values["prompt"], **pair}
        for column, value in pair.items():
            _check_text_or_messages(row.place, column, value)
        if len({type(value) for value in pair.values()}) > 1:
            raise UserError(
                f"{row.place}: prompt, chosen and rejected must all be text, or all be messages"
            )
        pairs.append({column: pair[column] for column in ("prompt", "chosen", "rejected")})
    return pairs


def first_words(text: str, count: int) -> str:
    """The text up to the end of its ``count``-th word, spacing kept."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text[: ends[min(count, len(ends)) - 1]] if ends else ""


def _rated_texts(section: DataSection, labelled: bool) -> list[RatedText]:
    """Every text of the data set. Ratings are 0 where no classifier is trained on them."""
    name = section.dataset_name
    if name == "toy":
        return toy_texts(_TOY_TEXTS, seed=0)
    if name.startswith(_EMBEDDED):
        return embedded.ratings(name.removeprefix(_EMBEDDED))
    rows = read_rows(
        name,
        key="data.dataset_name",
        split=section.train_split,
        config=section.dataset_config,
        column=section.text_column,
    )
    texts = []
    for row in rows:
        text = _text(row, section.text_column)
        rating = _number(row, section.label_column) if labelled else 0.0
        texts.append(RatedText(_BREAK.sub(" ", text).strip(), rating))
    return texts


def _value(row: Row, column: str) -> Any:
    """A column's value; a missing one is an error that lists the columns there are."""
    value = row.values.get(column)
    if value is not None:
        return value
    if column in row.values:
        raise UserError(f"{row.place}: column {column!r} is empty: fill it or remove the row")
    columns = ", ".join(map(repr, row.values)) or "none"
    mend = "" if column in _FIXED_COLUMNS else "; data.text_column and data.label_column name them"
    raise UserError(f"{row.place}: no column {column!r}; there are {columns}{mend}")


def _text(row: Row, column: str) -> str:
    value = _value(row, column)
    if not isinstance(value, str):
        raise UserError(f"{row.place}: column {column!r} must be text, found {value!r:.40}")
    _check_characters(row.place, column, value)
    return value


def _check_characters(place: str, column: str, text: str) -> None:
    """JSON can write half of a surrogate pair, which no tokenizer and no file can take."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise UserError(
            f"{place}: column {column!r} holds {code} alone at character {error.start}, which is "
            "no character: remove it"
        ) from error


def _number(row: Row, column: str) -> float:
    value = _value(row, column)
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"{row.place}: column {column!r} must be a number, found {value!r:.40}: use ratings "
            "such as -4..4, or classes 0 and 1"
        )
    return number


def _check_text_or_messages(place: str, column: str, value: Any) -> None:
    """A text, or a non-empty list of ``{"role": text, "content": text}``."""
    if isinstance(value, str):
        return _check_characters(place, column, value)
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{place}: column {column!r} must be text or a list of messages, found {value!r:.40}"
        )
    for message in value:
        fields = message if isinstance(message, dict) else {}
        if not all(isinstance(fields.get(part), str) for part in ("role", "content")):
            raise UserError(
                f"{place}: column {column!r}: a message needs role and content, both text; "
                f"found {message!r:.60}"
            )
        _check_characters(place, column, fields["content"])
    return None


def _suitable(texts: list[RatedText], section: DataSection) -> list[RatedText]:
    """Texts of the asked length, each once (case, spacing and punctuation aside)."""
    # A prompt of a whole text would leave nothing to complete.
    fewest = max(section.min_words, section.prompt_words + 1)
    kept: dict[str, RatedText] = {}
    for text in texts:
        if fewest <= len(text.text.split()) <= section.max_words:
            kept.setdefault(" ".join(re.findall(r"\w+", text.text.casefold())), text)
    if not kept:
        raise UserError(
            f"data.dataset_name: none of the {len(texts)} texts of {section.dataset_name} has "
            f"{fewest} to {section.max_words} words: change data.min_words or data.max_words"
        )
    return list(kept.values())


def _take_evaluation(
    texts: list[RatedText], section: DataSection
) -> tuple[list[RatedText], list[RatedText]]:
    """The first texts whose prompts are all different, and the other texts."""
    taken: dict[str, RatedText] = {}
    rest = []
    for text in texts:
        prompt = first_words(text.text, section.prompt_words)
        if len(taken) < section.eval_prompts and prompt not in taken:
            taken[prompt] = text
        else:
            rest.append(text)
    if len(taken) < section.eval_prompts:
        raise _too_few(f"{len(taken)} different prompts", "eval_prompts", section)
    return list(taken.values()), rest


def _check_enough(
    there: int, evaluation: int, tested: int, section: DataSection, own_prompts: bool
) -> None:
    needed = evaluation + section.heldout + tested + section.demonstrations
    if there >= needed:
        return
    parts = {"demonstrations": section.demonstrations, "heldout": section.heldout}
    if not own_prompts:
        parts["eval_prompts"] = evaluation
    largest = max(parts, key=lambda part: parts[part])
    asked = " + ".join(f"{count} {part}" for part, count in parts.items())
    asked += f" + {tested} to test the classifier" if tested else ""
    raise UserError(
        f"data.{largest}: {section.dataset_name} has {there} different texts of "
        f"{section.min_words} to {section.max_words} words, but {needed} are asked for "
        f"({asked}): lower data.{largest}"
    )


def _too_few(there: str, key: str, section: DataSection) -> UserError:
    return UserError(
        f"data.{key}: {section.prompts_name or section.dataset_name} gives {there}, but "
        f"{getattr(section, key)} are asked for: lower data.{key}"
    )


def _training_prompts(
    texts: list[RatedText], evaluation: Iterable[str], section: DataSection
) -> list[Prompt]:
    """First words of the texts. They may repeat, as in life, but none is an evaluation prompt."""
    kept_out = set(evaluation)
    prompts = (first_words(text.text, section.prompt_words) for text in texts)
    usable: list[Prompt] = [prompt for prompt in prompts if prompt not in kept_out]
    if len(usable) < section.train_prompts:
        raise _too_few(f"{len(usable)} prompts for training", "train_prompts", section)
    return usable[: section.train_prompts]


def _own_prompts(section: DataSection, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """The user's prompts, evaluation's first, then training's; all different."""
    assert section.prompts_name
    rows = read_rows(
        section.prompts_name, key="data.prompts_name", split=section.train_split, column="prompt"
    )
    prompts: dict[str, Prompt] = {}
    for row in rows:
        prompt = _value(row, "prompt")
        _check_text_or_messages(row.place, "prompt", prompt)
        if isinstance(prompt, str) and not prompt.strip():
            raise UserError(f"{row.place}: column 'prompt' is empty: fill it or remove the row")
        if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
            raise UserError(f"{row.place}: a prompt must not end with the assistant's message")
        prompts.setdefault(json.dumps(prompt, sort_keys=True), prompt)
    different = list(prompts.values())
    random.Random(seed).shuffle(different)
    evaluation, training = different[: section.eval_prompts], different[section.eval_prompts :]
    if len(training) < section.train_prompts:
        there = f"{len(different)} different prompts, {len(training)} without the evaluation's"
        raise _too_few(there, "train_prompts", section)
    return evaluation, training[: section.train_prompts]


def _decided(texts: list[RatedText], section: DataSection, part: str) -> list[RatedText]:
    """Texts whose label is clearly on one side; both sides must be there."""
    limit = section.positive_above
    decided = [text for text in texts if abs(text.rating - limit) >= section.neutral_margin]
    positive = sum(text.rating > limit for text in decided)
    if 0 < positive < len(decided):
        return decided
    missing = "negative" if positive else "positive"
    classes = {text.rating for text in texts} <= {0.0, 1.0}
    mend = "set data.positive_above=0.5 for classes 0 and 1" if classes else "change them"
    raise UserError(
        f"data.label_column: {part} of {section.dataset_name} has no {missing} text at "
        f"data.positive_above={limit:g} and data.neutral_margin={section.neutral_margin:g}: {mend}"
    )
