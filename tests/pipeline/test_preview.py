"""`rlhf data` shows what was read, what was left out, and examples with special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main

END = "<eos>"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def shown(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs `rlhf data` with overrides; its exit code, and the lines on stdout and stderr."""

    def shown(*overrides: str) -> tuple[int, list[str], str]:
        code = main(["data", "--config", str(tiny), f"output_dir={tmp_path / 'out'}", *overrides])
        captured = capsys.readouterr()
        assert not (tmp_path / "out").exists()
        return code, captured.out.splitlines(), captured.err

    return shown


def test_texts_prompts_and_pairs(shown, tmp_path: Path) -> None:
    texts = [{"text": f"the film {n} is warm and the plot of it is clever", "label": n % 2 * 2 - 1}
             for n in range(90)]  # fmt: skip
    texts += [{"text": "the film", "label": 1, "id": 7}]
    user = {"role": "user", "content": "the plot"}
    prompts = [{"prompt": [user]}, {"prompt": "the film is"}, {"prompt": "the cast is"}]
    pairs = [{"prompt": "the film is", "chosen": " warm", "rejected": r} for r in (" dull", "")]
    files = {"dataset_name": texts, "prompts_name": prompts, "preferences_name": pairs}
    named = {key: write(tmp_path / f"{key}.jsonl", rows) for key, rows in files.items()}
    counts = ("demonstrations=40", "heldout=5", "train_prompts=2", "eval_prompts=1")
    code, lines, _ = shown(
        *(f"data.{key}={path}" for key, path in named.items()), *(f"data.{c}" for c in counts)
    )
    assert code == 0
    assert f"data.dataset_name: {named['dataset_name']}" in lines
    assert "  91 rows; columns: text, label, id (1 filled)" in lines
    left = "1 of 91 texts left out: below data.min_words (8 words) (1)"
    assert f"  {named['dataset_name']}: {left}" in lines
    parts = "2 training prompts, 0 validation prompts, 1 evaluation prompts"
    assert f"  40 demonstrations, 5 held out, {parts}" in lines
    example = lines[lines.index("  demonstrations, example 1") + 1]
    assert example.startswith("    the film") and example.endswith(f"clever{END}")
    assert lines.count("    <|user|>the plot<|assistant|>▶") + lines.count("    the film is▶") >= 1
    at = lines.index("  pairs, example 1")
    assert lines[at + 1 :] == [
        "    prompt   the film is", f"    chosen   ▶ warm{END}", f"    rejected ▶ dull{END}"
    ]  # fmt: skip
    assert "  1 pairs" in lines
    name = named["preferences_name"]
    assert f"  {name}: 1 of 2 pairs left out: an answer is empty (1: {name}, line 2)" in lines


def test_conversations_show_where_the_answer_begins(shown, tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"the {word}\n"},
                           {"from": "gpt", "value": "is warm"}]}
        for word in ("film", "plot", "cast", "story")
    ]  # fmt: skip
    path = write(tmp_path / "talks.jsonl", rows)
    counts = ("demonstrations=1", "heldout=1", "train_prompts=1", "eval_prompts=1")
    code, lines, _ = shown(f"data.dataset_name={path}", *(f"data.{count}" for count in counts))
    assert code == 0
    example = lines[lines.index("  demonstrations, example 1") + 1]
    assert example.startswith("    <|user|>the") and "<|assistant|>▶is warm<eos>" in example
    # No classifier can learn from them, which is said and ends nothing.
    assert any(line.startswith("  the reward stage cannot learn from this: ") for line in lines)


def test_the_projects_own_texts(shown) -> None:
    code, lines, _ = shown()
    assert code == 0 and lines[0] == "data.dataset_name: toy"
    parts = "64 training prompts, 25 validation prompts, 16 evaluation prompts"
    assert f"  256 demonstrations, 32 held out, {parts}" in lines


def test_a_mistake_is_one_line(shown, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b"}])
    code, _, errors = shown(f"data.preferences_name={path}")
    assert code == 2 and errors.startswith(f"error: {path}, line 1: no column 'rejected'")
    assert errors.count("\n") == 1
