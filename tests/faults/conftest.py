"""What the fault tests share: a process to fork from, and a finished run to compare with."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS, STEPS = 32, 4  # completions and optimizer steps of one of the config's rollouts
MODEL = Path("ppo", "model", "model.safetensors")


class Nursery:
    """Starts runs within milliseconds, see nursery.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def start(self, log: Path, function: str, *arguments: str) -> int:
        """Call a function of in_child.py in a new process, its output in ``log``; its id."""
        return self._ask("start", str(log), function, *arguments)

    def wait(self, pid: int) -> int:
        """The exit status, negative for a signal."""
        return self._ask("wait", str(pid))

    def close(self) -> None:
        """End the process that children are forked from."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, *request: str) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


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
def nursery() -> Iterator[Nursery]:
    """The process that children are forked from."""
    made = Nursery()
    yield made
    made.close()


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
def tiny_words() -> list[str]:
    """configs/tiny.yaml, a shorter reward stage, and PPO's checkpoints after every rollout."""
    config = HERE.parents[1] / "configs" / "tiny.yaml"
    return ["--config", str(config), "reward.num_train_epochs=1", f"ppo.save_steps={STEPS}"]


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
