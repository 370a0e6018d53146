"""Rated texts of rows, and which of them are suitable: of the asked length, each once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipeline.config import DataSection
from pipeline.data.columns import Columns
from pipeline.data.records import RatedText, Row
from pipeline.data.stored import Seen
from pipeline.data.tally import Tally, tell
from pipeline.data.words import Unit, same_but_for_form
from pipeline.errors import UserError

_BREAK = re.compile(r"(?:\s*<br\s*/?>\s*)+", re.IGNORECASE)


def rated_text(
    row: Row, names: Columns, section: DataSection, rows: Iterable[Row] | None
) -> RatedText:
    """The text of a row, with its rating; that is 0 where no classifier is trained on it.

    Args:
        rows: All rows, for an error's words; None where no rating is read.
    """
    text = names.text(row, "text")
    rating = 0.0
    if rows is not None:
        rating = names.number(row, "label", section.label_values, rows)
    if "<" in text:
        text = _BREAK.sub(" ", text)
    return RatedText(text.strip(), rating)


class Suitable:
    """Chooses texts of the asked length, each once (case, spacing and punctuation aside)."""

    def __init__(self, section: DataSection, unit: Unit) -> None:
        # A prompt of a whole text would leave nothing to complete.
        self._fewest = max(section.min_words, section.prompt_words + 1)
        self._section, self._unit = section, unit
        self._tally, self._seen = Tally(section.dataset_name, "texts"), Seen()
        self._looked = self._kept = self._cut = 0

    def of(self, text: RatedText) -> RatedText | None:
        """The text, or its beginning; None where it is left out."""
        section, unit = self._section, self._unit
        self._looked += 1
        made, count = fitting(text, section, unit)
        if made is None:
            least = f"below data.min_words ({self._fewest} {unit.name})"
            most = f"above data.max_words ({section.max_words} {unit.name}; "
            most += "data.long_texts=cut cuts them)"
            self._tally.leave_out(least if count < self._fewest else most)
            return None
        self._cut += made is not text
        if self._seen.place(same_but_for_form(made.text), self._kept) < self._kept:
            self._tally.leave_out("there already")
            return None
        self._kept += 1
        return made

    def tell(self) -> str:
        """Tell what was left out or cut; which texts are kept, in words.

        Raises:
            UserError: None is.
        """
        section, unit, tally = self._section, self._unit, self._tally
        if not self._kept:
            raise UserError(
                f"data.dataset_name: none of the {self._looked} texts of {section.dataset_name} "
                f"has {self._fewest} to {section.max_words} {unit.name}: change data.min_words or "
                f"data.max_words ({tally.reasons()})"
            )
        tally.tell(self._looked)
        if self._cut:
            limit = f"data.max_words ({section.max_words} {unit.name})"
            name = section.dataset_name
            tell(f"{name}: {self._cut:,} of {self._looked:,} texts cut at {limit}")
        which = f"texts of {section.min_words} to {section.max_words} {unit.name}"
        return which + (f" (left out {tally.reasons()})" if tally.left_out else "")


def fitting(text: RatedText, section: DataSection, unit: Unit) -> tuple[RatedText | None, int]:
    """The text or its beginning, None where neither has the asked length; and its length."""
    count = unit.count(text.text)
    if count > section.max_words and section.long_texts == "cut":
        return replace(text, text=unit.first(text.text, section.max_words)), count
    fewest = max(section.min_words, section.prompt_words + 1)
    return (None if count < fewest or count > section.max_words else text), count


class TextsAgain:
    """Makes rated texts of rows; an object, so that it can be sent to other processes."""

    def __init__(self, section: DataSection, unit: Unit, rated: bool) -> None:
        self._section, self._unit, self._rated = section, unit, rated
        self._names = Columns(section.column_names())

    def __call__(self, row: Row, which: int = 0) -> RatedText:
        made, _ = fitting(self.text(row, [row]), self._section, self._unit)
        assert made is not None  # as it was when it was kept
        return made

    def text(self, row: Row, rows: Iterable[Row]) -> RatedText:
        """The whole text of a row; see :func:`rated_text`."""
        return rated_text(row, self._names, self._section, rows if self._rated else None)

    def settings(self, tokenizer: Any) -> list[Any]:
        """What decides which texts are kept; a ``tokenizer`` where it counts them."""
        section = self._section
        counted = section.min_words, section.max_words, section.prompt_words, section.long_texts
        names = section.column_names(), section.label_values
        return ["texts", self._rated, counted, names, section.dataset_name, tokenizer]
