"""Large data sets: read as small ones are, in little memory, and remembered while they last."""

from __future__ import annotations

import csv
import gc
import gzip
import json
import os
import pickle
import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset

from pipeline.config import Experiment
from pipeline.data import json_rows, large, leakage, load_data, remembered, words
from pipeline.data.demonstrations import read_demonstrations
from pipeline.data.formats import read_file
from pipeline.data.forms import one_of_each
from pipeline.data.large import LargeRows
from pipeline.data.preferences import read_pairs
from pipeline.data.prompts import read_prompts
from pipeline.data.records import Row
from pipeline.data.sources import read_rows
from pipeline.data.stored import Stored
from pipeline.data.tally import listening
from pipeline.data.validation import validation_pairs, validation_prompts
from pipeline.errors import UserError

KEY = "data.dataset_name"
Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def written(form: str, folder: Path, rows: Rows) -> Path:
    """The rows in a file of a format, or in a folder of two."""
    path = folder / f"rows.{form}"
    if form in ("parquet", "arrow"):
        import pyarrow
        import pyarrow.feather
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist(rows)
        if form == "arrow":
            pyarrow.feather.write_feather(table, path)
        else:
            pyarrow.parquet.write_table(table, path, row_group_size=3)
    elif form == "csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif form == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(jsonl(folder / "plain", rows).read_bytes()))
    elif form == "utf16.jsonl":
        path.write_bytes(jsonl(folder / "plain", rows).read_text().encode("utf-16"))
    elif form == "folder":
        path = folder / "both"
        path.mkdir()
        jsonl(path / "a.jsonl", rows[:4])
        written("csv", path, rows[4:])
    elif form == "saved":
        path = folder / "saved"
        Dataset.from_list(rows).save_to_disk(str(path))
    else:
        jsonl(path, rows)
    return path


TEXTS = [
    {"text": f"remark {n} says\nthat it, truly, is ü {n}", "label": str(n % 2)} for n in range(9)
]
FORMS = ["jsonl", "json", "csv", "parquet", "arrow", "jsonl.gz", "utf16.jsonl", "folder", "saved"]


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_any_format_are_the_same_and_can_be_read_again(
    form: str, tmp_path: Path, as_large: Callable[[], None]
) -> None:
    path = written(form, tmp_path, TEXTS)
    small = read_rows(str(path), key=KEY)
    as_large()
    for _ in range(2):  # as it is copied, where it must be, and from the copy
        rows = read_rows(str(path), key=KEY)
        assert isinstance(small, list) and isinstance(rows, LargeRows)
        found = list(rows)
        assert found == small
        for row in random.Random(0).sample(found, len(found)):
            assert row.at is not None and rows.row(row.at) == row


PROMPTS = [{"prompt": f"question {n % 7}?", "topic": n % 2} for n in range(12)]
PAIRS = [
    {"prompt": f"question {n % 5}?", "chosen": f" yes {n}", "rejected": " no" if n % 4 else " "}
    for n in range(12)
]
RANKINGS = [
    {"prompt": f"q {n}", "completions": ["a", "b", "c"], "ranking": "B > A = C"} for n in "xyz"
]
TALKS = [
    {
        "messages": [
            {"role": "user", "content": f"ask {n % 6}"},
            {"role": "assistant", "content": "so"},
        ]
    }
    for n in range(9)
]


def demonstrations(name: str) -> Sequence[Any]:
    return read_demonstrations(name, read_rows(name, key=KEY), {})


@pytest.mark.parametrize(
    ("read", "rows"),
    [(read_prompts, PROMPTS), (read_pairs, PAIRS), (read_pairs, RANKINGS), (demonstrations, TALKS)],
    ids=["prompts", "pairs", "rankings", "demonstrations"],
)
def test_records_are_those_of_a_small_file(
    read: Callable[[str], Sequence[Any]],
    rows: Rows,
    tmp_path: Path,
    as_large: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = str(jsonl(tmp_path / "rows.jsonl", rows))
    with listening() as told:
        small = read(name)
    as_large()
    with listening() as lines:
        stored = read(name)
    assert isinstance(stored, Stored) and isinstance(small, list)
    assert list(stored) == small and lines == told
    assert list(map(vars, stored)) == list(map(vars, small))  # the columns beside a prompt too
    assert list(stored[::-2]) == small[::-2] and stored[-1] == small[-1]
    assert pickle.loads(pickle.dumps(stored)) == small
    looked_at = []
    monkeypatch.setattr(large, "read_file", lambda *of: map(noted, read_file(*of)))

    def noted(row: Row) -> Row:
        looked_at.append(row)
        return row

    with listening() as again:
        assert list(read(name)) == small
    assert again == told and len(looked_at) == 1  # whether there is any


def experiment(**data: Any) -> Experiment:
    sizes = dict(demonstrations=20, heldout=6, train_prompts=15, eval_prompts=5, max_words=30)
    tree = {"data": {"positive_above": 0.5, "validation_prompts": 4} | sizes | data}
    return Experiment.model_validate(tree)


def divided(made: Experiment, labels: bool) -> dict[str, list[Any]]:
    data = load_data(made, labels)
    names = "demonstrations heldout train_prompts validation_prompts eval_prompts proxy gold"
    parts = {name: list(getattr(data, name)) for name in [*names.split(), "classifier_test"]}
    halves = {part: list(data.half(part)) for part in ("proxy", "gold")} if parts["proxy"] else {}
    return parts | halves


@pytest.mark.parametrize("kind", ["texts", "demonstrations", "prompts"])
def test_a_large_file_is_divided_as_a_small_one(
    kind: str, tmp_path: Path, as_large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "MOST_SEARCHED", 50)
    monkeypatch.setattr("pipeline.data.splits.MOST_SEARCHED", 50)
    rng = random.Random(0)
    says = [
        " ".join(rng.choices(["good", "bad", "long", "film", "plot", "and", "the"], k=12))
        for _ in range(90)
    ]
    texts = [{"text": f"{n // 2 % 40} {say}", "label": n % 2} for n, say in enumerate(says)]
    own = {"dataset_name": str(jsonl(tmp_path / "texts.jsonl", texts))}
    if kind == "demonstrations":
        shown = [{"prompt": f"what of {n % 70}?", "completion": say} for n, say in enumerate(says)]
        own = {"dataset_name": str(jsonl(tmp_path / "shown.jsonl", shown))}
    elif kind == "prompts":
        asked = [{"prompt": f"what of {n % 30}?", "n": n} for n in range(60)]
        own |= {"prompts_name": str(jsonl(tmp_path / "prompts.jsonl", asked))}
    labels = kind == "texts"
    small = divided(experiment(**own), labels)
    given_up = validation_prompts(experiment(**own), load_data(experiment(**own), labels))
    as_large()
    assert divided(experiment(**own), labels) == small
    data = load_data(experiment(**own), labels)
    assert isinstance(data.train_prompts, Stored)
    assert [form for form in one_of_each(data.train_prompts) if not isinstance(form, str)] == []
    parts = validation_prompts(experiment(**own), data)
    assert [list(part) for part in parts] == [list(part) for part in given_up]


def test_pairs_to_evaluate_on_are_those_of_a_small_file(
    tmp_path: Path, as_large: Callable[[], None]
) -> None:
    name = str(jsonl(tmp_path / "pairs.jsonl", PAIRS))
    as_dicts = [pair.columns() for pair in read_pairs(name)]
    small = validation_pairs(as_dicts, 0.4, seed=1)
    as_large()
    stored = read_pairs(name)
    assert isinstance(stored, Stored)
    held, rest = validation_pairs(stored.mapped(lambda pair: pair.columns()), 0.4, seed=1)
    assert (list(held), list(rest)) == (list(small[0]), list(small[1]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n'),
        ("rows.jsonl", b'{"prompt": "a"}\n\n{"prompt": "\xff"}\n'),
        ("rows.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n'),
        ("rows.csv", b'prompt,x\na,1\n"b,2\n'),
        ("rows.json", b'[{"prompt": "a"},\n {"prompt" "b"}]'),
        ("rows.parquet", b"PAR1 and no more"),
        ("rows.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n', mtime=0)[:-9]),
    ],
)
def test_mistakes_are_told_as_in_a_small_file(
    name: str, content: bytes, tmp_path: Path, as_large: Callable[[], None]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as small:
        read_prompts(str(path))
    as_large()
    with pytest.raises(UserError) as found:
        read_prompts(str(path))
    assert str(found.value) == str(small.value)
    left = [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name != "lock"]
    assert left == []


def test_a_list_that_is_too_long_to_be_read_at_once(
    tmp_path: Path, as_large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "x" * 300_000 + f" {n}", "label": n} for n in range(9)]
    path = written("json", tmp_path, rows)
    as_large()
    monkeypatch.setattr(json_rows, "WHOLE", 2**20)
    assert [row.values for row in read_rows(str(path), key=KEY)] == rows
    broken = path.read_text().replace('"label": 6', '"label" 6')
    path.write_text(broken)
    with pytest.raises(UserError, match=r"rows\.json, line 28: not JSON \(Expecting ':' delim"):
        list(read_rows(str(path), key=KEY))
    path.write_text(json.dumps(rows)[:-1])
    with pytest.raises(UserError, match="not JSON"):
        list(read_rows(str(path), key=KEY))


# --- What is remembered ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_another_content_of_the_same_size_and_time_is_read(
    form: str, tmp_path: Path, as_large: Callable[[], None]
) -> None:
    path = written(form, tmp_path, [{"prompt": "one"}, {"prompt": "two"}])
    as_large()
    assert list(read_prompts(str(path))) == ["one", "two"]
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("two", "six"))
    os.utime(path, ns=times)
    assert list(read_prompts(str(path))) == ["one", "six"]
    kept = [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".npz", ".arrow")]
    assert len(kept) == (1 if form == "jsonl" else 2)  # what was known before is gone


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, as_large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", [{"prompt": "one"}])
    as_large()
    monkeypatch.setattr(remembered, "_YOUNG", 3600)
    found = read_prompts(str(path))
    assert list(found) == ["one"]
    del found
    gc.collect()
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_file_that_changes_while_it_is_used_is_one_line(
    tmp_path: Path, as_large: Callable[[], None]
) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    as_large()
    found = read_prompts(str(path))
    assert found[1] == "two"
    jsonl(path, [{"prompt": "another"}, {"prompt": "one"}])
    with pytest.raises(
        UserError, match=r"prompts\.jsonl: was changed while it was read: run again"
    ):
        found[1]


def test_lines_of_text_have_the_column_that_is_asked_for(
    tmp_path: Path, as_large: Callable[[], None]
) -> None:
    """The same file as texts and as prompts: what is copied of the one is not the other's."""
    path = tmp_path / "lines.txt"
    path.write_text("one\ntwo\n")
    as_large()
    for column in ("text", "ask", "text"):
        rows = read_rows(str(path), key=KEY, column=column)
        assert [row.values for row in rows] == [{column: "one"}, {column: "two"}]


def test_a_file_that_is_read_while_it_is_copied_is_copied_whole(
    tmp_path: Path, as_large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the words of an error about a label: what the next start reads is not cut off."""
    monkeypatch.setattr("pipeline.data.arrow_copy._BATCH", 200)
    texts = [
        {"text": f"a text, and its number is {n}", "label": n if n % 99 else "good"}
        for n in range(1, 300)
    ]
    path = written("csv", tmp_path, texts)
    as_large()
    with pytest.raises(UserError, match="must be a number, found 'good'"):
        load_data(experiment(dataset_name=str(path)))
    assert len(list(read_rows(str(path), key=KEY))) == len(texts)


def test_parts_of_a_split_are_remembered_apart(
    tmp_path: Path, as_large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train[:50%]` and `train[50%:]` of a hub data set are rows of the same files."""
    path = str(jsonl(tmp_path / "rows.jsonl", [{"prompt": f"q {n}"} for n in range(8)]))
    load = datasets.load_dataset

    def load_it(name: str, config: None, split: str) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(datasets, "load_dataset", load)
            return load("json", data_files=path, split=split, cache_dir=str(tmp_path / "hub"))

    monkeypatch.setattr(datasets, "load_dataset", load_it)
    as_large()
    for split, expected in (("train[:50%]", range(4)), ("train[50%:]", range(4, 8))):
        found = read_prompts("some/set", None, split)
        assert isinstance(found, Stored) and list(found) == [f"q {n}" for n in expected]
    assert len(read_prompts("some/set", None, "train[:75%]")) == 6


def test_damaged_memory_is_made_again_and_a_broken_start_leaves_nothing(
    tmp_path: Path, as_large: Callable[[], None]
) -> None:
    path = written("csv", tmp_path, [{"prompt": f"one {n}"} for n in range(5)])
    as_large()
    rows = read_rows(str(path), key=KEY)
    assert isinstance(rows, LargeRows) and rows.first() is not None  # which begins a copy
    assert not list((tmp_path / "cache").rglob("*arrow*"))
    first = list(read_prompts(str(path)))
    (known,) = (tmp_path / "cache").rglob("*.npz")
    whole = known.read_bytes()
    known.write_bytes(whole[: len(whole) // 2])
    assert list(read_prompts(str(path))) == first and known.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_one_line_and_the_data_folder_is_left_alone(
    tmp_path: Path, as_large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = written("csv", folder, [{"prompt": "one"}])
    as_large()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(UserError, match="No space left on device.*: make room, or set RLHF_C"):
            read_prompts(str(path))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written .*set RLHF_CACHE"):
        read_prompts(str(path))
    assert [p.name for p in folder.iterdir()] == [path.name]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, as_large: Callable[[], None]) -> None:
    def peak(count: int) -> tuple[int, int]:
        pairs = [{"prompt": f"q {n}", "chosen": "y" * 2000, "rejected": "n"} for n in range(count)]
        path = jsonl(tmp_path / f"{count}.jsonl", pairs)
        del pairs
        tracemalloc.start()
        for pair in read_pairs(str(path)):
            assert pair.rejected == "n"
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most, path.stat().st_size

    as_large()
    peak(10)  # imports
    (few, small), (many, big) = peak(500), peak(5000)
    assert many - few < 0.05 * (big - small)  # places and numbers: 40 bytes a row


def test_words_of_ascii_are_those_of_the_rule() -> None:
    rng = random.Random(0)
    letters = "aB9_ .,-\t\n\x0b\x1c\x1f'\"$"
    for _ in range(2000):
        text = "".join(rng.choices(letters, k=rng.randrange(12)))
        assert words.WORDS.count(text) == len(words.word_ends(text))
        rule = " ".join(words._letters().findall(text.casefold())) or text.strip()
        assert words.same_but_for_form(text) == rule
