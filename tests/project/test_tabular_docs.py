"""The tabular course: its code is in the files, its links lead somewhere, its commands run."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from classic_rl import cli
from classic_rl.tabular import command
from classic_rl.tabular.names import COMMANDS
from tests.checkout import ROOT

DOCS = ROOT / "docs" / "classic-rl"
PAGES = [DOCS / "tabular.md", DOCS.parent / "formulas.md", DOCS / "troubleshooting.md"]
FOLDERS = ("classic_rl", "pipeline", "reward_models")
SOURCES = {path: path.read_text() for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
TEXT = "\n".join(SOURCES.values())
# A million steps, more than all the others together.
LONG = {"q-learning --env FrozenLake8x8-v1"}


def commands() -> list[str]:
    """What follows ``python -m classic_rl`` in the code blocks of all pages."""
    lines = [
        line
        for page in PAGES
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S)
        for line in block.splitlines()
    ]
    words = re.findall(r"^(?:\$ )?python -m classic_rl (.+)$", "\n".join(lines), re.M)
    return list(dict.fromkeys(words))


def quoted() -> list[tuple[str, str]]:
    """(file, code) of each Python block; the line before it names the file."""
    text = PAGES[0].read_text()
    return re.findall(r"^`([\w/.]+\.py)`:\n```python\n(.*?)^```", text, re.M | re.S)


def test_every_block_of_code_names_its_file() -> None:
    assert len(quoted()) == PAGES[0].read_text().count("```python") > 10


@pytest.mark.parametrize(("name", "code"), quoted())
def test_the_code_stands_in_its_file(name: str, code: str) -> None:
    """Line for line and with the same relative indentation."""
    lines, source = code.rstrip().splitlines(), (ROOT / name).read_text().splitlines()
    starts = [k for k, line in enumerate(source) if line.strip() == lines[0]]
    indented = [" " * (len(source[k]) - len(source[k].lstrip())) for k in starts]
    assert any(
        source[k : k + len(lines)] == [indent + line for line in lines]
        for k, indent in zip(starts, indented, strict=True)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        other = (page.parent / target).resolve() if target else page
        assert other.is_file(), link
        if anchor:
            heads = re.findall(r"^#+ (.+)$", other.read_text(), re.M)
            known = [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads]
            assert anchor in known, link


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs" / "make")
    return importlib.import_module("classic_figures")


def test_every_picture_is_small_and_made_by_the_script(figures: ModuleType) -> None:
    page, folder = PAGES[0].read_text(), ROOT / "docs" / "images" / "classic"
    shown = re.findall(r"images/classic/([\w.-]+)", page)
    assert sorted(shown) == sorted(figures.FIGURES)
    sizes = [(folder / name).stat().st_size for name in shown]
    assert max(sizes) < 300 * 1024 and sum(sizes) < 1.2 * 1024 * 1024
    named = re.findall(r"python docs/make/classic_figures.py ([\w.-]+)`", page)
    assert named and set(named) <= set(shown)


def test_the_script_draws_what_it_is_asked_for(
    figures: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["evaluation.png", "improvement.png", "step-rewards.png", "frontier.png", "traffic.png"]
    figures.main([*names, "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    # What the page says of them.
    printed = capsys.readouterr().out
    assert "6 policies, the last one best" in printed
    [gap] = re.findall(r"121 completions, largest difference (\S+)", printed)
    assert float(gap) < 1e-12
    with pytest.raises(SystemExit):
        figures.main(["absent.png"])
    assert "absent.png is no picture: choose among evaluation.png" in capsys.readouterr().err


def test_every_algorithm_is_tried_on_the_page() -> None:
    assert {line.split()[0] for line in commands()} >= set(COMMANDS)


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    name, *words = shlex.split(line)
    command.parser(name, cli.PROG).parse_args(words)


@pytest.mark.parametrize("line", [line for line in commands() if line not in LONG])
def test_commands_run(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one seed, few episodes of evaluation and no pictures, for time."""
    extra = ["--out", str(tmp_path), "--no-pictures", "--eval-episodes", "20"]
    extra += ["--seeds", "0"]
    status = cli.main([*shlex.split(line), *extra])
    output = capsys.readouterr()
    if "TrafficLight" in line:  # shown for its error
        assert status == 2
        assert output.err.strip() in PAGES[0].read_text()
    else:
        assert status == 0, output.err
        assert (tmp_path / "results.json").is_file()


def test_functions_named_among_the_formulas_exist() -> None:
    cells = re.findall(r"\| `([\w.]+)` \|$", PAGES[1].read_text(), re.M)
    assert len(cells) > 50
    for cell in cells:
        owner, _, member = cell.rpartition(".")
        assert not owner or re.search(rf"^class {owner}\b", TEXT, re.M), cell
        assert re.search(rf"(?:def|class) {member}\b|^    {member}: ", TEXT, re.M), cell


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    joined = re.sub(r'"\s*\n\s*f?"', "", TEXT)
    section = PAGES[2].read_text().partition("## What the errors mean")[2]
    messages = re.findall(r"^\| `(.+?)` \|", section, re.M)
    assert len(messages) > 5
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in joined, part
