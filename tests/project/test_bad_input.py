"""A user's mistakes end in one line that names the place and the mend, exit code 2, and no harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import cli

DATA = "data.dataset_name={}"


def file(name: str, content: bytes) -> Callable[[Path], list[str]]:
    """Overrides that name a data file with this content."""

    def make(folder: Path) -> list[str]:
        path = folder / name
        path.write_bytes(content)
        return [DATA.format(path)]

    return make


def reward(body: str) -> Callable[[Path], list[str]]:
    """Overrides that name a reward function with this body."""

    def make(folder: Path) -> list[str]:
        path = folder / "mine.py"
        path.write_text(f"def score(prompts, completions):\n    {body}\n")
        return [f"reward.source={path}:score"]

    return make


def blocked(folder: Path) -> list[str]:
    """An output folder below a file, which nobody can write to, root included."""
    (folder / "file").write_text("")
    return [f"output_dir={folder / 'file' / 'run'}"]


def no_model(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return [f"model.model_name_or_path={folder / 'empty'}"]


ROW = b'{"text": "a film about love that is rather dull to sit through", "label": 1}\n'
MISTAKES: dict[str, tuple[Callable[[Path], list[str]], str, str]] = {
    "unknown key": (lambda _: ["ppo.kl_coeff=0.1"], "sft", "ppo.kl_coeff"),
    "wrong type": (lambda _: ["sft.learning_rate=fast"], "sft", "learning_rate"),
    "out of range": (lambda _: ["beta=-1"], "sft", "beta"),
    "PPO's bounds": (lambda _: ["ppo.reward_timeout=-1"], "sft", "ppo.reward_timeout"),
    "PPO's clash": (lambda _: ["ppo.kl_in=loss"], "sft", "ppo.kl_estimator"),
    "cannot work": (lambda _: ["sft.assistant_only_loss=true"], "sft", "assistant_only_loss"),
    "missing file": (lambda d: [DATA.format(d / "none.jsonl")], "sft", "none.jsonl"),
    "empty file": (file("empty.jsonl", b""), "sft", "empty.jsonl"),
    "no column": (file("rows.jsonl", ROW + b'{"label": 1}\n'), "sft", "text"),
    "not UTF-8": (file("latin.jsonl", ROW + b'{"text": "caf\xe9", "label": 1}\n'), "sft", "UTF-8"),
    "no model": (no_model, "sft", "empty"),
    "no reward file": (lambda d: [f"reward.source={d}/none.py:score"], "reward", "none.py"),
    "wrong length": (reward("return [1.0]"), "reward", "score"),
    "NaN": (reward("return [float('nan')] * len(completions)"), "reward", "nan"),
    "raises": (reward("raise ValueError('no such lexicon')"), "reward", "no such lexicon"),
    "unwritable": (blocked, "sft", "file"),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda name: name.replace(" ", "-"))
def test_one_line_and_exit_code_two(
    mistake: str, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, stage, named = MISTAKES[mistake]
    overrides = [f"output_dir={tmp_path / 'run'}", *make(tmp_path)]
    assert cli.main([stage, "--config", str(tiny), *overrides]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert named.lower() in errors[0].lower()
    assert not list(tmp_path.glob("run/*/model"))


def test_missing_config(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capfd.readouterr().err


def test_other_settings_never_overwrite_finished_outputs(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["sft", "--config", str(tiny), f"output_dir={tmp_path / 'run'}", "sft.max_steps=2"]
    assert cli.main(command) == 0
    weights = (tmp_path / "run" / "sft" / "model" / "model.safetensors").read_bytes()
    assert cli.main([*command, "sft.learning_rate=1e-4"]) == 2
    assert "sft.learning_rate" in capfd.readouterr().err
    assert (tmp_path / "run" / "sft" / "model" / "model.safetensors").read_bytes() == weights
    assert cli.main(command) == 0  # the same settings: skipped
