"""The packages import where there is no Unix: no module of theirs needs one's own modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

CHECKOUT = Path(pipeline.__path__[0]).parent
PACKAGES = tuple(sorted(path.parent.name for path in CHECKOUT.glob("*/__init__.py")))
UNIX = ("fcntl", "resource", "termios", "pwd", "grp")

# Other packages have their own ways around what is missing, so that only ours meet it here.
IMPORT_ALL = """
import builtins, importlib, pkgutil
plain = builtins.__import__
def guarded(name, globals=None, *rest, **named):
    importer = (globals or {{}}).get("__name__", "")
    if name in {unix} and importer.partition(".")[0] in {packages}:
        raise ImportError(f"{{importer}} imports {{name}}")
    return plain(name, globals, *rest, **named)
builtins.__import__ = guarded
count = 0
for package in {packages}:
    for module in pkgutil.walk_packages([package], package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
print("imported", count)
"""


def test_every_module_imports_without_unix(root: Path) -> None:
    code = IMPORT_ALL.format(unix=UNIX, packages=PACKAGES)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    word, count = done.stdout.splitlines()[-1].split()
    assert word == "imported" and int(count) > 100


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_imports_them_either(root: Path, package: str) -> None:
    files = list((root / package).rglob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not set(names) & set(UNIX), path
