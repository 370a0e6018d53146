"""The command line: exit codes, one-line errors, a quick --help, interruption."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import cli, runner
from pipeline.config import Experiment
from tests.nursery import Nursery


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["sft"], "--config"),
        ([], "--config"),
        (["stf", "--config", "x.yaml"], "invalid choice"),
        (["sft", "--config", "none.yaml"], "none.yaml: no such file"),
        (["sft", "--config", "x.yaml", "--owerwrite"], "--owerwrite"),
    ],
)
def test_wrong_arguments(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    assert expected in error_line(capsys)


def test_wrong_override(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "sft.max_step=1", "--config", str(tiny)]) == 2
    assert "did you mean sft.max_steps?" in error_line(capsys)


def test_overrides_may_stand_anywhere(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []
    monkeypatch.setattr(
        runner,
        "stage_function",
        lambda stage: lambda experiment: seen.append((experiment.seed, experiment.name)),
    )
    argv = [
        "sft",
        "seed=3",
        "--config",
        str(tiny),
        f"output_dir={tmp_path}",
        "--overwrite",
        "name=n",
    ]
    assert cli.main(argv) == 0
    assert seen == [(3, "n")]


def test_user_error_of_a_stage(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(experiment: Experiment) -> None:
        raise cli.UserError("rewards.py: returned 3 rewards for 4 completions")

    monkeypatch.setattr(runner, "stage_function", lambda _: stage)
    assert cli.main(["sft", "--config", str(tiny), f"output_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: rewards.py: returned 3 rewards for 4 completions"
    )


def test_help_is_quick_and_complete(root: Path) -> None:
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch','pydantic','transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("[]")
    for word in (*cli.commands(), *cli.TOOLS, "examples:", "--overwrite", "configs/tiny.yaml"):
        assert word in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("rlhf ")


def in_a_slow_stage(*words: str) -> int:
    """The command line in another process, with a stage that lasts a minute."""

    def stage(experiment: Experiment) -> None:
        (experiment.stage_dir("sft") / "working").touch()
        time.sleep(60)

    runner.stage_function = lambda _: stage
    # As where Python starts in the foreground; in a shell's background SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main(list(words))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption(nursery: Nursery, tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    words = ["sft", "--config", str(tiny), f"output_dir={tmp_path}"]
    log = tmp_path / "log"
    pid = nursery.start(log, f"{__name__}:in_a_slow_stage", *words)
    started = time.monotonic()
    while not (tmp_path / "sft" / "working").exists():
        assert time.monotonic() - started < 120, log.read_text()
        time.sleep(0.1)
    os.kill(pid, number)
    assert nursery.wait(pid) == 130
    err = log.read_text()
    assert err.splitlines()[-1] == "interrupted; run the same command to resume"
    assert "Traceback" not in err
    assert (tmp_path / "sft" / "stage.json").is_file()


@pytest.mark.parametrize(
    ("module", "names"),
    {
        "pipeline.ppo": ["PPOConfig", "PPOTrainer"],
        "pipeline.config": ["load_experiment"],
        "pipeline.errors": ["UserError"],
        "pipeline.data": ["load_data", "load_preferences"],
        "pipeline.models": ["load_checkpoint"],
        "pipeline.generation": ["sample"],
        "pipeline.cli": ["main"],
        "reward_models": ["load_reward", "RewardError"],
        "classic_rl.algorithms": ["find_algorithm"],
        "classic_rl.cli": ["main"],
    }.items(),
)
def test_public_names(module: str, names: list[str]) -> None:
    """What scripts import stays where it is, however the code within is arranged."""
    for name in names:
        assert callable(getattr(importlib.import_module(module), name))


def test_unknown_names_of_the_config_are_unknown() -> None:
    with pytest.raises(ImportError, match="nothing_such"):
        from pipeline.config import nothing_such  # pyright: ignore[reportAttributeAccessIssue]  # noqa: F401, I001
