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
# More policies than this are a row each, of the numbers that tell the most; the report has all.
COLUMNS = 6
FEW = (
    *("gold_positive", "gold", "reward", "kl", "objective", "optimality", "distinct_2", "length"),
    *("train_reward_queries", "train_seconds"),
)


def show(results: dict[str, Any], details: dict[str, Any]) -> None:
    """Print the table and the summary on stdout; without colours and folds where it is a file."""
    terminal = sys.stdout.isatty()
    console = Console(
        force_terminal=terminal, width=None if terminal else WIDE, markup=False, highlight=False
    )
    console.print(table(results))
    print(summary(results, details), flush=True)


def table(results: dict[str, Any]) -> Table:
    """The report's numbers: a policy a column, which a narrow terminal has room for; or a row each
    where they are more than `COLUMNS`."""
    measured = shown(results)
    rows = [results["methods"][method.name] for method in measured]
    titles = [method.title for method in measured]
    heads, cells = titles, columns.shown(rows)
    if len(measured) > COLUMNS:
        cells = [column for column in cells if column.key in FEW]
        heads = [column.heading for column in cells]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column("", no_wrap=True)
    for head in heads:
        drawn.add_column(head, justify="right")
    if heads is titles:
        for column in cells:
            drawn.add_row(column.heading, *(_cell(column, row) for row in rows))
    else:
        for title, row in zip(titles, rows, strict=True):
            drawn.add_row(title, *(_cell(column, row) for column in cells))
    return drawn


def _cell(column: columns.Column, row: dict[str, Any]) -> str:
    return f"{column.value(row)} {column.range(row)}".rstrip()


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
