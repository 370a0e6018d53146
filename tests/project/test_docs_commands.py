"""Every command of every page is one that its program understands; the short ones run."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from classic_rl import cli as classic
from classic_rl.deep import command as deep
from classic_rl.tabular import command as tabular
from classic_rl.tabular.names import COMMANDS as TABULAR
from pipeline import cli
from pipeline.config import load_experiment
from tests.checkout import ROOT

DOCS = ROOT / "docs"
PROGRAMS = ("rlhf ", "make ", "python -m classic_rl ")
# In text and tables commands are written shortened.
SHORTENED = ("…", "FILE", "experiment.yaml", "runs/sweep-tiny/trials")


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of each line in a code block, continued lines joined, without comments."""
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:bash|sh|)\n(.*?)^```", text, re.M | re.S)
        blocks += re.findall(r"(?:^    \S.*\n)+", text, re.M)
        for block in blocks:
            for line in block.replace("\\\n", " ").splitlines():
                bare = line.strip().removeprefix("$ ")
                if bare.startswith(PROGRAMS) and not any(s in bare for s in SHORTENED):
                    yield (
                        page.relative_to(DOCS).as_posix(),
                        shlex.join(shlex.split(bare, comments=True)),
                    )


ALL = list(dict.fromkeys(commands()))


def test_many_are_found() -> None:
    pages = {page for page, _ in ALL}
    assert len(ALL) > 40 and len(pages) > 12
    assert {"start-pipeline.md", "start-classic.md"} <= pages


def understood(command: str) -> None:
    """Parse a command as its program does; raises what the program raises."""
    program, *words = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[0] in targets, words
    elif program == "python":
        name, *rest = words[2:]
        if name in ("--help", "-h"):
            return
        if name in TABULAR:
            tabular.parser(name, classic.PROG).parse_intermixed_args(rest)
        else:
            parser = deep.Parser(raises=ValueError, prog=name)
            deep._add(parser, name)
            parser.parse_intermixed_args(rest)
    elif words[0] in cli.TOOLS:
        tool = importlib.import_module(cli.TOOLS[words[0]][1])
        if hasattr(tool, "_parser"):
            config_of(tool._parser().parse_intermixed_args(words[1:]))
    else:
        arguments = cli._parser().parse_intermixed_args(words)
        config_of(arguments)
        cli._check_command(arguments.command, load_experiment(arguments.config).methods())


def config_of(arguments: object) -> None:
    """The file is there and its keys are valid."""
    config = getattr(arguments, "config", None)
    if config is not None:
        assert (ROOT / config).is_file(), config
        load_experiment(ROOT / config, getattr(arguments, "overrides", None) or [])


@pytest.mark.parametrize(("page", "command"), ALL)
def test_a_command_is_understood(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    understood(command)


@pytest.mark.parametrize(
    "command",
    ["rlhf runn --config configs/tiny.yaml", "rlhf run --config configs/tiny.yaml ppo.lrr=1",
     "rlhf run --config configs/absent.yaml", "rlhf plan --no-such-flag", "make nothing",
     "python -m classic_rl q-learning --no-such-flag"],
)  # fmt: skip
def test_a_wrong_command_is_found_out(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)):
        understood(command)


# What runs each command of the quick starts: a test file, and what stands in it. `make quickstart`
# takes 18 minutes: its recipe is held there, and the same stages run on configs/tiny.yaml.
RUN_BY = {
    "make tiny": ("tests/project/test_whole_run.py", 'run("tiny.yaml"'),
    "make quickstart": ("tests/project/test_readme.py", "test_make_targets"),
    "rlhf inspect runs/tiny": ("tests/pipeline/report/test_inspect.py", "inspect"),
    "rlhf run": ("tests/project/test_whole_run.py", "run("),
    "rlhf plan": ("tests/pipeline/plan", 'cli.main(["plan"'),
    "python -m classic_rl": ("tests/project/test_readme.py", "classic.main("),
}


@pytest.mark.parametrize("name", ["start-pipeline.md", "start-classic.md"])
def test_the_quick_starts_are_run_somewhere(name: str) -> None:
    for command in [command for page, command in ALL if page == name]:
        [place] = [where for begin, where in RUN_BY.items() if command.startswith(begin)]
        path = ROOT / place[0]
        files = path.rglob("*.py") if path.is_dir() else [path]
        assert any(place[1] in file.read_text(encoding="utf-8") for file in files), command


@pytest.mark.parametrize(
    "line", [c.removeprefix("python -m classic_rl ") for p, c in ALL
             if p == "start-classic.md" and " ppo " not in c],
)  # fmt: skip
def test_short_commands_of_the_classic_start_run(line: str, tmp_path: Path) -> None:
    words = [*line.split(), "--out", str(tmp_path), "--no-pictures"]
    words += ["--eval-episodes", "10", "--seeds", "0"]
    assert classic.main(words) == 0
    assert (tmp_path / "results.json").is_file()


def test_named_files_exist() -> None:
    for page in ("start-pipeline.md", "start-classic.md", "which-method.md", "troubleshooting.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        for name in re.findall(r"(?:configs|scripts|tests|benchmarks)/[\w./-]+\.\w+", text):
            assert (ROOT / name).is_file(), name


def test_metrics_of_troubleshooting_are_documented() -> None:
    documented = (DOCS / "ppo-metrics.md").read_text(encoding="utf-8")
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:objective|policy|val|loss|engine)/\w+|eval_\w+)`", text))
    assert len(names) > 15
    assert {name for name in names if f"`{name}`" not in documented} == set()
