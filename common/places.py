"""Where an error of somebody else's code was raised."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OURS = [_ROOT / name for name in ("classic_rl", "common", "pipeline", "reward_models")]
_PYTHON = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")]


def raised_at(error: BaseException) -> tuple[Path, int] | None:
    """The file and line of ``error`` that its author can mend; None where it was never raised.

    The last line that belongs neither to Python, nor to an installed package, nor to this project:
    a library that was called in a wrong way raises in its own file, and what replaces a function
    (as wandb does ``sys.exit``) stands in between. Where all lines are such, the last one.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_a_librarys(frame.filename)]
    if not frames:
        return None
    last = own[-1] if own else frames[-1]
    return Path(last.filename), last.lineno or 0


def _is_a_librarys(name: str) -> bool:
    path = Path(name)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    known = any(path.is_relative_to(folder) for folder in (*_OURS, *_PYTHON))
    return bool(installed) or known or name.startswith("<frozen ")
