"""Each half of classic_rl, installed by pip into an environment of its own, away from the checkout.

    python -m pytest -q -s -m long tests/project/test_bare_install.py

prints how long the installation takes and how large it is. pip must reach a package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.checkout import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
MIB = 2**20
OF_ONE_ALONE = ("pyproject.toml", "LICENSE")  # which the pipeline's wheel keeps elsewhere


class Bare:
    """A virtual environment with what pip installed for one requirement."""

    def __init__(self, folder: Path, requirement: str) -> None:
        self.folder, self.work = folder / "env", folder / "work"
        self.work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        empty, began = self.size(), time.monotonic()
        self.run("python", "-m", "pip", "install", "--quiet", requirement)
        self.seconds = time.monotonic() - began
        self.mib = (self.size() - empty) / MIB

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if path.is_file())

    def run(self, program: str, *words: str) -> str:
        """What a program of the environment prints, started in an empty folder."""
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            [str(self.folder / "bin" / program), *words],
            cwd=self.work, env=clean, capture_output=True, text=True, timeout=1500,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def packages(self) -> set[str]:
        """The distributions, pip and setuptools left out."""
        listed = json.loads(self.run("python", "-m", "pip", "list", "--format", "json"))
        return {one["name"].lower() for one in listed} - {"pip", "setuptools"}

    def tell(self, what: str) -> None:
        count = len(self.packages())
        print(f"\n{what}: {self.seconds:.0f} s, {self.mib:.0f} MiB, {count} packages")


def test_tables(tmp_path: Path) -> None:
    bare = Bare(tmp_path, str(ROOT / "classic_rl"))
    bare.tell("pip install ./classic_rl")
    assert "classic-rl" in bare.packages()
    assert not {"torch", "transformers", "rlhf-pipeline"} & bare.packages()
    where = bare.run("python", "-c", "import classic_rl, common; print(classic_rl.__file__)")
    assert Path(where.strip()).is_relative_to(bare.folder)
    shown = bare.run("classic-rl", "value-iteration", "--env", "GridWorld3x4", "--gamma", "0.9")
    assert "0.72" in shown  # the chance not to slip, discounted once
    shown = bare.run("python", "-m", "classic_rl", "q-learning", "--env", "FrozenLake-v1")
    assert "exact optimum of this return 0.74" in shown


def test_networks(tmp_path: Path) -> None:
    """From a clone, by its subdirectory, as from a git host."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    # pip before 24 reads no address without a host.
    address = clone.as_uri().replace("file:///", "file://localhost/")
    bare = Bare(tmp_path, f"classic-rl[deep] @ git+{address}#subdirectory=classic_rl")
    bare.tell('pip install "classic-rl[deep] @ git+…#subdirectory=classic_rl"')
    assert {"classic-rl", "torch"} <= bare.packages()
    assert not {"transformers", "trl", "rlhf-pipeline"} & bare.packages()
    shown = bare.run("classic-rl", "ppo", "--env", "CartPole-v1", "--print-config")
    assert "n_envs: 32" in shown  # the tuned settings came along
    bare.run("classic-rl", "ppo", "--env", "CartPole-v1", "--steps", "3000", "--episodes", "5")
    shown = bare.run("classic-rl", "evaluate", "runs/classic/ppo-CartPole-v1-seed0")
    assert "100 episodes: return" in shown


def test_both_wheels_hold_the_same_classic_rl(tmp_path: Path) -> None:
    """All of it: code, tuned settings, py.typed; each file alike to the byte."""
    clone = tmp_path / "clone"  # setuptools builds where the sources are
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    held = []
    for source in (clone, clone / "classic_rl"):
        target = tmp_path / f"wheel-{source.name}"
        words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(target), str(source)]
        subprocess.run([sys.executable, *words], check=True)
        [wheel] = target.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("classic_rl/")]
            held.append({name: archive.read(name) for name in names})
    pipeline, alone = held
    alone = {name: text for name, text in alone.items() if Path(name).name not in OF_ONE_ALONE}
    assert pipeline == alone
    settings = {path.name for path in (clone / "configs" / "classic").iterdir()}
    assert settings == {Path(name).name for name in alone if name.endswith(".yaml")} != set()
