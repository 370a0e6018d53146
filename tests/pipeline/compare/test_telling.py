"""The comparison's table in the terminal."""

from __future__ import annotations

from rich.console import Console

from pipeline.compare.telling import COLUMNS, table
from tests.pipeline.report import many


def printed(count: int) -> list[str]:
    """The table of the first ``count`` policies, its lines."""
    results = many.results()
    results["policies"] = results["policies"][:count]
    results["methods"] = {p["name"]: results["methods"][p["name"]] for p in results["policies"]}
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(results))
    return [line.rstrip() for line in console.export_text().split("\n") if line.strip()]


def test_few_policies_are_columns() -> None:
    lines = printed(COLUMNS)
    assert lines[0].split() == ["SFT", "PPO", "DPO", "DPO", "β=0.1", "DPO", "β=2", "IPO"]
    assert any(line.startswith("optimality") for line in lines)


def test_many_policies_are_rows_of_the_numbers_that_tell_the_most() -> None:
    lines = printed(len(many.ROWS))
    assert lines[0].split()[:4] == ["judge", "positive", "judge", "reward"]
    assert [line.split("  ")[0] for line in lines[1:]] == [row[1] for row in many.ROWS]
    assert "perplexity" not in lines[0] and max(map(len, lines)) < 160
    theirs = next(line for line in lines if line.startswith("Other family"))
    assert "–" in theirs
