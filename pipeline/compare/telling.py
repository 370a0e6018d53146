"""The comparison on stdout: a table and a line."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.compare import columns
from pipeline.compare.methods import BEST_OF_N, reference, shown
from pipeline.compare.wording import number, signed

# Characters in a line where the output is no terminal: more than the table needs.
WIDE = 240


def show(results: dict[str, Any], details: dict[str, Any]) -> None:
    """Print the table and the summary on stdout; without colours and folds where it is a file."""
    terminal = sys.stdout.isatty()
    console = Console(
        force_terminal=terminal, width=None if terminal else WIDE, markup=False, highlight=False
    )
    console.print(table(results))
    print(summary(results, details), flush=True)


def table(results: dict[str, Any]) -> Table:
    """The report's numbers with a method a column, which a narrow terminal has room for."""
    measured = shown(results)
    rows = [results["methods"][method.name] for method in measured]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column("", no_wrap=True)
    for method in measured:
        drawn.add_column(method.title, justify="right")
    for column in columns.shown(rows):
        cells = (f"{column.value(row)} {column.range(row)}".rstrip() for row in rows)
        drawn.add_row(column.heading, *cells)
    return drawn


def summary(results: dict[str, Any], details: dict[str, Any]) -> str:
    """One line: the scale that optimality is measured on, and PPO against DPO on it."""
    line = (
        f"β = {results['beta']:g}: the objective is {number(details['objective_ref'])} for"
        f" {reference().title}"
    )
    if details["j_star"] is None:
        line += ", and as KL costs nothing there is no best"
    else:
        line += f" and {number(details['j_star'])} at best"
    titles = {method.name: method.title for method in shown(results)}
    for difference in _only(details):
        if difference["optimality"] is not None:
            points = [difference["optimality"], *(difference["optimality_ci"] or ())]
            points = [signed(100 * value, 0) for value in points]
            first, second = titles[difference["first"]], titles[difference["second"]]
            line += f"; optimality {first} − {second}: {points[0]} points"
            line += f" [{points[1]} to {points[2]}]" if len(points) > 1 else ""
    return f"{line}; {BEST_OF_N.title} with N = {details['best_of_n']}"


def _only(details: dict[str, Any]) -> list[dict[str, Any]]:
    """The difference of the two policies where there are two; of more the report tells."""
    return details["differences"] if len(details["differences"]) == 1 else []
