"""The notebooks as pages of the site: with their pictures where `make notebooks` made them.

python docs/make/lessons.py       # docs/lessons/*.ipynb, which git ignores
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat

_NOT_RUN = "*No outputs here: `make notebooks`, then `make site`, shows what cells print and draw.*"


def write(root: Path) -> list[Path]:
    """Write a page a notebook to `docs/lessons`; what is not a lesson any more is removed.

    The prose is today's. A run's outputs are not shown where its code was another than today's,
    where it failed, or where it learned nothing because it had small settings.
    """
    folder = root / "docs" / "lessons"
    folder.mkdir(exist_ok=True)
    pages = []
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.py")):
        page = folder / f"{path.stem}.ipynb"
        made = root / "build" / "notebooks" / page.name
        text = jupytext.read(path, fmt="py:percent")
        run = nbformat.read(made, as_version=4) if made.exists() else None
        if run and _code(run) == _code(text) and _whole(run):
            for cell, done in zip(_cells(text), _cells(run), strict=True):
                cell.outputs, cell.execution_count = done.outputs, done.execution_count
        else:
            text.cells.insert(1, nbformat.v4.new_markdown_cell(_NOT_RUN, id="not-run"))
        nbformat.write(text, page)
        pages.append(page)
    for old in set(folder.glob("*.ipynb")) - set(pages):
        old.unlink()
    return pages


def _cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in _cells(notebook)]


def _whole(run: nbformat.NotebookNode) -> bool:
    """Whether every cell ran, without an error and with the sizes of a full run."""
    code = _cells(run)
    outputs = [output for cell in code for output in cell.outputs]
    return (
        all(cell.execution_count for cell in code)
        and not any(output.output_type == "error" for output in outputs)
        and not any(
            "not judged with small settings" in output.get("text", "") for output in outputs
        )
    )


if __name__ == "__main__":
    for made in write(Path(__file__).resolve().parents[2]):
        print(made, file=sys.stderr)
