"""How the comparison and the report write numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: Any, digits: int = 2) -> str:
    """Return ``value`` with ``digits`` decimals and a real minus sign, or – where there is none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: Any, digits: int = 2) -> str:
    """Return `number` with a plus where it is positive."""
    text = number(value, digits)
    return text if value is None or float(f"{value:.{digits}f}") <= 0 else "+" + text


def percent(value: Any) -> str:
    """Return a share as whole percent (with a no-break space), or – where there is none."""
    return "–" if value is None else number(100 * value, 0) + "\u00a0%"


def share(row: Mapping[str, Any]) -> str:
    """Return a policy's optimality in percent, as the bound that it may be: ``at most 71 %``.

    A loss is only said to be one: how large it is at most helps nobody.
    """
    bound, value = row.get("optimality_bound"), row.get("optimality")
    words = f"{bound} " if bound in ("at most", "at least") and value and value > 0 else ""
    return words + percent(value)


def interval(ci: Any) -> str:
    """Return shares as e.g. ``[52 to 71 %]``, or nothing where there is no interval."""
    return f"[{number(100 * ci[0], 0)} to {percent(ci[1])}]" if ci else ""


def beta_text(beta: float) -> str:
    """Return β as it was written: 1, 0.1, 0.05."""
    return f"{beta:g}"
