"""Demonstrations with a prompt set apart, and the prompts that come of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Experiment
from pipeline.data import load_data
from pipeline.data.prompts import as_prompts, read_prompts
from pipeline.data.records import Demonstration
from pipeline.data.tally import listening
from pipeline.errors import UserError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def turns(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]


TALK = Demonstration([user("Why?")], [assistant("So.")])
TEXT = Demonstration("Why?", "So.")
LONGER = Demonstration([user("Who?"), assistant("I."), user("Why?")], [assistant("So.")])
SHAPES: dict[str, tuple[dict[str, Any], Demonstration]] = {
    "prompt and completion": ({"prompt": "Why?", "completion": "So."}, TEXT),
    "the same as messages": (
        {"prompt": [user("Why?")], "completion": [assistant("So.")]},
        TALK,
    ),
    "messages": ({"messages": [user("Why?"), assistant("So.")]}, TALK),
    "ShareGPT": ({"conversations": turns("Why?", "So.")}, TALK),
    "several turns": ({"conversations": turns("Who?", "I.", "Why?", "So.")}, LONGER),
    "Alpaca": ({"instruction": "Why?", "input": "", "output": "So."}, TEXT),
    "history": (
        {"query": "Why?", "response": "So.", "history": [["Who?", "I."]]},
        LONGER,
    ),
    "messages in the text column": ({"text": [user("Why?"), assistant("So.")]}, TALK),
}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def experiment(path: Path, reward: str = "mine.py:score", **data: Any) -> Experiment:
    counts = {"demonstrations": 1, "heldout": 1, "train_prompts": 1, "eval_prompts": 1}
    tree = {"data": {"dataset_name": str(path), **counts, **data}, "reward": {"source": reward}}
    return Experiment.model_validate(tree)


def others(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row, and three with another question."""
    text = json.dumps(row)
    return [row, *(json.loads(text.replace("Why?", f"Why {n}?")) for n in range(3))]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, tmp_path: Path) -> None:
    row, expected = SHAPES[shape]
    path = write(tmp_path / "rows.jsonl", others(row))
    data = load_data(experiment(path, demonstrations=2))
    found = [*data.demonstrations, *data.heldout]
    assert all(isinstance(item, Demonstration) for item in found)
    everything = [json.dumps(vars(item)) for item in found]  # type: ignore[arg-type]
    everything += [json.dumps({"prompt": p, "completion": None}) for p in data.eval_prompts]
    asked = [json.loads(item)["prompt"] for item in everything]
    assert len(asked) == 4 and expected.prompt in asked
    assert json.dumps(vars(expected)) in everything or expected.prompt in data.eval_prompts
    # Training's prompts are the demonstrations', and none is an evaluation prompt.
    assert data.train_prompts[0] in [item.prompt for item in data.demonstrations]  # type: ignore
    assert data.train_prompts[0] not in data.eval_prompts


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"ask": f"Why {n}?", "say": "So."} for n in range(3)]
    path = write(tmp_path / "rows.jsonl", rows)
    columns = {"prompt": "ask", "completion": "say"}
    data = load_data(experiment(path, columns=columns))
    assert data.demonstrations[0].completion == "So."  # type: ignore[union-attr]
    with pytest.raises(UserError, match="line 1: no column 'text'; there are 'ask', 'say'"):
        load_data(experiment(path))


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    good = others({"conversations": turns("Why?", "So.")})
    bad = [{"conversations": turns("Why?", "So.", "And?")}, {"conversations": turns("Why?", " ")}]
    path = write(tmp_path / "rows.jsonl", [*good, *bad, good[0]])
    with listening() as lines:
        load_data(experiment(path))
    assert lines == [
        f"{path}: 3 of 7 demonstrations left out: it does not end with the assistant's answer to "
        f"somebody (1: {path}, line 5), the prompt or the answer is empty (1: {path}, line 6), "
        f"there already (1: {path}, line 7)"
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Why?", "completion": None}, "column 'completion' is empty"),
        ({"prompt": "Why?"}, "no column 'completion'"),
        ({"prompt": 3, "completion": "So."}, "column 'prompt' must be text or a list of messages"),
        ({"prompt": [user("Why?")], "completion": "So."}, "messages, not texts as before"),
        (
            {"prompt": [user("Why?")], "completion": [user("So.")]},
            "column 'completion': an answer must come from the role assistant",
        ),
    ],
)
def test_mistakes_name_the_row(row: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "Who?", "completion": "I."}, row])
    with pytest.raises(UserError) as caught:
        load_data(experiment(path))
    assert str(caught.value).startswith(f"{path}, line 2: ") and expected in str(caught.value)


def test_the_classifier_does_not_learn_from_them(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", others({"prompt": "Why?", "completion": "So."}))
    with pytest.raises(UserError, match="line 1: holds a prompt with its answer.*reward.source"):
        load_data(experiment(path, reward="sentiment"))
    assert load_data(experiment(path, reward="sentiment"), labels=False).proxy == []


# --- Prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Why?"}, "Why?"),
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, "Add.\n1 and 2"),
        ({"conversations": turns("Why?", "So.")}, [user("Why?")]),
        ({"messages": [user("Why?")]}, [user("Why?")]),
        (
            {"prompt": "Why?", "system": "Be kind."},
            [{"role": "system", "content": "Be kind."}, user("Why?")],
        ),
    ],
)
def test_prompts_in_every_shape(row: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", [row, row])
    with listening() as lines:
        assert read_prompts(str(path)) == [expected]
    assert f"{path}: 1 of 2 prompts left out: there already (1: {path}, line 2)" in lines


def test_prompts_of_a_script() -> None:
    from datasets import Dataset

    talk = [user("Why?")]
    assert as_prompts(["Why?", talk]) == ["Why?", talk]
    assert as_prompts(Dataset.from_dict({"prompt": ["Why?"], "id": [1]})) == ["Why?"]
    assert as_prompts(Dataset.from_dict({"prompt": [talk]})) == [talk]
    with pytest.raises(UserError, match="prompt 1: no column 'prompt'; there are 'input_ids'"):
        as_prompts(Dataset.from_dict({"input_ids": [[1, 2]]}))
    with pytest.raises(UserError, match="prompt 2: is empty"):
        as_prompts(["Why?", " "])
    with pytest.raises(UserError, match="prompt 1: .* must be text or a list of messages"):
        as_prompts([3])
