"""A damaged checkpoint costs a rollout and a full disk costs nothing but the time to make room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

ROLLOUTS = 6


@pytest.fixture(scope="module")
def whole(make_run_in, tmp_path_factory: pytest.TempPathFactory) -> bytes:  # noqa: ANN001
    """The weights that the undisturbed run ends with."""
    run = make_run_in(tmp_path_factory.mktemp("whole"), "whole", ROLLOUTS)
    code, text = run.finish()
    assert code == 0, text
    return run.weights()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "optimizer.pt": (cut, "bytes of optimizer.pt instead of"),
    "model.safetensors": (flip, "other content in model.safetensors"),
    "rng_state.pth": (Path.unlink, "lacks rng_state.pth"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_newest_checkpoint_is_broken(make_run, name: str, whole: bytes) -> None:  # noqa: ANN001
    """Of a run that was killed after its third checkpoint or later."""
    from tests.faults.test_kills import kill_when

    run = make_run("run", ROLLOUTS)
    pid = run.start()
    kill_when(pid, lambda: len(run.steps()) == 2 and run.steps()[-1] >= 12, 0.0)
    run.nursery.wait(pid)
    before, newest = run.steps()[-2:]
    DAMAGES[name][0](run.checkpoints / f"checkpoint-{newest}" / name)
    code, text = run.finish()
    assert code == 0, text
    (line,) = [line for line in text.splitlines() if "skipped" in line]
    assert f"checkpoint-{newest} " in line and DAMAGES[name][1] in line
    assert f"going on from checkpoint-{before}" in line
    assert run.weights() == whole


@pytest.mark.parametrize(
    ("room", "overrides", "left"),
    [(0.4, (), 0), (1.7, (), 2), (0.1, ("ppo.save_strategy=no",), 0)],
    ids=["the first checkpoint", "a later checkpoint", "the rest"],
)
def test_a_full_disk(
    make_run,  # noqa: ANN001
    room: float,
    overrides: tuple[str, ...],
    left: int,
    whole: bytes,
) -> None:
    """A file system with ``room`` MiB for the PPO stage, enlarged before the second try."""
    run = make_run("run", ROLLOUTS, *overrides)
    disk = run.folder.parent / "disk"
    disk.mkdir()
    page = 4096
    used = sum(-(-p.stat().st_size // page) * page for p in run.folder.rglob("*"))
    small, large = int(used + room * 2**20), used + 2**26
    words = [*run.command()[:-1], f"output_dir={disk / 'run'}"]
    arguments = [str(disk), str(run.folder), str(small), str(large), *words]
    code = run.nursery.wait(run.nursery.start(run.log, "on_a_small_disk", *arguments))
    if code == 77:
        pytest.skip("this user may not mount a tmpfs of its own")
    text = run.text()
    assert code == 0, text
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert f"output_dir {disk / 'run'}: the disk is full; free some space" in error
    (after,) = [line for line in text.splitlines() if line.startswith("after the full disk")]
    assert after.count("checkpoint-") >= left
    finished = run.folder / "ppo-from-small-disk" / "model" / "model.safetensors"
    assert finished.read_bytes() == whole
