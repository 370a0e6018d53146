"""Which code a certificate stands for: the modules that train and measure, and all they import."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGES = ("pipeline", "classic_rl", "reward_models", "common")
"""This project's own; every import from them is followed."""
ENTRIES = ("pipeline.certify.study", "pipeline.certify.switches")
"""The modules that train the methods and measure them."""
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "numpy", "scipy")


def _file(module: str, root: Path) -> Path | None:
    """The source of one of our modules below ``root``; None when it is none of them."""
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = root.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _imports(path: Path, module: str) -> Iterator[str]:
    """The names that a file imports anywhere in it, within functions too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)  # some are modules


def closure(entries: Iterable[str], root: Path) -> dict[str, Path]:
    """Our modules that ``entries`` import, directly or not, with them: their files by name.

    Packages above a module count, as importing it runs them.
    """
    files: dict[str, Path] = {}
    todo = list(entries)
    while todo:
        module = todo.pop()
        path = None if module in files else _file(module, root)
        if path is not None:
            files[module] = path
            todo += [module.rpartition(".")[0], *_imports(path, module)]
    return dict(sorted(files.items()))


def digest(root: Path) -> str:
    """A digest of the code below ``root`` that trains and measures, and of the libraries used."""
    made = hashlib.sha256()
    for module, path in closure(ENTRIES, root).items():
        made.update(f"{module}\0".encode() + path.read_bytes() + b"\0")
    for library in LIBRARIES:
        made.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    return made.hexdigest()[:16]
