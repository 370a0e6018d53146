"""Files that a run leaves behind: whole or not at all, and one clear line when they cannot be.

Everything is written beside its name first and then renamed onto it, so that an interrupted run
or a full disk never leaves half a file where a whole one stood.
"""

from __future__ import annotations

import io
import json
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classic_rl.errors import ProblemError
from common import files
from common.words import json_able

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("numpy", "scipy", "gymnasium", "matplotlib")


def prepare_folder(folder: str | Path) -> Path:
    """Make ``folder`` and try it, so that a run fails before its work and not after.

    Raises:
        ProblemError: where nothing can be written there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write ``data`` to ``path``, replacing what was there in one step.

    Raises:
        ProblemError: where the file cannot be written; the old one is then untouched.
    """
    path = Path(path)
    try:
        files.write_bytes(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Write ``content`` as indented JSON. Arrays become lists, numbers that JSON lacks null."""
    text = json.dumps(json_able(content), indent=2, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, (text + "\n").encode())


def write_figure(path: str | Path, figure: Figure, dpi: int = 200) -> Path:
    """Write a matplotlib figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return write_bytes(path, out.getvalue())


def versions() -> dict[str, str]:
    """The versions that a result depends on: Python's and each package's."""
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def _unwritable(path: Path, error: OSError) -> ProblemError:
    reason = (error.strerror or str(error)).lower()
    return ProblemError(f"{path}: cannot be written ({reason}); choose another place with --out")
