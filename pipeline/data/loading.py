"""Calling ``datasets``: quietly, and with one line for whatever it raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from common.words import first_line
from pipeline.errors import UserError


def loaded(load: Callable[[], Any], where: str, mend: str = "") -> Any:
    """Call ``load``; whatever ``datasets`` raises becomes one line."""
    with quiet_datasets():
        return called(load, where, mend)


def called(load: Callable[[], Any], where: str, mend: str = "") -> Any:
    """:func:`loaded`, without silencing it: where it prints nothing, and is called often."""
    try:
        return load()
    # Not found, gated, offline, a script, an unknown split or configuration: `datasets` and
    # `huggingface_hub` raise more than a dozen unrelated types for what the user can mend.
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: cannot be loaded ({reason}){mend}") from error


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silence bars and messages of ``datasets`` inside the block, and the hub's retries too."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    shown = not datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    hub_verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if shown:
            datasets.enable_progress_bars()
