"""Writes the tables of `rlhf plan --table` into docs/scaling.md.

python docs/make/scaling_plan.py
"""

from __future__ import annotations

from pathlib import Path

from common.files import write_text
from pipeline.plan.tables import tables

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
BEGIN, END = "<!-- rlhf plan --table: begin -->", "<!-- rlhf plan --table: end -->"


def main() -> None:
    """Put the tables into the document."""
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    write_text(DOCUMENT, f"{before}{BEGIN}\n{tables()}\n{END}{after}")


if __name__ == "__main__":
    main()
