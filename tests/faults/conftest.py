"""What the fault tests share: runs of the PPO stage after finished stages before it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nursery import Nursery

ROWS, STEPS = 32, 4  # completions and optimizer steps of one of the config's rollouts
MODEL = Path("ppo", "model", "model.safetensors")


class Run:
    """One output folder whose PPO stage is to be run, by the same command again and again."""

    def __init__(self, nursery: Nursery, folder: Path, words: list[str]) -> None:
        self.nursery, self.folder, self.words = nursery, folder, words
        self.log = folder.parent / f"{folder.name}.log"
        self.checkpoints = folder / "ppo" / "checkpoints"

    def command(self, *more: str) -> list[str]:
        """The words after `rlhf`."""
        return ["ppo", *self.words, f"output_dir={self.folder}", *more]

    def start(self, *more: str) -> int:
        """Begin; returns the process id."""
        return self.nursery.start(self.log, "rlhf", *self.command(*more))

    def finish(self, *more: str) -> tuple[int, str]:
        """Run to the end: the exit code and what was printed by this call."""
        before = self.text()
        code = self.nursery.wait(self.start(*more))
        return code, self.text()[len(before) :]

    def text(self) -> str:
        """All that was printed so far."""
        return self.log.read_text(encoding="utf-8") if self.log.is_file() else ""

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are marked whole, ascending."""
        marked = self.checkpoints.glob("checkpoint-*/complete.json")
        return sorted(int(path.parent.name.rpartition("-")[2]) for path in marked)

    def weights(self) -> bytes:
        """The finished policy's file."""
        return (self.folder / MODEL).read_bytes()


@pytest.fixture(scope="session")
def base(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, tiny_words) -> Path:
    """A folder with finished sft and reward stages."""
    folder = tmp_path_factory.mktemp("base") / "run"
    for stage in ("sft", "reward"):
        words = [stage, *tiny_words, f"output_dir={folder}"]
        pid = nursery.start(folder.parent / f"{stage}.log", "rlhf", *words)
        assert nursery.wait(pid) == 0, (folder.parent / f"{stage}.log").read_text()
    return folder


@pytest.fixture(scope="session")
def tiny_words(tiny: Path) -> list[str]:
    """configs/tiny.yaml, a shorter reward stage, and PPO's checkpoints after every rollout."""
    return ["--config", str(tiny), "reward.num_train_epochs=1", f"ppo.save_steps={STEPS}"]


@pytest.fixture(scope="session")
def make_run_in(nursery: Nursery, base: Path, tiny_words: list[str]) -> Callable[..., Run]:
    """A function that gives a fresh :class:`Run` after finished sft and reward stages."""

    def make(folder: Path, name: str, rollouts: int, *more: str) -> Run:
        shutil.copytree(base, folder / name)
        words = [*tiny_words, f"ppo.total_episodes={ROWS * rollouts}", *more]
        return Run(nursery, folder / name, words)

    return make


@pytest.fixture
def make_run(make_run_in: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """The same in the test's own folder."""
    return functools.partial(make_run_in, tmp_path)
