"""The units that texts are measured in: words, also where no blanks divide them, and tokens."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from pipeline.config import Experiment
from pipeline.data.tokenizer import load_tokenizer
from pipeline.errors import UserError

# Scripts that put no blanks between words, with about as many characters as a word has in them:
# kana, Bopomofo and Han; Thai and Lao, Tibetan, Myanmar, Khmer. Neither is cut by a dictionary.
_TWO = (
    "\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_FOUR = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff"
# Marks (no \w) go with the character they stand on, punctuation with the word before it.
_WORD = re.compile(
    rf"[{_TWO}]{{1,2}}[^\w\s]*"
    rf"|(?:(?=\w)[{_FOUR}](?:(?!\w)[{_FOUR}])*){{1,4}}[^\w\s]*"
    rf"|[{_FOUR}]+"
    rf"|[^\s{_TWO}{_FOUR}]+"
)


def word_ends(text: str) -> list[int]:
    """Where each word ends: what blanks divide, or 2 or 4 characters of a script without them."""
    return [match.end() for match in _WORD.finditer(text)]


def _word_ends(text: str) -> Iterator[int]:
    return (match.end() for match in _WORD.finditer(text))


def _count_words(text: str) -> int:
    # In ASCII words are what blanks divide; most texts are, and this is twenty times as fast.
    return len(text.split()) if text.isascii() else len(word_ends(text))


@dataclass(frozen=True)
class Unit:
    """What ``data.min_words``, ``data.max_words`` and ``data.prompt_words`` count.

    Attributes:
        name: ``words`` or ``tokens``.
        ends: Where each unit of a text ends, in characters.
        count: How many there are in a text.
        identity: What decides where they end, where that is a tokenizer.
    """

    name: str
    ends: Callable[[str], Iterable[int]]
    count: Callable[[str], int]
    identity: str = ""

    def first(self, text: str, count: int) -> str:
        """The text up to the end of its ``count``-th unit, spacing kept."""
        ends = list(islice(self.ends(text), count))
        return text[: ends[-1]] if ends else ""


WORDS = Unit("words", _word_ends, _count_words)


def unit_of(experiment: Experiment) -> Unit:
    """The unit that the experiment measures its texts in.

    Raises:
        UserError: It is tokens and the tokenizer is missing, or cannot tell where they end.
    """
    if experiment.data.unit == "words":
        return WORDS
    tokenizer: Any = load_tokenizer(experiment.model)
    if not tokenizer.is_fast:
        raise UserError(
            "data.unit: tokens needs a fast tokenizer, which tells where each token ends; "
            f"that of {experiment.model.model_name_or_path!r} is slow: set data.unit=words"
        )

    def token_ends(text: str) -> list[int]:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # A character may be several tokens: each of them ends where it does.
        return [end for _, end in encoded["offset_mapping"]]

    def count(text: str) -> int:
        return len(token_ends(text))

    return Unit("tokens", token_ends, count, tokenizer.backend_tokenizer.to_str())


def first_words(text: str, count: int) -> str:
    """The text up to the end of its ``count``-th word, spacing kept."""
    return WORDS.first(text, count)


def same_but_for_form(text: str) -> str:
    """A key that two texts share when case, spacing and punctuation alone tell them apart."""
    if text.isascii():  # the same, many times as fast
        return " ".join(text.casefold().translate(_breaks()).split()) or text.strip()
    return " ".join(_letters().findall(text.casefold())) or text.strip()


@cache
def _breaks() -> dict[int, str]:
    """Every ASCII character that is no letter, digit or underscore, as a blank."""
    return {code: " " for code in range(128) if not re.match(r"\w", chr(code))}


@cache
def _letters() -> re.Pattern[str]:
    """Runs of letters, digits and the marks on them: many scripts write their vowels as marks."""
    marks = (c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c)[0] == "M")
    return re.compile(f"[\\w{''.join(marks)}]+")
