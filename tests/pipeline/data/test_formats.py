"""Files as people have them: encodings, delimiters, compression, tables, folders."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from pipeline.data.formats import read_file
from pipeline.data.sources import read_rows
from pipeline.data.tally import listening
from pipeline.errors import UserError

ROWS = [{"text": "café, twice", "label": "1"}, {"text": 'a "b"\nc', "label": "0"}]
CSV = 'text,label\n"café, twice",1\n"a ""b""\nc",0\n'
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def values(path: Path) -> list[dict]:
    return [row.values for row in read_file(path, "text")]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_file(path, "text"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_encodings(encoding: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{form}"
    path.write_bytes((CSV if form == "csv" else JSONL).encode(encoding))
    assert values(path) == ROWS


def test_a_binary_file_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\na,1\nb\0c,1\n")
    assert refusal(path) == f"{path}, line 3: holds a NUL byte, so it is no text file"
    path.write_bytes("text,label".encode("utf-16")[:-1])
    assert "not UTF-16 to its end" in refusal(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [["text", "label"], [f'"one{delimiter} two, and; more"', "1"]]
    path.write_text("\r\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    assert values(path) == [{"text": f"one{delimiter} two, and; more", "label": "1"}]


def test_a_spreadsheet_may_name_its_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("sep=;\ntext;label\na, b;1\nc;0;1\n", encoding="utf-8")
    assert refusal(path) == (
        f"{path}, line 4: more cells than the header has (3, not 2): quote cells with semicolons"
    )


def test_long_cells_empty_rows_and_unnamed_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    long = "word " * 60_000
    path.write_text(f",text,label\n0,{long},1\n,,\n1,b,0\n", encoding="utf-8")
    assert values(path) == [
        {"unnamed 1": "0", "text": long, "label": "1"},
        {"unnamed 1": "1", "text": "b", "label": "0"},
    ]


def test_csv_mistakes_name_the_line_where_the_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\na,1\n"b\nc,1\n', encoding="utf-8")
    assert f"{path}, line 3: not CSV" in refusal(path)
    path.write_text("text,label,text\na,1,b\n", encoding="utf-8")
    assert refusal(path).startswith(f"{path}, line 1: the header has 'text' twice")


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_compressed(suffix: str, pack, tmp_path: Path) -> None:
    path = tmp_path / f"rows.csv{suffix}"
    path.write_bytes(pack(CSV.encode()))
    assert values(path) == ROWS
    path.write_bytes(pack(CSV.encode())[:-9])
    assert f"{path}: cannot be unpacked as {suffix[1:]}" in refusal(path)


def test_zip_holds_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.jsonl", JSONL)
        archive.writestr("__MACOSX/rows.jsonl", "x")
    assert values(path) == ROWS
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.jsonl", JSONL)
    assert "it holds 2 files, not one; unpack it" in refusal(path)


def test_arrow_in_each_form(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import feather

    table = pa.Table.from_pylist(ROWS)
    feather.write_feather(table, str(tmp_path / "rows.feather"))
    with pa.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    assert values(tmp_path / "rows.feather") == values(tmp_path / "rows.arrow") == ROWS


@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson"])
def test_json_whatever_the_suffix_says(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    for text in (JSONL, json.dumps(ROWS), json.dumps(ROWS, indent=1)):
        path.write_text(text, encoding="utf-8")
        assert values(path) == ROWS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"text": "a", "text": "b"}', "line 1: not JSON (the key 'text' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"data": [\n{"text": "a"}]}', "holds one object over several lines (its keys: 'data')"),
        ('{"text": ' + "9" * 5000 + "}", "line 1: not JSON (Exceeds the limit"),
    ],
)
def test_json_mistakes(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    assert expected in refusal(path)


def test_a_folder_of_compressed_files_says_what_it_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl.gz").write_bytes(gzip.compress(JSONL.encode()))
    (tmp_path / "train-1.csv").write_text(CSV, encoding="utf-8")
    (tmp_path / "more.xlsx").write_bytes(b"x")
    (tmp_path / "README.md").write_text("words", encoding="utf-8")
    (tmp_path / "dataset_infos.json").write_text("{}", encoding="utf-8")
    with listening() as lines:
        rows = read_rows(str(tmp_path), key="data.dataset_name")
    assert [row.values for row in rows] == [*ROWS, *ROWS]
    assert lines == [
        f"{tmp_path}: split 'train' is read from train-0.jsonl.gz, train-1.csv; not read: more.xlsx"
    ]
