"""Pairs in, the same pairs labelled: a file of rows that ``data.preferences_name`` reads.

Whole batches are written to ``FILE.part`` as they are done, behind a first line that says what is
being done, so a killed run goes on behind them; ``FILE`` appears at the end and whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import write_text
from pipeline.data.preferences import Pair, pairs_of
from pipeline.data.records import Prompt, Row, shown
from pipeline.data.sources import read_rows
from pipeline.errors import UserError
from pipeline.output.terminal import Meter
from reward_models.interface import ChatPrompt

_VERDICT = "verdict"
"""What FILE.part holds of a pair beside its row: for the summary of a run that was resumed."""


@dataclass(frozen=True)
class Label:
    """What is said of a pair.

    Attributes:
        probability: That the first answer is better.
        columns: Of both answers, for the row: ``{"reward": (1.0, 2.0)}``.
        verdict: More of it, for the summary.
    """

    probability: float
    columns: dict[str, tuple[float, float]]
    verdict: dict[str, float]


Labeller = Callable[[list[str], list[str], list[str]], list[Label]]
"""``labeller(prompts, first, second)``."""


@dataclass(frozen=True)
class Labelled:
    """A finished file.

    Attributes:
        probabilities: That the answer that came first in the input is better, a pair.
        verdicts: As the labels had them.
    """

    probabilities: list[float]
    verdicts: list[dict[str, float]]


def read_unlabelled(name: str, key: str) -> tuple[Sequence[Pair], bool]:
    """Pairs of a file, and whether it labels them itself.

    Rows are ``prompt`` and ``completions``, a list of two; or preference pairs in any shape that
    ``data.preferences_name`` reads, whose ``chosen`` then counts as the first answer.

    Raises:
        UserError: The file or a row cannot be read, or nothing is left.
    """
    rows = list(read_rows(name, key=key))
    own = "completions" not in rows[0].values
    if not own:
        rows = [_as_pair(row) for row in rows]
    return pairs_of(rows, name, key=key), own


def _as_pair(row: Row) -> Row:
    answers = row.values.get("completions")
    if not isinstance(answers, list) or len(answers) != 2:
        raise UserError(
            f"{row.place}: completions is {shown(answers)}; give a list of two answers in each row"
        )
    rest = {name: value for name, value in row.values.items() if name != "completions"}
    return Row(row.place, rest | {"chosen": answers[0], "rejected": answers[1]})


def part_of(output: Path) -> Path:
    """Where batches are written until ``output`` is whole."""
    return output.with_name(f"{output.name}.part")


def label_file(
    pairs: Sequence[Pair],
    labeller: Labeller,
    output: Path,
    *,
    described: dict[str, Any],
    batch_size: int,
    sampled: bool,
    seed: int,
) -> Labelled:
    """Label ``pairs`` and write ``output``; goes on from what an earlier run has written.

    Args:
        described: What decides the labels beside the pairs; a part of another run is refused.
        batch_size: Pairs labelled at once.
        sampled: Draw who is chosen by the probability, instead of taking the likelier.
        seed: For these draws, and for answers of equal probability.

    Raises:
        UserError: ``output`` is there already, or its part is another run's.
    """
    if output.exists():
        raise UserError(f"--output: {output} is there already; remove it, or name another file")
    part = part_of(output)
    settings = {"batch_size": batch_size, "sampled": sampled, "seed": seed}
    rows = _begun(part, described | settings | {"pairs": _digest(pairs)}, batch_size)
    meter = Meter("label", len(pairs), done=len(rows))
    try:
        with part.open("ab") as stream:
            for start in range(len(rows), len(pairs), batch_size):
                batch = pairs[start : start + batch_size]
                made = _rows(batch, labeller, start, sampled, seed)
                stream.write("".join(_line(row) for row in made).encode())
                stream.flush()
                os.fsync(stream.fileno())
                rows += made
                meter.update(len(batch))
    finally:
        meter.close()
    verdicts = [row.pop(_VERDICT) for row in rows]
    write_text(output, "".join(_line(row) for row in rows))
    part.unlink()
    return Labelled([verdict.pop("first") for verdict in verdicts], verdicts)


def _rows(
    pairs: Sequence[Pair], labeller: Labeller, start: int, sampled: bool, seed: int
) -> list[dict[str, Any]]:
    labels = labeller(
        [_prompt_text(pair.prompt) for pair in pairs],
        [_answer_text(pair.chosen) for pair in pairs],
        [_answer_text(pair.rejected) for pair in pairs],
    )
    rows = []
    for index, (pair, label) in enumerate(zip(pairs, labels, strict=True), start=start):
        first = label.probability
        # A number of each pair's own, so that it does not matter where a run was interrupted.
        draw = random.Random(f"{seed}/{index}").random()
        wins = draw < first if sampled or first == 0.5 else first > 0.5
        answers = (pair.chosen, pair.rejected) if wins else (pair.rejected, pair.chosen)
        columns = {
            f"{side}_{name}": value
            for name, values in label.columns.items()
            for side, value in zip(
                ("chosen", "rejected"), values if wins else values[::-1], strict=True
            )
        }
        rows.append(
            {"prompt": pair.prompt, "chosen": answers[0], "rejected": answers[1]}
            | columns
            | {"probability": first if wins else 1.0 - first}
            | {_VERDICT: label.verdict | {"first": first}}
        )
    return rows


def _begun(part: Path, described: dict[str, Any], batch_size: int) -> list[dict[str, Any]]:
    """The rows that an earlier run has written, in whole batches; ``part`` ends behind them.

    Raises:
        UserError: They are of other pairs, or of another judge.
    """
    head = _line(described).encode()
    lines = part.read_bytes().split(b"\n") if part.is_file() else []
    if len(lines) < 2:  # nothing, or not even a whole first line
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(head)
        return []
    if lines[0] + b"\n" != head:
        before = json.loads(lines[0])
        changed = next(key for key in described if before.get(key) != described[key])
        raise UserError(
            f"--output: {part} was begun with another {changed.replace('_', ' ')}; run the same "
            "command again, or remove it"
        )
    whole = lines[1:-1]  # the last one has no end yet
    whole = whole[: len(whole) // batch_size * batch_size]
    os.truncate(part, len(head) + sum(len(line) + 1 for line in whole))
    return [json.loads(line) for line in whole]


def _digest(pairs: Sequence[Pair]) -> str:
    lines = (_line({"pair": [pair.prompt, pair.chosen, pair.rejected]}) for pair in pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"  # escapes, whatever the texts hold


def _prompt_text(prompt: Prompt) -> str:
    """A prompt as a reward takes it: a conversation as lines, which knows its messages."""
    if isinstance(prompt, str):
        return prompt
    lines = (f"{message['role']}: {message['content']}" for message in prompt)
    return ChatPrompt("\n".join(lines), prompt)


def _answer_text(answer: Prompt) -> str:
    return answer if isinstance(answer, str) else "\n".join(m["content"] for m in answer)


def verdict_of(value: Any) -> dict[str, float]:
    """A dataclass of numbers as `Label.verdict`."""
    return dict(asdict(value))
