"""The one exception that means "the user can mend this", and the reward's of that kind."""

from __future__ import annotations

from reward_models import RewardError


class UserError(Exception):
    """A mistake in a config, a file or the environment that the user can mend.

    The message is one line that names the place (file, key, row) and the mend. The command line
    prints it without a traceback and exits with code 2.
    """


class LostProcess(UserError):
    """Another process of this run is gone: the same command resumes, and may be run unattended."""


class FailedReward(RewardError, UserError):
    """A reward function that gave no usable scores."""
