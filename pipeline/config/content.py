"""What a config value names on this machine, by its content."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Container
from pathlib import Path

from pipeline.config.rewards import is_trained_here

# Files above this are known by their size and both ends: hashing tens of GB at every start would
# cost more than it tells.
_WHOLE = 64 * 2**20
_END = 2**20
CARD_MARK = "<!-- This card is rewritten when more is measured; without this line it is kept. -->"
"""Ends a policy's model card."""


def _hash_file(path: Path) -> str:
    """sha256 of a file's content (of size, first and last MiB when it is large)."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
        else:
            digest.update(f"{size}:".encode() + stream.read(_END))
            stream.seek(size - _END)
            digest.update(stream.read())
    return digest.hexdigest()


def _file_of(module: str) -> Path:
    """The file of a module: below the current folder, else where Python finds it."""
    path = Path(module.replace(".", "/") + ".py")
    if path.is_file():
        return path
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    return Path(found.origin) if found and found.origin else path


def is_own_card(file: Path) -> bool:
    """Whether a README.md is a card of this project, which is completed after a comparison.

    Nothing is made from it, so it counts for no content: what builds on the model stays valid.
    """
    if file.name != "README.md":
        return False
    return CARD_MARK in file.read_text(encoding="utf-8", errors="replace")


def content_hash(name: str | None, without: Container[str] = ()) -> str | None:
    """sha256 of what a config value names on this machine; None when it names nothing here.

    Args:
        name: a file, a folder, or a Python function as `file.py:function` or `module:function`.
        without: files at the top of a folder that do not count.
    """
    if not name or name.startswith("embedded:") or name == "toy" or is_trained_here(name):
        return None
    path = Path(name).expanduser()
    if not path.exists() and ":" in name:
        module = name.rpartition(":")[0]
        path = Path(module) if module.endswith(".py") else _file_of(module)
    if path.is_file():
        return _hash_file(path)
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        relative = file.relative_to(path)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and str(relative) not in without and not is_own_card(file):
            digest.update(f"{relative.as_posix()}\0{_hash_file(file)}\n".encode())
    return digest.hexdigest()


def checkpoint_hash(source: str) -> str | None:
    """sha256 of a checkpoint on this machine, an adapter's with its base; None for a hub id."""
    digest = content_hash(source)
    try:
        adapter = Path(source).expanduser() / "adapter_config.json"
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        below = content_hash(base)
    except (OSError, ValueError, KeyError, TypeError):  # no adapter, or one that is refused
        return digest
    if digest is None or below is None:
        return digest
    return hashlib.sha256(f"{digest}\n{below}".encode()).hexdigest()
