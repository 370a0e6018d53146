"""Preference files in the shapes that people have them: the right pair, or one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import load_preferences
from pipeline.data.tally import listening
from pipeline.errors import UserError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
TALK = {
    "prompt": [user("Why?")],
    "chosen": [assistant("So.")],
    "rejected": [assistant("No.")],
}
TEXT = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
WITH_SYSTEM = {**TALK, "prompt": [SYSTEM, user("Why?")]}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_preferences(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "texts": (TEXT, TEXT),
    "messages": (TALK, TALK),
    "UltraFeedback": (
        {
            "prompt": "Why?",
            "prompt_id": "ab12",
            "chosen": [user("Why?"), assistant("So.")],
            "rejected": [user("Why?"), assistant("No.")],
            "score_chosen": 8.5,
        },
        TALK,
    ),
    "UltraFeedback with a system message": (
        {
            "prompt": "Why?",
            "chosen": [SYSTEM, user("Why?"), assistant("So.")],
            "rejected": [SYSTEM, user("Why?"), assistant("No.")],
        },
        WITH_SYSTEM,
    ),
    "a text prompt beside answers as messages": (
        {"prompt": "Why?", "chosen": [assistant("So.")], "rejected": [assistant("No.")]},
        TALK,
    ),
    "a prompt as messages beside answers as texts": ({**TEXT, "prompt": [user("Why?")]}, TALK),
    "whole conversations": (
        {
            "chosen": [user("Why?"), assistant("So.")],
            "rejected": [user("Why?"), assistant("No.")],
        },
        TALK,
    ),
    "the prompt as messages and again in the answers": (
        {
            "prompt": [user("Why?")],
            "chosen": [user("Why?"), assistant("So.")],
            "rejected": [user("Why?"), assistant("No.")],
        },
        TALK,
    ),
    "the whole conversation again in messages": (
        {
            "messages": [user("Why?"), assistant("So.")],
            "chosen": [user("Why?"), assistant("So.")],
            "rejected": [user("Why?"), assistant("No.")],
        },
        TALK,
    ),
    "a system column beside texts": ({**TEXT, "system": "Be kind."}, WITH_SYSTEM),
    "a blank system column": ({**TEXT, "system": " "}, TEXT),
    "a system column beside messages": ({**TALK, "system": "Be kind."}, WITH_SYSTEM),
    "the system message in both": ({**WITH_SYSTEM, "system": "Be kind."}, WITH_SYSTEM),
    "history": (
        {**TEXT, "history": [["Who?", "I."]]},
        {**TALK, "prompt": [user("Who?"), assistant("I."), user("Why?")]},
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "1 and 2", "chosen": "3", "rejected": "4"},
        {"prompt": "Add.\n1 and 2", "chosen": "3", "rejected": "4"},
    ),
    "Alpaca without input": (
        {"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No."},
        TEXT,
    ),
    "ShareGPT's turns, answers as single messages": (
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "So."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        TALK,
    ),
    "ms-swift": ({"query": "Why?", "response": "So.", "rejected_response": "No."}, TEXT),
    "ms-swift with messages": (
        {"messages": [user("Why?"), assistant("So.")], "rejected_response": "No."},
        TALK,
    ),
    "a list of objects kept as an object of lists": (
        {**TALK, "prompt": {"role": ["user"], "content": ["Why?"]}},
        TALK,
    ),
    "content in parts": (
        {**TALK, "prompt": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
        TALK,
    ),
    "a transcript": (
        {
            "chosen": "\n\nHuman: Why?\n\nAssistant: Well, so.",
            "rejected": "\n\nHuman: Why?\n\nAssistant: Well, no.",
        },
        {
            "prompt": "\n\nHuman: Why?\n\nAssistant:",
            "chosen": " Well, so.",
            "rejected": " Well, no.",
        },
    ),
    "a transcript of several turns": (
        {
            "chosen": "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant: D.",
            "rejected": "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant: Dear me.",
        },
        {
            "prompt": "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant:",
            "chosen": " D.",
            "rejected": " Dear me.",
        },
    ),
    "a chat template's text": (
        {
            "chosen": "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nSo.",
            "rejected": "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nSome.",
        },
        {
            "prompt": "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant",
            "chosen": "\nSo.",
            "rejected": "\nSome.",
        },
    ),
    "texts that begin alike: words are not cut": (
        {"chosen": "The film was good", "rejected": "The film was great"},
        {"prompt": "The film was", "chosen": " good", "rejected": " great"},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, tmp_path: Path) -> None:
    row, expected = SHAPES[shape]
    assert load_preferences(write(tmp_path / "pairs.jsonl", [row])) == [expected]


def test_columns_of_other_names(tmp_path: Path) -> None:
    name = write(tmp_path / "pairs.jsonl", [{"q": "Why?", "good": "So.", "bad": "No."}])
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert load_preferences(name, columns) == [TEXT]
    message = refusal(name, columns={**columns, "prompt": "question"})
    assert "line 1: no column 'question'; there are 'q', 'good', 'bad'" in message
    assert "data.columns.prompt names it" in message
    assert "no column 'chosen'" in refusal(name) and "data.columns.chosen" in refusal(name)


def test_a_named_column_wins_over_one_of_the_usual_name(tmp_path: Path) -> None:
    row = {**TEXT, "prompt": "an id", "q": "Why?"}
    name = write(tmp_path / "pairs.jsonl", [row])
    with listening() as lines:
        assert load_preferences(name, {"prompt": "q"}) == [TEXT]
    assert lines == [f"{name}: columns not read: prompt"]


def test_a_prompt_under_an_unknown_name_does_not_vanish(tmp_path: Path) -> None:
    row = {"ask": "Why is it so?", "chosen": "The answer is A", "rejected": "The answer is B"}
    message = refusal(write(tmp_path / "pairs.jsonl", [row]))
    assert "line 1: no column 'prompt'" in message and "data.columns.prompt" in message
    # Nor where nothing is in common.
    row = {"ask": "Why?", "chosen": "So.", "rejected": "No."}
    message = refusal(write(tmp_path / "others.jsonl", [row]))
    assert "do not begin alike" in message and "data.columns.prompt" in message


def test_unread_columns_and_unusual_ones_are_told(tmp_path: Path) -> None:
    row = {"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No.", "score": 1}
    name = write(tmp_path / "pairs.jsonl", [row])
    with listening() as lines:
        load_preferences(name)
    assert lines == [f"{name}: prompt is read from instruction and input; columns not read: score"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**TEXT, "rejected": ""}, "an answer is empty"),
        ({**TEXT, "chosen": " \n"}, "an answer is empty"),
        ({**TALK, "rejected": [assistant(" ")]}, "an answer is empty"),
        ({**TALK, "chosen": []}, "an answer is empty"),
        ({**TEXT, "rejected": "So."}, "chosen and rejected are the same"),
        ({**TALK, "rejected": TALK["chosen"]}, "chosen and rejected are the same"),
        ({**TEXT, "prompt": ""}, "the prompt is empty"),
        (
            {"chosen": "\n\nHuman: A?\n\nAssistant:", "rejected": "\n\nHuman: A?\n\nAssistant: B"},
            "an answer is empty",
        ),
        (
            {
                "chosen": "\n\nHuman: A?\n\nAssistant: B\n\nHuman: C?\n\nAssistant: D",
                "rejected": "\n\nHuman: A?\n\nAssistant: E\n\nHuman: C?\n\nAssistant: D",
            },
            "an answer goes on with the human's turn",
        ),
    ],
)
def test_pairs_that_teach_nothing_are_counted(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    good = TALK if isinstance(row["chosen"], list) else TEXT
    name = write(tmp_path / "pairs.jsonl", [good, row, good, row])
    with listening() as lines:
        assert load_preferences(name) == [good, good]
    told = f"{name}: 2 of 4 pairs left out: {reason} (2; first: {name}, line 2)"
    assert told in lines
    message = refusal(write(tmp_path / "bad.jsonl", [row, row]))
    assert "none of the 2 pairs" in message and reason in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rejected": [user("No.")]}, "column 'rejected': an answer must come from the role"),
        ({"chosen": [SYSTEM, assistant("So.")]}, "column 'chosen': an answer must come from"),
        ({"chosen": [assistant("So."), user("Eh?")]}, "column 'chosen': an answer must come"),
        ({"prompt": [user("a"), assistant("b")]}, "'prompt': a prompt must not end with the"),
        ({"prompt": [SYSTEM]}, "'prompt': a prompt needs a message of the role user"),
        ({"prompt": [{"role": "robot", "content": "a"}]}, "'prompt': unknown role 'robot'"),
        ({"rejected": None}, "column 'rejected' is empty"),
        ({"system": [user("Be kind.")]}, "column 'system': expected the role system, found 'user'"),
        ({"system": "Be rude.", "prompt": WITH_SYSTEM["prompt"]}, "two different system messages"),
        ({"history": "before"}, "column 'history' must be a list of [question, answer]"),
        ({"prompt": "Who?", "chosen": [user("Why?"), assistant("So.")],
          "rejected": [user("Why?"), assistant("No.")]}, "column 'prompt' is not in the conv"),
    ],
)  # fmt: skip
def test_mistakes_name_the_row_and_the_column(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    name = write(tmp_path / "pairs.jsonl", [TALK, {**TALK, **change}])
    message = refusal(name)
    assert message.startswith(f"{name}, line 2: ") and expected in message


def test_texts_and_messages_in_one_file(tmp_path: Path) -> None:
    name = write(tmp_path / "pairs.jsonl", [TEXT, TALK])
    assert (
        refusal(name) == f"{name}, line 2: not text as in {name}, line 1: use one kind in all pairs"
    )
