"""What a finished training has to tell beside its numbers: what it lost, and what it never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from classic_rl.deep.run import BEST_FOLDER
from classic_rl.envs import environments

if TYPE_CHECKING:
    from classic_rl.deep.training import Trained

# What each algorithm explores by.
EXPLORING = {"dqn": "exploration_fraction, epsilon_end"}


def remarks(run: Trained) -> list[str]:
    """Lines about one training, most often none."""
    named = f"seed {run.config.seed}"
    lines = []
    if run.best is not None:
        steps, returns = run.best
        lines.append(
            f"{named}: the best policy was lost in training: that of {steps:,} steps plays"
            f" {returns.mean():.1f} ± {returns.std():.1f}, see {run.folder / BEST_FOLDER};"
            " a lower or annealed learning_rate forgets less"
        )
    if (words := _never_ended(run)) is not None:
        exploring = EXPLORING.get(run.algorithm, "entropy_coef")
        lines.append(
            f"{named}: {words}; there was nothing to learn from. What helps where rewards are rare:"
            f" longer episodes, in which chance may find them (--env-arg max_episode_steps=…), more"
            f" steps, more exploration ({exploring}), a reward that shows progress"
        )
    return lines


def _never_ended(run: Trained) -> str | None:
    """That no episode came to an end before its limit, or that all returns were one; else None.

    Where an environment says what return solves it, episodes that last are no fault above it. Where
    it does not, they may be all there is (as Pendulum's), and equal returns alone tell.
    """
    returns = np.concatenate([run.episodes["returns"], run.returns])
    lengths = np.concatenate([run.episodes["lengths"], run.lengths])
    config = run.config
    spec = environments.find(config.env_id)
    limit = config.env_kwargs.get("max_episode_steps", spec.max_episode_steps)
    solved = spec.reward_threshold
    if solved is not None and run.returns.mean() >= solved:
        return None
    cut = limit is not None and bool((lengths == limit).all())
    why = f"no episode ended before the limit of {limit} steps: the goal was never reached"
    if len(returns) > len(run.returns) and np.ptp(returns) == 0:
        return f"every return was {returns[0]:g}" + (f", as {why}" if cut else "")
    return f"{why}, and {solved:g} is far" if cut and solved is not None else None
