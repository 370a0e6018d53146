"""The templates, and the filters that they write numbers and text with."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pipeline.compare.wording import interval, number, percent, share, signed


def template(name: str, **filters: Any) -> Template:
    """Return ``templates/<name>.j2``; in HTML all that it writes is escaped.

    ``filters`` are the page's own, beside `number`, `signed`, `percent`, `interval` and `markdown`.
    """
    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "md": markdown,
        "num": number,
        "signed": signed,
        "percent": percent,
        "interval": interval,
        "share": share,
        **filters,
    }
    return environment.get_template(f"{name}.j2")


def markdown(text: Any) -> str:
    """Return ``text`` for Markdown, also inside a table: nothing in it is markup, one line."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", line)
