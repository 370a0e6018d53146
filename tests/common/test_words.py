"""Values as people and JSON read them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from common.parser import Parser
from common.words import clock, first_line, json_able, stopwatch
from common.yamlfile import parse_override, read_yaml


def test_clock() -> None:
    times = (0.4, 3.2, 59.4, 59.6, 185, 3600, 7620)
    shown = ["0 s", "3 s", "59 s", "1 min 00 s", "3 min 05 s", "1 h 00 min", "2 h 07 min"]
    assert [clock(seconds) for seconds in times] == shown
    assert [stopwatch(seconds) for seconds in (59.6, 3725)] == ["1:00", "1:02:05"]


def test_json_has_no_nan() -> None:
    value = {"a": [float("nan"), 1.0, {"b": math.inf}], 3: (np.int64(2), np.array([1.5, np.nan]))}
    value["tensor"] = torch.tensor([[1.0], [float("-inf")]])
    value["path"] = Path("runs") / "x"
    plain = json_able(value)
    assert plain == {
        "a": [None, 1.0, {"b": None}],
        "3": [2, [1.5, None]],
        "tensor": [[1.0], [None]],
        "path": str(Path("runs") / "x"),
    }
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_first_line() -> None:
    assert first_line(ValueError(" one\ntwo")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_override_words() -> None:
    assert parse_override("a=b=c", KeyError) == ("a", "b=c")
    assert parse_override("a=", KeyError) == ("a", None)
    # YAML 1.2, as people write it: a number, a word, and no date.
    assert parse_override("x.y=1e-3", KeyError) == ("x.y", 0.001)
    assert parse_override("x=no", KeyError) == ("x", "no")
    assert parse_override("x=2026-01-01", KeyError) == ("x", "2026-01-01")
    for wrong in ("a", "=1", "a..b=1", "a=[1"):
        with pytest.raises(KeyError, match="override"):
            parse_override(wrong, KeyError)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: 1\na: 2\n", ":2:1: the key 'a' is there twice"), ("", "empty"), ("- 1\n", "list")],
)
def test_a_file_that_is_no_mapping_has_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(LookupError) as error:
        read_yaml(path, LookupError)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_in_the_words_is_what_the_caller_names() -> None:
    with pytest.raises(LookupError, match="`prog --help` shows how"):
        Parser(prog="prog", raises=LookupError).parse_args(["--unknown"])
