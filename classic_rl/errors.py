"""The one error that a user's own mistake raises: its message is a single line with the mend."""

from __future__ import annotations


class ProblemError(ValueError):
    """A problem, setting or file that cannot be used as given; shown without a trace."""
