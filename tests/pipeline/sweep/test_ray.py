"""On a cluster of two nodes: one killed, its driver killed, one with a full disk; nothing is lost.

The nodes are processes of this machine, made by Ray's own test utilities, with one core each: two
trials run at a time, one on each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.files import read_json
from pipeline.sweep import command
from tests.checkout import ROOT
from tests.pipeline.sweep.told import SETTINGS, TRIALS, Told, same_numbers, wait_until

_WHY = "ray is not installed: pip install 'rlhf-pipeline[ray]'"
ray, cluster_utils = (pytest.importorskip(n, reason=_WHY) for n in ("ray", "ray.cluster_utils"))
pytestmark = pytest.mark.slow

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of one node; tests add the second."""
    head = {**NODE, "include_dashboard": False}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    yield made
    ray.shutdown()
    made.shutdown()


def words(told: Told, folder: Path, address: str) -> list[str]:
    return [
        *told.words[:2],
        f"output_dir={folder}",
        *SETTINGS,
        "--runner=ray",
        f"sweep.ray.address={address}",
    ]


def training(folder: Path) -> list[Path]:
    """Records of trials' policies."""
    found = folder.glob("trials/*/*/stage.json")
    return [path for path in found if path.parent.name != "compare"]


def tries(folder: Path) -> dict[str, int]:
    """How often each trial's policy was begun."""
    logs = {name: (folder / "trials" / name / "log.txt").read_text() for name in TRIALS}
    policies = {name: name.partition("-")[0] for name in TRIALS}
    return {
        name: sum(text.count(f"{policies[name]}: {how}") for how in ("starting", "resuming"))
        for name, text in logs.items()
    }


def test_a_node_is_killed_in_the_middle(nodes: Any, told: Told, tmp_path: Path) -> None:
    second, folder = nodes.add_node(**NODE), tmp_path / "s"
    killed = threading.Event()

    def kill() -> None:
        wait_until(lambda: len(training(folder)) >= 2)
        nodes.remove_node(second, allow_graceful=False)
        killed.set()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert command.main(words(told, folder, nodes.address)) == 0
    thread.join()
    assert killed.is_set()
    same_numbers(folder, told.folder)
    assert {row["state"] for row in read_json(folder / "sweep.json")["trials"]} == {"done"}


def test_the_driver_is_killed(nodes: Any, told: Told, tmp_path: Path) -> None:
    nodes.add_node(**NODE)
    folder = tmp_path / "s"
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "sweep", *words(told, folder, nodes.address)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(training(folder)) >= 2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    shared = {path: path.stat().st_mtime_ns for path in folder.glob("shared/*/stage.json")}
    assert command.main(words(told, folder, nodes.address)) == 0
    assert {path: path.stat().st_mtime_ns for path in shared} == shared
    same_numbers(folder, told.folder)
    assert max(tries(folder).values()) >= 2  # those that were stopped


def test_the_disk_of_one_node_is_full(
    nodes: Any, told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every process of a job on that node has its first stage on a disk of 200 KiB."""
    site, folder = tmp_path / "site", tmp_path / "s"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SMALL_DISK.format(site=str(site)), encoding="utf-8")
    path = os.pathsep.join([str(site), *sys.path])
    nodes.add_node(**NODE, env_vars={"PYTHONPATH": path})
    code = command.main(words(told, folder, nodes.address))
    if (site / "unable").exists():
        pytest.skip("this user may not mount a tmpfs of its own")
    text = capsys.readouterr().err
    assert code == 0, text
    assert (site / "mounted").exists() and "a full disk on node" in text, text
    same_numbers(folder, told.folder)


SMALL_DISK = """
import ctypes, os, pathlib, sys

words = sys.orig_argv
if "pipeline.sweep.trial" in words:
    at = words.index("pipeline.sweep.trial")
    folder = pathlib.Path(words[at + 1]).parent / words[at + 2]
    folder.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    flags = 0x00020000 if os.geteuid() == 0 else 0x10000000 | 0x00020000
    done = libc.unshare(flags) == 0
    libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)
    size = b"size=204800"
    done = done and libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, size) == 0
    pathlib.Path("{site}", "mounted" if done else "unable").touch()
"""
