"""Ten thousand damaged rows and files: handled, or one line that names the place; never a silence.

Every reader is given small files of good rows with something wrong in them. What comes back must
account for each row: it is used, or a printed line counts it as left out. What is refused must be
refused in one line with the file, and where a single value is at fault with its line and column.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Experiment
from pipeline.data import load_data
from pipeline.data.demonstrations import read_demonstrations
from pipeline.data.preferences import load_preferences
from pipeline.data.prompts import read_prompts
from pipeline.data.sources import read_rows
from pipeline.data.tally import listening
from pipeline.errors import UserError

Row = dict[str, Any]
ROWS = 6
NAMES = {"text": "text", "label": "label"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def texts(n: int) -> Row:
    return {"text": f"remark {n} says at some length that thing {n} is good", "label": n % 2}


def prompts(n: int) -> Row:
    return {"prompt": f"question {n}?"} if n % 2 else {"prompt": [user(f"question {n}?")]}


def pairs(n: int) -> Row:
    return {"prompt": f"question {n}?", "chosen": f" yes {n}", "rejected": f" no {n}"}


def talks(n: int) -> Row:
    ask = f"question {n}?"  # a message of its own in each, as one of them may be damaged
    said = {"chosen": f"yes {n}", "rejected": f"no {n}"}
    return {column: [user(ask), assistant(answer)] for column, answer in said.items()}


def transcripts(n: int) -> Row:
    ask = f"\n\nHuman: question {n}?\n\nAssistant:"
    return {"chosen": f"{ask} yes {n}", "rejected": f"{ask} no {n}"}


def alpaca_pairs(n: int) -> Row:
    return {"instruction": f"do {n}", "input": f"with {n}", "chosen": "yes it is", "rejected": "no"}


def completions(n: int) -> Row:
    return {"prompt": f"question {n}?", "completion": f" yes {n}"}


def sharegpt(n: int) -> Row:
    said = [("system", "be kind"), ("human", f"question {n}?"), ("gpt", f"yes {n}")]
    return {"conversations": [{"from": who, "value": what} for who, what in said]}


# --- Readers: each gives what it read, and the number of rows that it said are left out -----------

Used = tuple[list[Any], int]


def use_texts(path: Path) -> Used:
    """Asks for more texts than there are, because that error counts the texts of each kind."""
    data = {"dataset_name": str(path), "demonstrations": 10**6, "eval_prompts": 1, "max_words": 300}
    tree = {"data": {**data, "positive_above": 0.5}}
    try:
        load_data(Experiment.model_validate(tree))
    except UserError as error:
        message = str(error)
        if found := re.search(r"has (\d+) different texts of .*? but 1000\d+ are asked", message):
            return [None] * int(found[1]), sum(map(int, re.findall(r"\((\d+)[;:)]", message)))
        if found := re.search(r"none of the (\d+) texts of ", message):
            return [], int(found[1])
        raise
    raise AssertionError("there are no million texts")


def use_prompts(path: Path) -> Used:
    with listening() as lines:
        kept = read_prompts(str(path))
    assert all(isinstance(p, str) or p[-1]["role"] != "assistant" for p in kept)
    return list(kept), left_out(lines)


def use_pairs(path: Path) -> Used:
    with listening() as lines:
        kept = load_preferences(str(path))
    for pair in kept:
        assert pair["chosen"] != pair["rejected"] and pair["prompt"]
        for answer in (pair["chosen"], pair["rejected"]):
            assert isinstance(answer, type(pair["prompt"]))
            said = answer if isinstance(answer, str) else answer[-1]["content"]
            assert said.strip() or not isinstance(answer, str)
            assert isinstance(answer, str) or answer[0]["role"] == "assistant"
    return list(kept), left_out(lines)


def use_demonstrations(path: Path) -> Used:
    rows = read_rows(str(path), key="data.dataset_name")
    with listening() as lines:
        kept = read_demonstrations(str(path), rows, NAMES)
    return list(kept), left_out(lines)


def left_out(lines: list[str]) -> int:
    found = (re.search(r": ([\d,]+) of [\d,]+ \w+ left out", line) for line in lines)
    return sum(int(match[1].replace(",", "")) for match in found if match)


KINDS: list[tuple[Callable[[int], Row], Callable[[Path], Used]]] = [
    (texts, use_texts),
    (prompts, use_prompts),
    (pairs, use_pairs),
    (talks, use_pairs),
    (transcripts, use_pairs),
    (alpaca_pairs, use_pairs),
    (completions, use_demonstrations),
    (sharegpt, use_demonstrations),
]


def outcome(use: Callable[[Path], Used], path: Path) -> Used | str:
    """What is read, or the message, which is one line with the file's name."""
    try:
        return use(path)
    except UserError as error:
        message = str(error)
        assert "\n" not in message and "\r" not in message, message
        assert path.name in message or str(path.parent) in message, message
        assert len(message) < 1500, message
        return message


# --- Damage ---------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


ODD: list[Any] = [
    None, "", "   ", "\n\t", 0, -1.5, float("nan"), float("inf"), True, [], {}, [""], [None], [[]],
    [{}], {"a": 1}, nested(40), nested(700), 10**400, "x" * 100_000, "word " * 20_000, "\ud800",
    "a\x00b", "\u202e right to left", "😀" * 50, "这个台灯质量很差", "é\u0301\u0301", "\ufeff",
    [user("one")], [assistant("one")], [user("one"), assistant("two"), user("three")],
    [{"role": "user"}], [{"content": "no role"}], [{"role": 3, "content": "x"}],
    [{"role": "robot", "content": "x"}], [{"role": "user", "content": None}],
    [{"role": "user", "content": [{"type": "text", "text": "part"}]}],
    [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
    [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}],
    [{"from": "martian", "value": "hello"}], {"role": ["user"], "content": ["columns"]},
    {"role": "assistant", "content": "single"}, [user("x" * 100_000)], [user("\ud800")],
    [assistant(""), assistant(" ")], ["a", "b"], [1, 2, 3], "Human: hello", "<|im_start|>assistant",
]  # fmt: skip


def damage_row(row: Row, rng: random.Random) -> str | None:
    """Change one row; returns the column where one value became another, else None."""
    column = rng.choice(list(row))
    what = rng.randrange(8)
    if what < 5:
        place: Any = row
        key: Any = column
        # Half of the time deeper: a message, its content, its role.
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[key] = rng.choice(ODD)
        return column
    if what == 5:
        del row[column]
    elif what == 6:
        row[rng.choice(["", "te\nxt", "id", "prompt", "system", "history", "x" * 200])] = (
            rng.choice(ODD)
        )
    else:
        row[column + "s"] = row.pop(column)
    return None


def lines_of(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("seed", range(8))
def test_damaged_rows(seed: int, tmp_path: Path) -> None:
    """850 files of each kind, each with a damaged row; in some a row comes twice."""
    make, use = KINDS[seed]
    rng = random.Random(seed)
    refused = used = 0
    path = tmp_path / "good.jsonl"
    path.write_bytes(lines_of([make(n) for n in range(ROWS)]))
    good, left = use(path)
    assert (len(good), left) == (ROWS, 0)
    for case in range(850):
        rows = [make(n) for n in range(ROWS)]
        if twice := rng.random() < 0.2:
            rows.append(dict(rows[-1]))
        at = rng.randrange(ROWS - 1)
        column = damage_row(rows[at], rng)
        path = tmp_path / f"rows-{case}.jsonl"
        path.write_bytes(lines_of(rows))
        found = outcome(use, path)
        path.unlink()
        if isinstance(found, str):
            refused += 1
            assert "line " in found or "none of the" in found, found
            if column is not None and f"line {at + 1}:" in found:
                assert column in found or "use one kind" in found, found
            continue
        used += 1
        kept, left = found
        assert len(kept) + left == len(rows), (rows[at], found)
        # Beside the damaged row only the second of two may be left out, and none is changed.
        assert all(item in kept for item in good[:at] + good[at + 1 :]), (rows[at], found)
        # What stands in the damaged column is in what was made of its row.
        made = [item for item in kept if item not in good]
        if column is not None and made and use is not use_texts:
            assert all(part in said(made) for part in parts(rows[at][column])), (rows[at], made)
        assert not twice or use is use_pairs or left >= 1
    assert refused > 100 and used > 100


def parts(value: Any) -> list[Any]:
    """What a value says: its numbers and texts, blanks and the names of speakers aside."""
    if isinstance(value, dict):
        named = ("role", "from", "type")
        return [part for key, item in value.items() if key not in named for part in parts(item)]
    if isinstance(value, list):
        return [part for item in value for part in parts(item)]
    if isinstance(value, str):
        return [value] if value.strip() else []
    return [] if value is None else [value]


def said(made: list[Any]) -> str:
    """Every text in these items, one after the other."""
    plain = [item if isinstance(item, dict | list | str) else vars(item) for item in made]
    return "\n".join(part for part in parts(plain) if isinstance(part, str))


# --- Damaged files --------------------------------------------------------------------------------


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows", data)
    return buffer.getvalue()


PACK = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE), ".zip": zipped,
}  # fmt: skip
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"]


def csv_of(rows: list[Row], rng: random.Random) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(
        buffer,
        list(rows[0]),
        delimiter=rng.choice(",;\t|"),
        quoting=rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
        lineterminator=rng.choice(["\n", "\r\n", "\r"]),
    )
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@pytest.mark.parametrize("seed", range(4))
def test_encodings_and_compression(seed: int, tmp_path: Path) -> None:
    """125 whole files a seed, in each encoding and packing: every row is read, or it is refused."""
    rng = random.Random(100 + seed)
    for case in range(125):
        make, use = rng.choice([kind for kind in KINDS if kind[0] in (texts, pairs, completions)])
        rows = [make(n) for n in range(ROWS)]
        form = rng.choice(["csv", "json", "jsonl", "ndjson"])
        encoding, packing = rng.choice(ENCODINGS), rng.choice(list(PACK))
        if form == "csv":
            text = csv_of(rows, rng)
        else:
            line = rng.choice([None, 1]) if form == "json" else None
            text = json.dumps(rows, indent=line) if form == "json" else lines_of(rows).decode()
        path = tmp_path / f"rows-{case}.{form}{packing}"
        path.write_bytes(PACK[packing](text.encode(encoding)))
        found = outcome(use, path)
        path.unlink()
        assert not isinstance(found, str), (path.name, encoding, found)
        assert (len(found[0]), found[1]) == (ROWS, 0), (path.name, encoding)


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    what, at = rng.randrange(8), rng.randrange(len(data))
    if what == 0:
        return data[:at]
    if what == 1:
        return data[at:]
    if what == 2:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if what == 3:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    if what == 4:
        return (
            data[:at]
            + rng.choice([b"\0", b'"', b"\n", b"[" * 50_000, b",", b"\\", b"{"])
            + data[at:]
        )
    if what == 5:
        return rng.choice([b"", b"\n", b"   ", b"\xef\xbb\xbf", b"\xff\xfe", b"null", b"[]", b"{}"])
    if what == 6:
        return rng.randbytes(rng.randrange(1, 200))
    return data + data[:at]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(seed: int, tmp_path: Path) -> None:
    """700 files a seed whose bytes are damaged, before or after they are packed."""
    rng = random.Random(200 + seed)
    refused = 0
    for case in range(700):
        make, use = rng.choice(KINDS)
        rows = [make(n) for n in range(ROWS)]
        form = rng.choice(["csv", "json", "jsonl", "txt"]) if make is texts else "jsonl"
        packing = rng.choice(list(PACK)) if rng.random() < 0.4 else ""
        data = (csv_of(rows, rng) if form == "csv" else json.dumps(rows)).encode()
        data = lines_of(rows) if form in ("jsonl", "txt") else data
        data = data.decode().encode(rng.choice(["utf-8", "utf-16"]))
        before = rng.random() < 0.5
        data = PACK[packing](damage_bytes(data, rng) if before else data)
        path = tmp_path / f"rows-{case}.{form}{packing}"
        path.write_bytes(data if before else damage_bytes(data, rng))
        refused += isinstance(outcome(use, path), str)
        path.unlink()
    assert refused > 300


def test_damaged_tables(tmp_path: Path) -> None:
    """Parquet and Arrow files that are cut off or are something else."""
    import pyarrow as pa
    import pyarrow.feather as feather
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([pairs(n) for n in range(ROWS)])
    pq.write_table(table, tmp_path / "rows.parquet")
    feather.write_feather(table, str(tmp_path / "rows.feather"))
    with pa.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    rng = random.Random(300)
    for name in ("rows.parquet", "rows.feather", "rows.arrow"):
        path = tmp_path / name
        whole = path.read_bytes()
        good = use_pairs(path)
        assert len(good[0]) == ROWS
        for _ in range(40):
            path.write_bytes(whole[: rng.randrange(len(whole))])
            found = outcome(use_pairs, path)
            assert isinstance(found, str) or found == good, found
        path.write_bytes(b"text,label\n")
        assert "cannot be read as" in outcome(use_pairs, path)
