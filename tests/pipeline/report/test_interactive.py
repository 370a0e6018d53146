"""What the page's script is given: points and answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.report import interactive
from pipeline.report.outputs import Outputs
from tests.pipeline.report import many


def outputs(**parts: Any) -> Outputs:
    return Outputs(results=many.results(), details=many.details(), **parts)


def test_points_say_what_is_known_of_each_policy() -> None:
    points = interactive.points(many.results())
    assert [p["title"] for p in points] == [row[1] for row in many.ROWS]
    assert [p["colour"] for p in points] == [f"c{i}" for i in range(len(many.ROWS))]
    facts = {p["title"]: dict(p["facts"]) for p in points}
    assert facts["PPO"] == {
        "reward": "4.00", "judge": "3.15", "KL": "1.05 nats",
        "optimality": "79\u00a0% [73 to 85\u00a0%]", "rewards asked for": "32,768",
    }  # fmt: skip
    assert facts["Other family"]["KL"] == "not known" and "optimality" not in facts["Other family"]
    assert facts["Best-of-N"]["KL"] == "at most 1.20 nats"
    assert facts["Best-of-N"]["optimality"].startswith("at least 80")
    assert "optimality" not in facts["SFT"]


def test_answers_are_those_of_every_sample_where_they_are_there() -> None:
    found = interactive.explorer(outputs(answers=many.answers(30), samples=many.samples(2)))
    assert found is not None and len(found["answers"]) == 30
    prompt, policy, text, reward, gold, kl = found["answers"][0]
    assert found["prompts"][prompt] == "the film 0 is" and found["policies"][policy] == [
        "SFT",
        "c0",
    ]
    assert text == many.NASTY and kl is None and isinstance(reward, float) and gold is not None
    first = interactive.explorer(outputs(samples=many.samples(2)))
    assert first is not None and len(first["answers"]) == 2 * len(many.ROWS)
    assert interactive.explorer(outputs()) is None


def test_no_more_answers_than_a_page_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive, "LIMIT", 5)
    found = interactive.explorer(outputs(answers=many.answers(30)))
    assert found is not None and len(found["answers"]) == 5


def test_examples_keep_their_kind_and_subject() -> None:
    found = interactive.explorer(outputs(examples=many.examples()))
    assert found is not None
    assert [kind for kind, _ in found["kinds"]] == list(interactive.KINDS)
    subjects = {row[1]: row[2] for row in found["examples"]}
    assert subjects["disagreement"] == -1 and subjects["improved"] == 1
    assert [answer[0] for answer in found["examples"][0][3]] == [0, 1, 2]
    assert found["examples"][0][3][2][4] is None, "the KL that was not measured"


def test_what_utf_8_cannot_hold_is_replaced_and_messages_are_lines() -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "hi"}], "policy": "ppo", "text": "a\ud800b"},
        {"prompt": "x", "policy": "unknown", "text": "y"},
    ]
    found = interactive.explorer(outputs(answers=rows))
    assert found is not None and len(found["answers"]) == 1
    assert found["answers"][0][2] == "a?b" and found["prompts"] == ["user: hi"]
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8")
