"""What the children of forker.py run: the command line, with or without a fault put in."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

from pipeline import cli
from pipeline.output import quiet


def warm() -> None:
    """Import what every child needs; torch gets one thread, by the environment."""
    quiet.before_imports()
    names = ("sft", "reward", "ppo", "dpo", "compare", "report", "tracking")
    for name in ("runner", *(f"stages.{name}" for name in names)):
        __import__(f"pipeline.{name}")


def rlhf(*words: str) -> int:
    """The command line; its exit code."""
    return cli.main(list(words))


def on_a_small_disk(folder: str, base: str, small: str, large: str, *words: str) -> int:
    """Run on a disk of ``small`` bytes at ``folder``, make room, run again, copy the result out.

    The disk is a tmpfs of this process's own, gone when it ends; its first content is ``base``.
    Returns 77 where this user may not mount one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, mounts = 0x10000000, 0x00020000
    flags = mounts if os.geteuid() == 0 else user | mounts
    if libc.unshare(flags) != 0:
        return 77
    libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # private: nobody else sees it
    options = f"size={small}".encode()
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, options) != 0:
        return 77
    shutil.copytree(base, f"{folder}/run")
    code = cli.main(list(words))
    kept = sorted(path.name for path in Path(folder, "run", "ppo", "checkpoints").glob("c*-*"))
    print("after the full disk:", code, kept, file=sys.stderr)
    if code != 2:
        return 1
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0x20, f"size={large}".encode()) != 0:
        return 1
    code = cli.main(list(words))
    shutil.copytree(f"{folder}/run/ppo", f"{base}/ppo-from-small-disk")
    return code
