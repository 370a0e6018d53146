"""Preference pairs: from the rows of a file, in any of the known shapes, to TRL's three columns."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.columns import Columns
from pipeline.data.conversations import (
    check_answer,
    check_prompt,
    is_blank,
    is_conversation,
    messages_of,
)
from pipeline.data.forms import NUMBERS, Forms
from pipeline.data.large import keep
from pipeline.data.rankings import is_ranking, pair_rows
from pipeline.data.records import Messages, Prompt, Row, number_of
from pipeline.data.shapes import (
    Found,
    as_messages,
    before_prompt,
    find_conversation,
    find_prompt,
    side,
    tell_columns,
)
from pipeline.data.sources import read_rows
from pipeline.data.stored import Kept, mapped
from pipeline.data.tally import Tally, tell
from pipeline.data.words import word_ends
from pipeline.errors import UserError

KEY = "data.preferences_name"

# The turns of a transcript that is one text: `Assistant:`, `<|im_start|>assistant`, `[/INST]`.
_TURN = r"(?:^|\n)[ \t]*#*[ \t]*{}[ \t]*:|<\|(?:im_start\|>|start_header_id\|>)?{}(?:\|>|\b)"
_NAMES = ("(?:assistant|ai|bot|gpt|response|answer)", "(?:human|user|question)")
_ASSISTANT = re.compile(_TURN.format(_NAMES[0], "assistant") + r"|\[/INST\]", re.IGNORECASE)
_HUMAN = re.compile(_TURN.format(_NAMES[1], "user") + r"|\[INST\]", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """A preference pair and where it stands."""

    place: str
    prompt: Prompt
    chosen: Prompt
    rejected: Prompt

    def columns(self) -> dict[str, Any]:
        """What TRL calls the three."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}


class _Unusable(Exception):
    """Why a pair is left out; the file is read on."""


def load_preferences(
    name: str, columns: Mapping[str, str] | None = None, split: str = "train"
) -> Sequence[dict[str, Any]]:
    """Read preference pairs: rows of ``prompt``, ``chosen`` and ``rejected``.

    All three are texts, or all three are messages. A file may hold other shapes (whole
    conversations or transcripts in ``chosen`` and ``rejected``, a text beside messages, Alpaca,
    ShareGPT, ms-swift): see :mod:`pipeline.data.shapes`. Pairs that teach nothing (an empty answer
    or prompt, the same answer twice) are left out, and one line says how many.

    Args:
        name: A local file or folder, or a hub id.
        columns: What the file calls the columns, as ``data.columns``.
        split: The split of a hub data set or a folder.

    Raises:
        UserError: It cannot be read, a row lacks a column or has one of another type, an answer
            is not the assistant's, or no pair is left.
    """
    return mapped(read_pairs(name, columns, split), Pair.columns)


def read_pairs(
    name: str, columns: Mapping[str, str] | None = None, split: str = "train"
) -> Sequence[Pair]:
    """:func:`load_preferences` with the place of each pair."""
    return pairs_of(read_rows(name, key=KEY, split=split), name, columns)


def pairs_of(
    rows: Iterable[Row], name: str, columns: Mapping[str, str] | None = None, key: str = KEY
) -> Sequence[Pair]:
    """:func:`read_pairs` of these rows; ``key`` is what named ``name``."""
    read = _Reading(name, key, Columns(columns))
    make = _Pairs(read.reader)
    return keep(rows, ["pairs", columns], make, lambda kept: read.all(rows, kept), NUMBERS)


class _Pairs:
    """Makes pairs of rows; an object, so that it can be sent to other processes."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    def __call__(self, row: Row, which: int) -> Pair:
        return self._reader.pair(pair_rows(row)[which] if is_ranking(row) else row)


class _Reading:
    """Reads the pairs of a data set from first to last."""

    def __init__(self, name: str, key: str, columns: Columns) -> None:
        self.reader = _Reader(columns)
        self._name, self._key = name, key
        self._tally, self._forms = Tally(name, "pairs"), Forms()
        self._columns: dict[Any, None] = {}
        self._first: dict[type, str] = {}  # the place of the first text, and of the first messages
        self._rankings = self._count = 0

    def all(self, rows: Iterable[Row], kept: Kept[Pair]) -> None:
        """Keep those that teach something, and tell what is left out."""
        for row in rows:
            self._row(row, kept)
        name, key = self._name, self._key
        if self._rankings:
            tell(f"{name}: {self._rankings:,} rankings make {self._count:,} pairs")
            if not self._count:
                raise UserError(
                    f"{key}: {name}: no ranking prefers an answer to another: rank some"
                )
        if not len(kept):
            hint = f"; the columns are {', '.join(map(repr, self._columns_of_first))}"
            if self.reader.without_prompt:
                hint += "; data.columns.prompt names the prompt's"
            raise UserError(
                f"{key}: {name}: none of the {self._count} pairs can be used "
                f"({self._tally.reasons()}){hint}"
            )
        self._check_one_kind()
        tell_columns(name, self._columns, self.reader.used, self.reader.notes)
        self._tally.tell(self._count)

    def _row(self, row: Row, kept: Kept[Pair]) -> None:
        ranked = is_ranking(row)
        self._rankings += ranked
        for which, one in enumerate(pair_rows(row) if ranked else [row]):
            if not self._count:
                self._columns_of_first = list(one.values)
            self._count += 1
            self._columns.update(dict.fromkeys(one.values))
            try:
                pair = self.reader.pair(one)
            except _Unusable as reason:
                self._tally.leave_out(str(reason), row.place)
                continue
            self._first.setdefault(type(pair.prompt), pair.place)
            form = self._forms.number(pair.prompt, pair.chosen)
            kept.add(pair, row, which, form=form, prompt=number_of(pair.prompt))

    _columns_of_first: Sequence[Any] = ()

    def _check_one_kind(self) -> None:
        """TRL takes texts or messages, and looks at the first row alone."""
        if len(self._first) < 2:
            return
        (kind, place), (_, other) = self._first.items()
        first = "text" if kind is str else "messages"
        raise UserError(f"{other}: not {first} as in {place}: use one kind in all pairs")


class _Reader:
    """Turns rows into pairs, and remembers which columns it read.

    Attributes:
        used: Columns that were read. notes: What was read from unusual ones, in words.
        without_prompt: Whether a row had no prompt that could be found.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.used: set[str] = set()
        self.notes: dict[str, None] = {}
        self.without_prompt = False

    def pair(self, row: Row) -> Pair:
        """The row as a pair.

        Raises:
            UserError: It is a mistake that the user must mend.
            _Unusable: It teaches nothing.
        """
        chosen, rejected, prompt = self._parts(row)
        sides = [side(row.place, found.column, found.value) for found in (chosen, rejected)]
        if any(is_blank(answer) for answer in sides):
            raise _Unusable("an answer is empty")
        if isinstance(sides[0], str) != isinstance(sides[1], str):
            raise UserError(
                f"{row.place}: {chosen.column} and {rejected.column} must both be text or messages"
            )
        asked = None if prompt is None else side(row.place, prompt.column, prompt.value)
        before, context = before_prompt(row, self.columns)
        self.used.update(context)
        if isinstance(sides[0], str) and isinstance(sides[1], str):
            question, answers = self._of_texts(row, asked, sides[0], sides[1], before)
        else:
            question, answers = self._of_messages(row, prompt, asked, sides)
        if any(is_blank(answer) for answer in answers):
            raise _Unusable("an answer is empty")
        if answers[0] == answers[1]:
            raise _Unusable("chosen and rejected are the same")
        if is_blank(question):
            raise _Unusable("the prompt is empty")
        if before or not isinstance(question, str) or not isinstance(answers[0], str):
            question = _in_front(row, before, as_messages(question, "user"))
            answers = [as_messages(answer, "assistant") for answer in answers]
            for found, answer in zip((chosen, rejected), answers, strict=True):
                check_answer(row.place, found.column, as_messages(answer, "assistant"))
            check_prompt(row.place, prompt.column if prompt else chosen.column, question)
        return Pair(row.place, question, answers[0], answers[1])

    def _parts(self, row: Row) -> tuple[Found, Found, Found | None]:
        """The columns of a row: chosen, rejected, and the prompt where it has one."""
        columns, values = self.columns, row.values
        prompt = find_prompt(row, columns)
        talk = None if prompt else find_conversation(row, columns)
        own = any(columns.gives(n) or n in values for n in ("chosen", "rejected"))
        if own or "rejected_response" not in values:
            parts = [
                Found(columns.value(row, ours), (columns.name(ours),))
                for ours in ("chosen", "rejected")
            ]
            # Some files repeat the whole conversation, answer included, beside chosen and rejected.
            whole = isinstance(parts[0].value, list) and len(parts[0].value) > 1
            prompt = prompt or (None if whole else talk)
        elif "response" in values or talk is None:
            parts = [Found(values.get(n), (n,)) for n in ("response", "rejected_response")]
        else:  # the chosen answer is the conversation's last message
            messages = messages_of(row.place, talk.column, talk.value)
            parts = [
                Found(messages[-1:], talk.columns),
                Found(values["rejected_response"], ("rejected_response",)),
            ]
            if isinstance(parts[1].value, str):
                answer = [{"role": "assistant", "content": parts[1].value}]
                parts[1] = Found(answer if parts[1].value else "", parts[1].columns)
            prompt = Found(messages[:-1], talk.columns)
        read = [*parts, *([prompt] if prompt else [])]
        self.used.update(name for found in read for name in found.columns)
        usual = (columns.name("prompt"), columns.name("chosen"), columns.name("rejected"))
        for what, found in zip(("chosen", "rejected", "prompt"), read, strict=False):
            if found.column not in usual:
                self.notes[f"{what} is read from {' and '.join(found.columns)}"] = None
        return parts[0], parts[1], prompt

    def _of_texts(
        self, row: Row, asked: Prompt | None, chosen: str, rejected: str, before: Messages
    ) -> tuple[Prompt, list[Prompt]]:
        """The prompt and the answers where the answers are texts."""
        if asked is not None:
            return asked, [chosen, rejected]
        cut = self._common_beginning(row, chosen, rejected)
        self.notes["the prompt is what chosen and rejected begin with"] = None
        return chosen[:cut], [chosen[cut:], rejected[cut:]]

    def _common_beginning(self, row: Row, chosen: str, rejected: str) -> int:
        """Where the answers of two texts begin: after the last common turn, or word."""
        if chosen == rejected:
            raise _Unusable("chosen and rejected are the same")
        common = len(os.path.commonprefix([chosen, rejected]))
        turns = [match.end() for match in _ASSISTANT.finditer(chosen, 0, common)]
        if turns:
            begin = turns[-1]
            asked = {match.group().strip() for match in _HUMAN.finditer(chosen, 0, begin)}
            for text in (chosen, rejected):
                if any(match.group().strip() in asked for match in _HUMAN.finditer(text, begin)):
                    raise _Unusable("an answer goes on with the human's turn")
            return begin
        # Without turns it may be chance that both begin alike, and the prompt stand elsewhere.
        others = [
            name
            for name, value in row.values.items()
            if name not in self.used
            and (is_conversation(value) or (isinstance(value, str) and len(value.split()) > 1))
        ]
        if others:
            raise self.columns.missing(row, "prompt")
        ends = set(word_ends(chosen)) & set(word_ends(rejected))
        cut = max((end for end in ends if end <= common), default=0)
        if not cut:
            self.without_prompt = True
            raise _Unusable("no prompt: chosen and rejected do not begin alike")
        return cut

    def _of_messages(
        self, row: Row, prompt: Found | None, asked: Prompt | None, sides: list[Prompt]
    ) -> tuple[Prompt, list[Prompt]]:
        """The prompt and the answers where the answers are messages, maybe whole conversations."""
        chosen, rejected = (as_messages(answer, "assistant") for answer in sides)
        common = 0
        while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
            common += 1
        if chosen == rejected:
            raise _Unusable("chosen and rejected are the same")
        answers: list[Prompt] = [chosen[common:], rejected[common:]]
        shared = chosen[:common]
        if asked is None:
            if not shared:
                self.without_prompt = True
                raise _Unusable("no prompt: chosen and rejected do not begin alike")
            self.notes["the prompt is what chosen and rejected begin with"] = None
            return shared, answers
        assert prompt is not None
        if not any(message["role"] == "user" for message in shared):
            return asked, list(sides)
        if isinstance(asked, list) and shared[: len(asked)] == asked:
            return shared, answers
        ask = asked if isinstance(asked, str) else asked[-1]["content"]
        if not any(ask.strip() in message["content"] for message in shared):
            raise UserError(
                f"{row.place}: column {prompt.column!r} is not in the conversation that chosen and "
                "rejected hold: correct it, or name another column in data.columns.prompt"
            )
        return shared, answers


def _in_front(row: Row, before: Messages, prompt: Messages) -> Messages:
    """The prompt with what the row says before it; a system message that it has counts once."""
    if before[:1] == prompt[:1]:
        return before + prompt[1:] if len(before) == 1 else prompt
    if before and prompt and "system" == before[0]["role"] == prompt[0]["role"]:
        raise UserError(f"{row.place}: two different system messages: keep one of them")
    return before + prompt
