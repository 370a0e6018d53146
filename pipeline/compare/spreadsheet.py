"""results.csv: one row a policy, one column a metric, in the order of results.json."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

_PAIR = ("low", "high")


def csv_text(results: Mapping[str, Any]) -> str:
    """The metrics of all policies, flat, after who they are; an empty cell where there is none.

    An interval is two columns, ``…_low`` and ``…_high``; what is nested is ``outer/inner``.
    """
    known = {record["name"]: dict(record) for record in results.get("policies") or ()}
    rows = []
    for name, metrics in results["methods"].items():
        record = known.get(name, {})
        who = {key: record.get(key) for key in ("title", "kind", "method", "beta", "seed")}
        rows.append({"name": name, **who, **flat(metrics)})
    names = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def flat(metrics: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """One level of names: pairs become two, a mapping's names follow its own and a slash."""
    found: dict[str, Any] = {}
    for key, value in metrics.items():
        name = before + key
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}/")
        elif key.endswith("_ci"):
            ends = value or (None, None)
            found |= {f"{name}_{end}": v for end, v in zip(_PAIR, ends, strict=True)}
        else:
            found[name] = value
    return found
