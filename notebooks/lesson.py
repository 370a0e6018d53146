"""What the notebooks share: exercises and claims that are checked, and small settings for tests.

A notebook's exercises stand alone: what comes after one uses the library's own function, never
yours, so that "run all" reaches the end whatever is solved.
"""

from __future__ import annotations

import inspect
import io
import os
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from IPython.display import Image, display
from matplotlib.figure import Figure

Value = TypeVar("Value")
ROOT = Path(__file__).resolve().parents[1]

SMALL = os.environ.get("RLHF_NOTEBOOKS") == "small"  # every cell runs, nothing is learned


def either(full: Value, small: Value) -> Value:
    """`full`, or `small` where a test only wants to see every cell run."""
    return small if SMALL else full


def claim(text: str, holds: object) -> None:
    """Print what was promised and that it was kept.

    Raises:
        AssertionError: it was not. With small settings nothing is judged.
    """
    if SMALL:
        print(f"· {text} (not judged with small settings)")
        return
    if not holds:
        raise AssertionError(f"this did not come out: {text}")
    print(f"✓ {text}")


class exercise(AbstractContextManager["exercise"]):
    """Check an exercise by plain assertions and print the verdict; never raise.

        with exercise("2.1"):
            assert my_return([1, 2, 3], 0.5) == 2.75, "begin at the end: G = r + γ · G′"

    The message of the assertion that fails is the hint. `...` that is still there reads as
    "not solved yet".
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            print(f"✓ exercise {self.name}: right")
            return True
        if not isinstance(error, Exception):
            return False
        if isinstance(error, AssertionError):
            hint = str(error) or "not right yet"
        else:  # the usual end of `...`: a None or an Ellipsis where a number is wanted
            hint = f"not solved yet, or {type(error).__name__}: {error}"
        print(f"✗ exercise {self.name}: {hint}")
        return True


def draw(figure: Figure) -> None:
    """Put one of the library's pictures below the cell."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    display(Image(file.getvalue()))


def show(thing: Callable[..., object] | type, begin: str = "", end: str = "") -> None:
    """Print the library's own lines of a function or class, without its docstring.

    Args:
        begin: first line shown is the first that has this text. end: the last shown has this.

    Raises:
        ValueError: no line has the text.
    """
    lines = textwrap.dedent(inspect.getsource(thing)).rstrip().splitlines()
    if thing.__doc__:
        opens = next(n for n, line in enumerate(lines) if line.lstrip(" rf").startswith('"""'))
        one_line = lines[opens].count('"""') == 2
        closes = opens if one_line else _line_with(lines, '"""', opens + 1)
        del lines[opens : closes + 1]
    first = _line_with(lines, begin, 0) if begin else 0
    last = _line_with(lines, end, first) if end else len(lines) - 1
    where = Path(inspect.getsourcefile(thing) or "").resolve()
    print(f"# {where.relative_to(ROOT) if where.is_relative_to(ROOT) else where.name}")
    print(textwrap.dedent("\n".join(lines[first : last + 1])))


def _line_with(lines: list[str], text: str, start: int) -> int:
    for number in range(start, len(lines)):
        if text in lines[number]:
            return number
    raise ValueError(f"no line has {text!r}")
