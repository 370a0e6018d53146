"""Texts in files of every format, and one clear line for every mistake in one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import load_data
from pipeline.data.sources import read_rows
from pipeline.data.splits import ExperimentData
from pipeline.data.toy import toy_texts
from tests.pipeline.data.test_splits import (
    experiment,
    message_of,
    rated_rows,
    write_jsonl,
)

# --- Formats --------------------------------------------------------------------------------------


def write_as(form: str, folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows.{form}"
    if form == "jsonl":
        return write_jsonl(path, rows)
    if form == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif form == "csv":
        with path.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import datasets

        if form == "parquet":
            datasets.Dataset.from_list(rows).to_parquet(path)
        else:
            saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
            saved.save_to_disk(path)
    return path


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet", "saved"])
def test_every_format_gives_the_same_data(form, tmp_path):
    rows = [*rated_rows(), {"text": 'She said "bon, voilà",\u2028twice, of the film', "label": 2}]
    expected = load_data(experiment(dataset_name=str(write_as("jsonl", tmp_path, rows))))
    path = write_as(form, tmp_path, rows)
    assert load_data(experiment(dataset_name=str(path))) == expected
    assert isinstance(expected, ExperimentData)


def test_a_folder_is_read_by_split(tmp_path):
    rows = rated_rows(10)
    write_jsonl(tmp_path / "train-0.jsonl", rows[:3])
    write_jsonl(tmp_path / "train-1.jsonl", rows[3:5])
    write_jsonl(tmp_path / "test.jsonl", rows[5:])
    found = read_rows(str(tmp_path), key="data.dataset_name", split="train")
    assert [row.values for row in found] == rows[:5]
    assert len(list(read_rows(str(tmp_path), key="data.dataset_name", split="test"))) == 5
    assert "no file for split 'dev'" in message_of(tmp_path, train_split="dev")


def test_line_breaks_of_web_pages_become_spaces(tmp_path):
    rows = rated_rows()
    for row in rows:
        row["text"] = row["text"].replace(" is ", "<br /><br />is ")
    data = load_data(experiment(dataset_name=str(write_jsonl(tmp_path / "web.jsonl", rows))))
    assert not any("<br" in str(text) for text in data.demonstrations)
    assert sorted(map(str, data.demonstrations))[0] in {
        text.text for text in toy_texts(200, seed=5)
    }


def test_classes_work_with_their_own_limit(tmp_path):
    rows = [{**row, "label": int(row["label"] > 0)} for row in rated_rows()]
    path = write_jsonl(tmp_path / "classes.jsonl", rows)
    data = load_data(experiment(dataset_name=str(path), positive_above=0.5))
    assert {text.rating for text in data.proxy} == {0.0, 1.0}
    message = message_of(path)
    assert "no negative text" in message and "data.positive_above=0.5" in message


# --- Mistakes -------------------------------------------------------------------------------------


def test_missing_file_names_the_nearest(tmp_path):
    write_jsonl(tmp_path / "reviews.jsonl", rated_rows(1))
    message = message_of(tmp_path / "review.jsonl")
    assert "data.dataset_name" in message
    assert f"nearest: {tmp_path / 'reviews.jsonl'}" in message


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt"])
def test_empty_file(suffix, tmp_path):
    path = tmp_path / f"empty.{suffix}"
    path.write_text("\n" if suffix != "csv" else "text,label\n", encoding="utf-8")
    assert f"{path} has no rows" in message_of(path)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"txt": "a b", "label": 1}, "line 3: no column 'text'; there are 'txt', 'label'"),
        ({"text": "a b"}, "line 3: no column 'label'; there are 'text'"),
        ({"text": None, "label": 1}, "line 3: column 'text' is empty"),
        ({"text": 7, "label": 1}, "line 3: column 'text' must be text, found 7"),
        ({"text": "a b", "label": "good"}, "line 3: column 'label' must be a number, found 'good'"),
        ({"text": "a b", "label": [1]}, "line 3: column 'label' must be a number, found [1]"),
        ({"text": "a b", "label": float("nan")}, "line 3: column 'label' must be a number"),
        ({"text": "a \ud800 b", "label": 1}, "line 3: column 'text' holds \\ud800 alone"),
        (["a b", 1], "line 3: a row must be an object"),
    ],
)
def test_a_bad_row_is_named(broken, expected, tmp_path):
    rows: list[Any] = rated_rows(4)
    rows[2] = broken
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert f"{path}, {expected}" in message_of(path)


def test_bad_csv_rows_are_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\none,1\ntwo\n", encoding="utf-8")
    assert f"{path}, line 3: no column 'label'" in message_of(path)
    path.write_text("text,label\none,1\ntwo, three,2\n", encoding="utf-8")
    assert f"{path}, line 3: more cells than the header" in message_of(path)


def test_not_json_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": \n', encoding="utf-8")
    assert f"{path}, line 2: not JSON" in message_of(path)
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a", "label": 1},\n oops]', encoding="utf-8")
    assert f"{path}, line 2: not JSON" in message_of(path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
def test_not_utf8_names_line_and_byte(suffix, tmp_path):
    path = tmp_path / f"latin.{suffix}"
    path.write_bytes(b"text,label\nok,1\n" + "café,1\n".encode("latin-1"))
    assert f"{path}, line 3: not UTF-8 (byte 19 is 0xe9)" in message_of(path)


def test_not_parquet_and_unknown_format(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"nonsense")
    assert "cannot be read as parquet" in message_of(tmp_path / "rows.parquet")
    (tmp_path / "rows.xlsx").write_bytes(b"nonsense")
    assert "unknown format" in message_of(tmp_path / "rows.xlsx")
    (tmp_path / "folder").mkdir()
    assert "no data file" in message_of(tmp_path / "folder")


def test_too_few_rows_say_how_many_there_are_and_what_to_lower(tmp_path):
    path = write_jsonl(tmp_path / "few.jsonl", rated_rows(70))
    message = message_of(path)
    assert "70 different texts" in message
    assert "97 are asked for" in message  # 10 evaluation + 20 held out + 7 tests + 60
    assert message.endswith("lower data.demonstrations")
    message = message_of("toy", eval_prompts=500, demonstrations=10)
    assert "different prompts" in message and message.endswith("lower data.eval_prompts")
    message = message_of("toy", train_prompts=9000)
    assert message.endswith("lower data.train_prompts")
    assert "none of the 3000 texts" in message_of("toy", min_words=40, max_words=50)


def test_labels_on_one_side(tmp_path):
    rows = [{**row, "label": 3} for row in rated_rows()]
    message = message_of(write_jsonl(tmp_path / "happy.jsonl", rows))
    assert "no negative text at data.positive_above=0" in message


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = message_of("nobody/no-such-reviews")
    assert message.startswith("data.dataset_name: nobody/no-such-reviews: cannot be loaded")
    assert "needs the network" in message


def test_unknown_embedded_kind():
    assert "nearest: embedded:movie-reviews" in message_of("embedded:movie-review")
