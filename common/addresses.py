"""Addresses of services: what is one, and how it may be printed."""

from __future__ import annotations

import re


def is_url(spec: str) -> bool:
    """True where a name is the address of a service."""
    return spec.lower().startswith(("http://", "https://"))


def without_secrets(spec: str) -> str:
    """A name as it may be printed: an address without user, password and query."""
    if not is_url(spec):
        return spec
    scheme, colon, rest = re.split(r"[?#]", spec)[0].partition("://")
    return f"{scheme}{colon}{rest.rpartition('@')[2]}"  # a password may hold a slash
