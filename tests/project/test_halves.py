"""classic_rl's halves need no more than they say: tables no torch, networks no transformers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from common import files
from tests.checkout import ROOT

# Without these the tables must do, and without the last ones the networks as well.
HEAVY = ("torch", "safetensors", "yaml", "numba")
FOREIGN = ("transformers", "trl", "peft", "datasets", "accelerate", "wandb", "tensorboard")
FOREIGN += ("pydantic", "httpx2", "pipeline", "reward_models", "ale_py", "minatar", "Box2D")
# Modules of the deep half outside of classic_rl/deep.
DEEP = {"a2c", "advantages", "dqn", "gradient_variance", "losses", "ppo", "reinforce"}

CHILD = """
import importlib, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # importing it fails, as where it is not installed
for name in sys.argv[2].split(","):
    importlib.import_module(name)
from classic_rl.cli import main
for command in sys.argv[3:]:
    print(">>>", main(command.split()), command)
"""


def modules(deep: bool) -> list[str]:
    """The modules of a half."""
    found = []
    for path in sorted((ROOT / "classic_rl").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name.startswith("__") or (parts[1] == "deep" or parts[1] in DEEP) is not deep:
            continue
        found.append(".".join(parts))
    return found


def child(
    blocked: tuple[str, ...], imported: list[str], *commands: str, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Import the modules and run the commands where the blocked packages are missing."""
    words = [sys.executable, "-c", CHILD, ",".join(blocked), ",".join(imported), *commands]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_tables_without_torch(tmp_path: Path) -> None:
    # Importing what numba compiles is refused by name: tests/classic_rl/tabular/test_planning.py.
    names = [name for name in modules(deep=False) if ".compiled" not in name]
    assert {"classic_rl.tabular.planning", "classic_rl.envs.tokens"} <= set(names)
    plan = "value-iteration --env GridWorld3x4 --gamma 0.9 --out plan"
    learn = "q-learning --env FrozenLake-v1 --steps 2000 --eval-episodes 20 --no-pictures --out q"
    deep = "ppo --env CartPole-v1 --steps 200"
    done = child((*HEAVY, *FOREIGN), names, "--help", plan, learn, deep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line[:5] for line in done.stdout.splitlines() if line[:3] == ">>>"] == [
        ">>> 0",
        ">>> 0",
        ">>> 0",
        ">>> 2",
    ]
    assert done.stderr.splitlines()[-1] == (
        "error: ppo needs torch and safetensors and yaml, which tables do without:"
        " install classic-rl[deep]"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"plan", "q"}


def test_networks_without_transformers(tmp_path: Path) -> None:
    names = modules(deep=True)
    assert {"classic_rl.ppo", "classic_rl.deep.training"} <= set(names)
    ppo = "ppo --env CartPole-v1 --steps 2000 --episodes 2 --track --out ppo"
    done = child(FOREIGN, names, ppo, "evaluate ppo --episodes 1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(">>> 0") == 2
    warned = [line for line in done.stderr.splitlines() if "warning" in line]
    assert len(warned) == 1 and "Weights & Biases" in warned[0]
    assert "pip install wandb. Going on without it." in warned[0]


def test_the_two_distributions_ask_for_the_same() -> None:
    """A requirement that both name reads alike, and the version stands in one place."""

    def requirements(path: Path) -> tuple[dict, dict[str, str]]:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        texts = project["dependencies"] + [text for extra in extras.values() for text in extra]
        # The name ends where the version begins.
        names = [text.partition(">")[0].partition("=")[0].partition("~")[0] for text in texts]
        return project, dict(zip(names, texts, strict=True))

    whole, of_whole = requirements(ROOT / "pyproject.toml")
    part, of_part = requirements(ROOT / "classic_rl" / "pyproject.toml")
    shared = of_whole.keys() & of_part.keys()
    assert {"torch", "numpy", "gymnasium", "matplotlib", "wandb"} <= shared
    assert {name: of_whole[name] for name in shared} == {name: of_part[name] for name in shared}
    assert "version" in whole and part["dynamic"] == ["version"]
    for extra in ("numba", "box2d", "atari", "minatar", "tensorboard"):
        assert part["optional-dependencies"][extra] == whole["optional-dependencies"][extra]


def test_what_is_packaged_of_common_is_what_is_imported() -> None:
    """Neither a module too few, which would fail where it is installed, nor one too many."""
    text = (ROOT / "classic_rl" / "pyproject.toml").read_text(encoding="utf-8")
    wheel = tomllib.loads(text)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    packaged = {Path(to).stem for to in wheel.values() if to.startswith("common/")}
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "classic_rl").rglob("*.py")]
    wanted, seen = {"__init__", "py"}, set()
    while sources:
        for name in _of_common(sources.pop()) - seen:
            seen.add(name)
            sources.append((ROOT / "common" / f"{name}.py").read_text(encoding="utf-8"))
    assert packaged == wanted | seen
    assert files.__name__.partition(".")[2] in seen


def _of_common(source: str) -> set[str]:
    """The modules of common/ that a source imports."""
    dotted = re.findall(r"^\s*from common\.(\w+) import", source, re.M)
    plain = re.findall(r"^\s*from common import (.+)$", source, re.M)
    return {*dotted, *(name.strip() for line in plain for name in line.split(","))}
