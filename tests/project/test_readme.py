"""Every command and every snippet of the README works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from classic_rl import cli as classic
from pipeline import cli
from pipeline.config import load_experiment
from pipeline.data import toy
from pipeline.lm.models import prepare
from tests.checkout import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippet(marker: str) -> str:
    """The Python block of the README that holds ``marker``, without its indentation."""
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)
    [(indent, body)] = [block for block in blocks if marker in block[1]]
    return re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make (\w+)", README)) - {"made"}))
def test_make_targets(target: str) -> None:
    command = ["make", "-n", target, f"RLHF_PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    wanted = {
        "quickstart": "pipeline run --config", "tiny": "tiny.yaml", "test": "pytest -q",
        "site": "sphinx --quiet", "notebooks": "notebooks/run.py",
    }  # fmt: skip
    assert wanted[target] in done.stdout


@pytest.mark.parametrize("stage", sorted(set(re.findall(r"`rlhf ([\w-]+)", README))))
def test_stages_exist(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([stage, "--help"])
    assert end.value.code == 0
    own = {"inspect": "--step", "certify": "--methods", "evaluate-reward": "--reward"}
    assert own.get(stage, "--config") in capsys.readouterr().out


CLASSIC = re.findall(r"^python -m classic_rl (.+)$", README, re.MULTILINE)


@pytest.mark.parametrize("command", CLASSIC)
def test_classic_commands(command: str, tmp_path: Path) -> None:
    assert classic.main([*command.split(), "--out", str(tmp_path)]) == 0
    assert any(tmp_path.iterdir())


def test_named_files_exist() -> None:
    for name in re.findall(r"(?:configs|docs|tests|benchmarks|notebooks)/[\w./-]+\.\w+", README):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_are_valid(config: Path) -> None:
    load_experiment(config)


def test_overrides_of_the_examples_are_valid() -> None:
    overrides = re.findall(r"(?:model|data|reward|tracking|ppo)\.\w+=[^\s`]+", README)
    assert len(overrides) >= 6
    for override in overrides:
        if override.endswith("="):
            continue
        free = ["model.use_peft=false"] if "policy_modules" in override else []
        load_experiment(ROOT / "configs" / "quickstart.yaml", [*free, override])


def test_reward_function_example(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(snippet("# mine.py"), encoding="utf-8")
    arguments = ["--config", str(tiny), f"output_dir={tmp_path / 'run'}"]
    assert cli.main(["reward", *arguments, f"reward.source={path}:score"]) == 0


def test_trainer_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = toy.toy_tokenizer()
    names = {
        "model": prepare(toy.toy_language_model(0), tokenizer),
        "tokenizer": tokenizer,
        "prompts": ["the film", "a movie about love"] * 4,
        "score": lambda prompts, completions: [float(len(c)) for c in completions],
    }
    code = snippet("PPOTrainer(").replace("total_episodes=4096", "total_episodes=64, use_cpu=True")
    exec(compile(code, "README.md", "exec"), names)
    assert names["trainer"].state.global_step > 0  # type: ignore[attr-defined]
