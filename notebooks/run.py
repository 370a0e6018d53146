"""Run the notebooks from top to bottom and keep them with their pictures.

    python notebooks/run.py                 # all, some minutes each: build/notebooks/*.ipynb
    python notebooks/run.py 03 05           # those
    python notebooks/run.py --small 07      # every cell, nothing learned: seconds

They are written as text (`notebooks/NN_name.py`, jupytext's percent format: Jupyter opens them by
"Open With → Notebook" once jupytext is installed, and so do VS Code and PyCharm as they are).
A cell that fails stops its notebook and is named; the others still run. What a page of the site
shows is what the last full run left in `build/notebooks`; one that failed goes to its folder
`failed`, one with small settings to `small`, and neither becomes a page.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
MADE = HERE.parent / "build" / "notebooks"
CELL_SECONDS = 1800  # of one cell, on a machine that is busy with other things too
# No remarks of the kernel's own, and no echo of a cell's last expression.
QUIET = ["--log-level=ERROR", "--InteractiveShell.ast_node_interactivity=none"]
_SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.S)


class NotebookError(Exception):
    """A notebook that is not built as a lesson must be; the message is for the user."""


@dataclass(frozen=True)
class Cell:
    """Code of a lesson: an exercise, the check of one with its solution, or neither."""

    source: str
    exercise: bool = False
    check: bool = False
    solution: str = ""  # of a check: what passes it


def paths(names: list[str] | None = None) -> list[Path]:
    """The notebooks whose file name begins so, in order; all without names.

    Raises:
        NotebookError: a name fits none.
    """
    every = sorted(HERE.glob("[0-9][0-9]_*.py"))
    if not names:
        return every
    for name in names:
        if not any(path.name.startswith(name) for path in every):
            there = ", ".join(path.stem for path in every)
            raise NotebookError(f"no notebook begins with {name!r}; there are: {there}")
    return [path for path in every if path.name.startswith(tuple(names))]


def read(path: Path) -> NotebookNode:
    """The notebook of a text in percent format."""
    import jupytext

    return jupytext.read(path, fmt="py:percent")


def cells(path: Path) -> Iterator[Cell]:
    """Its code in order; a check comes with the solution that is folded away below it.

    Raises:
        NotebookError: an exercise without a check, or a check without a solution.
    """
    notebook = read(path).cells
    open_exercise = False
    for number, cell in enumerate(notebook):
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.get("tags", [])
        if "exercise" in tags:
            if open_exercise:
                raise NotebookError(f"{path.name}: two exercises before a check")
            open_exercise = True
            yield Cell(cell.source, exercise=True)
        elif "check" in tags:
            after = notebook[number + 1].source if number + 1 < len(notebook) else ""
            found = _SOLUTION.search(after)
            if not open_exercise or not found:
                raise NotebookError(
                    f"{path.name}: a check needs an exercise above and, in the cell below, a"
                    f" <details> with a ```python solution: {cell.source.splitlines()[0]}"
                )
            open_exercise = False
            yield Cell(cell.source, check=True, solution=found[1])
        else:
            yield Cell(cell.source)
    if open_exercise:
        raise NotebookError(f"{path.name}: the last exercise has no check")


def execute(path: Path, small: bool) -> float:
    """Run one in a kernel of its own; write it with what it printed and drew. Seconds it took.

    Raises:
        NotebookError: a cell failed, took longer than `CELL_SECONDS`, or ended its kernel.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = read(path)
    target = MADE / ("small" if small else "") / f"{path.stem}.ipynb"
    started = time.monotonic()
    looked_in = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(looked_in))
    environment.pop("MPLBACKEND", None)  # Agg would draw nothing into the page
    environment["RLHF_NOTEBOOKS"] = "small" if small else "full"  # not what the shell has
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", extra_arguments=QUIET
    )
    failed = ""
    try:
        client.execute(cwd=str(HERE), env=environment)
    except CellExecutionError as error:
        failed = f"a cell failed: {error.ename}: {error.evalue}"
    except CellTimeoutError:
        failed = f"a cell took more than {CELL_SECONDS} s and was stopped"
    except DeadKernelError:
        failed = "the kernel ended by itself, as it does without memory"
    seconds = time.monotonic() - started
    if failed:
        target.unlink(missing_ok=True)  # made by an earlier run: no longer what the text gives
        target = MADE / "failed" / target.name
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(".part")
    nbformat.write(notebook, beside)
    beside.rename(target)
    if failed:
        raise NotebookError(f"{path.name}: after {seconds:.0f} s {failed} (see {target})")
    return seconds


def main(words: list[str] | None = None) -> int:
    """Run what was named, print each time and the total; 1 where one failed."""
    parser = argparse.ArgumentParser(
        description="Run the notebooks and keep them with their pictures in build/notebooks."
    )
    parser.add_argument("names", nargs="*", help="what their file names begin with (default: all)")
    parser.add_argument("--small", action="store_true", help="every cell, but nothing is learned")
    arguments = parser.parse_args(words)
    try:
        chosen = paths(arguments.names)
    except NotebookError as error:
        parser.error(str(error))
    total, failures = 0.0, 0
    for path in chosen:
        try:
            seconds = execute(path, arguments.small)
        except NotebookError as error:
            failures += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        total += seconds
        print(f"{path.stem:32s} {seconds:6.0f} s", flush=True)
    print(f"{len(chosen) - failures} of {len(chosen)} notebooks, {total / 60:.1f} min", flush=True)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
