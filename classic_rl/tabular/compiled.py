"""Value iteration's sweep as a numba kernel: an option, for many sweeps over large problems.

It reads the MDP's own arrays, so it needs no copy of the transitions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP

try:
    from numba import njit
except ImportError as error:
    raise ProblemError("compiled=True needs numba: pip install numba") from error


@njit(cache=True)
def _sweep(indptr, indices, data, rewards, gamma, terminal, values, out):
    """V(s) ← max_a [r + γ Σ P V], state by state; in place when ``out`` is ``values``."""
    n_states, n_actions = rewards.shape
    for s in range(n_states):
        best = rewards[s, 0]
        if not terminal[s]:
            best = -np.inf
            for a in range(n_actions):
                following = 0.0
                for k in range(indptr[s * n_actions + a], indptr[s * n_actions + a + 1]):
                    following += data[k] * values[indices[k]]
                q = rewards[s, a] + gamma * following
                if q > best:
                    best = q
        out[s] = best


def compiled_sweep(mdp: MDP, *, in_place: bool) -> Callable[[np.ndarray, np.ndarray], None]:
    """``sweep(values, out)``: synchronous, or Gauss-Seidel in the states' order if ``in_place``."""
    matrix = mdp.transitions
    # Unsigned indices need no test for negative ones, which halves the time of a sweep.
    indptr, indices = (i.view(f"u{i.itemsize}") for i in (matrix.indptr, matrix.indices))
    model = (indptr, indices, matrix.data, mdp.rewards, mdp.gamma, mdp.terminal)

    def sweep(values: np.ndarray, out: np.ndarray) -> None:
        if in_place:
            out[:] = values
            values = out
        _sweep(*model, values, out)

    return sweep
