"""The deep course: its code is in the files, its links lead somewhere, its commands are real."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from classic_rl import cli
from classic_rl.deep import command
from classic_rl.deep.policy_file import POLICY_FILE
from tests.checkout import ROOT

PAGE = ROOT / "docs" / "classic-rl" / "deep.md"
TEXT = PAGE.read_text(encoding="utf-8")
IMAGES = ROOT / "docs" / "images" / "classic"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
QUOTED = re.findall(r"^`([\w/.]+\.py)`:\n```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The two scripts as modules."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "make")
    names = {"results": "classic_results", "figures": "classic_deep_figures"}
    return SimpleNamespace(**{k: importlib.import_module(name) for k, name in names.items()})


@pytest.mark.parametrize(("name", "code"), QUOTED)
def test_the_code_stands_in_its_file(name: str, code: str) -> None:
    """Line for line and with the same relative indentation."""
    lines = code.rstrip().splitlines()
    source = (ROOT / name).read_text(encoding="utf-8").splitlines()
    starts = [k for k, line in enumerate(source) if line.strip().startswith(lines[0])]
    # A comment behind a line is left out on the page.
    bare = [re.sub(r"\s+# .*$", "", line) for line in source]
    indents = [" " * (len(source[k]) - len(source[k].lstrip())) for k in starts]
    assert any(
        bare[k : k + len(lines)] == [indent + line for line in lines]
        for k, indent in zip(starts, indents, strict=True)
    )


def test_every_other_block_of_code_is_the_example() -> None:
    assert len(QUOTED) == TEXT.count("```python") - 1 >= 10


def test_links_exist() -> None:
    heads = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    known = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        target, _, anchor = link.partition("#")
        assert not target or (PAGE.parent / target).resolve().is_file(), link
        assert target or anchor in known, link


def test_every_picture_is_small() -> None:
    shown = re.findall(r"images/classic/(deep-[\w.-]+)", TEXT)
    assert sorted(shown) == sorted(path.name for path in IMAGES.glob("deep-*.png"))
    assert max((IMAGES / name).stat().st_size for name in shown) < 300 * 1024


def test_every_picture_has_its_command(scripts: SimpleNamespace) -> None:
    named = re.findall(r"classic_deep_figures.py ([\w-]+)", "\n".join(COMMANDS))
    assert sorted(named) == sorted(scripts.figures.FIGURES)
    assert len(set(COMMANDS)) == len(COMMANDS) >= 15


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(
    line: str, scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Everything but the work itself is done: words, settings, environment."""
    _, *words = shlex.split(line)
    if words[0] == "docs/make/classic_results.py":
        monkeypatch.setattr(scripts.results, "measure", lambda name, *_: {"name": name})
        monkeypatch.setattr(scripts.results, "page", str)
        monkeypatch.setattr(scripts.results, "_line", str.format)
        assert scripts.results.main([*words[1:], "--out", str(tmp_path)]) == 0
        assert set(json.loads((tmp_path / "results.json").read_text())["rows"]) == set(words[1:])
    elif words[0] == "docs/make/classic_deep_figures.py":
        monkeypatch.setitem(scripts.figures.FIGURES, words[1], lambda job: None)
        assert scripts.figures.main(words[1:]) == 0
    else:
        assert words[:2] == ["-m", "classic_rl"]
        for work in ("_train", "evaluate", "watch"):
            monkeypatch.setattr(command, work, lambda *_: 0)
        assert cli.main(words[2:]) == 0


def test_the_example_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = [
        block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "import" in block
    ]
    code = code.replace("100_000", "2_000").replace("episodes=100", "episodes=2")
    exec(compile(code, str(PAGE), "exec"), {})
    assert (tmp_path / "runs/mine" / POLICY_FILE).is_file()


@pytest.mark.parametrize("figure", ["learning-curves", "clip-range", "gradient-variance"])
def test_pictures_are_made(
    figure: str, scripts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From trainings far too short to show anything."""
    places = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    assert scripts.figures.main([figure, "--steps", "1200", "--seeds", "0", *places]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"deep-{figure}.png"]
    assert f"deep-{figure}.png" in capsys.readouterr().out


def test_results_are_written_row_by_row(
    scripts: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results: ModuleType = scripts.results
    real = results.configure
    small = ["total_steps=600", "n_envs=2", "n_steps=16"]
    monkeypatch.setattr(results, "configure", lambda *words: real(*words, overrides=small))
    places = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    words = ["--seeds", "0", "1", "--episodes", "2", *places]
    assert results.main(["ppo-cartpole", *words]) == 0
    first = (tmp_path / "out" / "results.md").read_text()
    assert results.main(["ppo-tokenmdp", *words]) == 0
    page = (tmp_path / "out" / "results.md").read_text()
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert list(rows) == ["ppo-cartpole", "ppo-tokenmdp"]
    assert set(first.splitlines()) < set(page.splitlines())
    assert rows["ppo-cartpole"]["met"] is False and "every ≥ 500 | **no**" in page
    scores = [seed["score"] for seed in rows["ppo-tokenmdp"]["seeds"]]
    assert all(score <= 1 for score in scores) and scores[0] != scores[1]
    capsys.readouterr()
    assert results.main(["ppo-cartpol"]) == 2
    assert "ppo-cartpol: no such row; there are ppo-cartpole" in capsys.readouterr().err


def test_the_committed_table_is_what_the_script_writes(scripts: SimpleNamespace) -> None:
    folder = PAGE.parent
    rows = scripts.results.read(folder / "results.json")
    assert set(rows) == set(scripts.results.ROWS)
    assert (folder / "results.md").read_text(encoding="utf-8") == scripts.results.page(rows)
    for name, row in rows.items():
        assert [one["seed"] for one in row["seeds"]] == list(scripts.results.SEEDS)
        assert row["episodes"] == scripts.results.EPISODES
        assert row["met"], f"{name} misses what it must reach"


def test_controllers_play_the_same_episodes_as_policies(scripts: SimpleNamespace) -> None:
    from classic_rl.deep.configuration import configure
    from classic_rl.envs import FixedCycle, LongestQueue

    config = configure("ppo", "TrafficLight")
    play = scripts.results.play
    longest, fixed = (play(config, rule, 4) for rule in (LongestQueue(), FixedCycle(12)))
    assert play(config, LongestQueue(), 4) == longest
    assert fixed < longest < 0
