r"""Text as a decision process, small enough to enumerate.

The state is the tokens so far, an action is the next token, and only the finished completion y is
paid, r(y). With a reference policy :math:`\pi_{ref}` the KL-regularised problem

.. math:: \max_\pi E_{y \sim \pi}[r(y)] - \beta\, KL(\pi \| \pi_{ref})

has the closed form :math:`\pi^*(y) \propto \pi_{ref}(y) \exp(r(y) / \beta)` with the value
:math:`J^* = \beta \log E_{y \sim \pi_{ref}} \exp(r(y) / \beta)` (Rafailov et al. 2023, appendix
A.1; Korbak et al. 2022). `TokenMDP.optimum` computes both by enumeration: the judge of everything
that optimises a language model in this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import scipy.sparse as sp
from scipy.special import softmax

from classic_rl.envs import drawing
from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_arrays

MAX_PREFIXES = 1_000_000  # A prefix takes about 200 bytes.

Tokens = tuple[int, ...]
Reward = Callable[[Tokens], float] | Mapping[Tokens, float] | Sequence[float] | np.ndarray


class TokenMDP(drawing.DrawnEnv):
    """Completions of at most ``length`` tokens; the states are all their prefixes, breadth first.

    State 0 is the empty prefix. A completion ends with ``eos`` or at ``length`` and is a terminal
    state. S counts the prefixes, completions included, A the tokens, N the completions.

    Args:
        vocabulary: how many tokens there are, or their names.
        length: the most tokens of a completion, an ``eos`` included.
        reward: r(y): a function of the completion's tokens, a dict from them, or ``(N,)`` in the
            order of ``sequences``.
        reference: ``(S, A)``, the reference's probability of each next token; uniform when None.
            Rows of terminal states are ignored, the others normalised if their sum is 1 to 1e-4
            (as a float32 softmax is).
        eos: the token that ends a completion; None: all have the full length.
        render_mode: ``"ansi"`` or ``"rgb_array"``.

    Attributes:
        names: the name of each token.
        prefixes: the tokens of each state, S tuples.
        terminal: bool ``(S,)``, where a completion has ended.
        children: ``(S, A)``, the state that each token leads to; a terminal's own.
        sequences: the tokens of each completion, N tuples, in the order of their states.
        sequence_rewards: ``(N,)``, r of each.
        reference: ``(S, A)``; uniform in terminal states.

    Raises:
        ProblemError: for anything that does not fit together, and for more than `MAX_PREFIXES`.
    """

    def __init__(
        self,
        vocabulary: int | Sequence[str],
        length: int,
        reward: Reward,
        reference: np.ndarray | None = None,
        eos: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode)
        if isinstance(vocabulary, (int, np.integer)):
            vocabulary = [str(token) for token in range(vocabulary)]
        self.names = list(vocabulary)
        self.length, self.eos = length, eos
        _check_size(len(self.names), length, eos)
        self._enumerate()
        self.sequences = [self.prefixes[s] for s in np.flatnonzero(self.terminal)]
        self.sequence_rewards = _rewards(reward, self.sequences)
        self.reference = self._checked_reference(reference)
        # What entering each state pays: r(y) in a completion, nothing before.
        self._paid = np.zeros(len(self.prefixes))
        self._paid[self.terminal] = self.sequence_rewards
        self.observation_space = gym.spaces.Discrete(len(self.prefixes))
        self.action_space = gym.spaces.Discrete(len(self.names))
        self.state = 0
        self._running = False

    def _enumerate(self) -> None:
        """All prefixes, level by level: level d holds the states of d tokens."""
        n_tokens = len(self.names)
        self.prefixes: list[Tokens] = [()]
        self._levels: list[slice] = []
        parents, tokens, ended = [np.zeros(1, int)], [np.zeros(1, int)], [np.zeros(1, bool)]
        growing = np.zeros(1, dtype=int)
        for depth in range(1, self.length + 1):
            parent = np.repeat(growing, n_tokens)
            token = np.tile(np.arange(n_tokens), len(growing))
            first = len(self.prefixes)
            self.prefixes += [
                (*self.prefixes[p], t) for p, t in zip(parent.tolist(), token.tolist(), strict=True)
            ]
            self._levels.append(slice(first, len(self.prefixes)))
            ends = np.full(len(token), depth == self.length)
            if self.eos is not None:
                ends |= token == self.eos
            growing = first + np.flatnonzero(~ends)
            parents.append(parent)
            tokens.append(token)
            ended.append(ends)
        # The token that led to each state, and the state that it was chosen in.
        self._parent, self._token = np.concatenate(parents), np.concatenate(tokens)
        self.terminal = np.concatenate(ended)
        states = np.arange(len(self.prefixes))
        self.children = np.repeat(states[:, None], n_tokens, axis=1)
        self.children[self._parent[1:], self._token[1:]] = states[1:]

    def _checked_reference(self, reference: np.ndarray | None) -> np.ndarray:
        shape = (len(self.prefixes), len(self.names))
        table = np.full(shape, 1 / len(self.names))
        if reference is None:
            return table
        given = np.asarray(reference, dtype=float)
        if given.shape != shape:
            raise ProblemError(f"reference: shape {given.shape}, expected (S, A) = {shape}")
        inner = ~self.terminal
        sums = given.sum(axis=1)
        # Written so that nan counts as wrong.
        right = (given >= 0).all(axis=1) & (np.abs(sums - 1) <= 1e-4)
        if not right[inner].all():
            state = int(np.flatnonzero(inner & ~right)[0])
            raise ProblemError(
                f"reference: row {state} (prefix {self.prefixes[state]}) must be probabilities "
                f"that sum to 1, but has the sum {sums[state]:.6g} and the least "
                f"{given[state].min():.6g}"
            )
        table[inner] = given[inner] / sums[inner, None]
        return table

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        self._running = True
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if not self._running:
            raise gym.error.ResetNeeded("no completion is under way: call reset() first")
        drawing.check_action(action, len(self.names))
        self.state = int(self.children[self.state, action])
        terminated = bool(self.terminal[self.state])
        self._running = not terminated
        return self.state, float(self._paid[self.state]), terminated, False, {}

    def mdp(self, gamma: float = 1.0) -> MDP:
        """The exact process: each action leads to one state, and entering a completion pays r."""
        size = self.children.size
        # Row s * A + a holds a single 1, in the column of the state that the token leads to.
        transitions = sp.csr_array(
            (np.ones(size), self.children.ravel(), np.arange(size + 1)),
            shape=(size, len(self.prefixes)),
        )
        rewards = np.where(self.terminal[:, None], 0.0, self._paid[self.children])
        return from_arrays(
            transitions, rewards, gamma, start=0, terminal=np.flatnonzero(self.terminal)
        )

    def sequence_logps(self, policy: np.ndarray) -> np.ndarray:
        r"""log π(y) of every completion, ``(N,)``, -inf where it cannot be written.

        Args:
            policy: ``(S, A)``, probabilities of the next token; rows of terminals are not read.
        """
        policy = np.asarray(policy, dtype=float)
        if policy.shape != self.children.shape:
            raise ProblemError(f"policy: shape {policy.shape}, expected {self.children.shape}")
        with np.errstate(divide="ignore"):
            chosen = np.log(policy[self._parent, self._token])
        logps = np.zeros(len(self.prefixes))
        for level in self._levels:
            # log π(y_1 … y_t) = log π(y_1 … y_{t-1}) + log π(y_t | y_1 … y_{t-1})
            logps[level] = logps[self._parent[level]] + chosen[level]
        return logps[self.terminal]

    def optimum(self, beta: float) -> tuple[np.ndarray, float]:
        """π*(y) of every completion, ``(N,)``, and J*, by enumeration (γ = 1).

        Args:
            beta: KL coefficient, > 0, in units of reward per nat.
        """
        if not (beta > 0 and np.isfinite(beta)):
            raise ProblemError(f"beta: {beta} is not a positive number")
        # log of π_ref(y) exp(r(y) / β)
        scores = self.sequence_logps(self.reference) + self.sequence_rewards / beta
        log_z = float(np.logaddexp.reduce(scores))
        return np.exp(scores - log_z), beta * log_z

    def words(self, state: int) -> str:
        """The names of a state's tokens."""
        return " ".join(self.names[token] for token in self.prefixes[state])

    def text(self) -> str:
        places = self.length - len(self.prefixes[self.state])
        if self.terminal[self.state]:
            return f"{self.words(self.state)} | reward {self._paid[self.state]:+.3f}\n"
        return " ".join([self.words(self.state)] * (self.state > 0) + ["_"] * places) + "\n"

    def picture(self) -> np.ndarray:
        """The tokens so far in boxes; under them the reference's next token, or the reward."""
        width = max(self.length, 4)
        axes = drawing.canvas(width, 2.5, pixels=80)
        tokens = self.prefixes[self.state]
        left = (width - self.length) / 2
        for place in range(self.length):
            written = place < len(tokens)
            style: dict[str, Any] = {"facecolor": drawing.BLUE if written else drawing.PAPER}
            x = left + place
            drawing.rectangle(axes, x + 0.06, 0.1, 0.88, 0.7, edgecolor=drawing.GREY, **style)
            if written:
                drawing.label(axes, x + 0.5, 0.45, self.names[tokens[place]], color=drawing.PAPER)
        if self.terminal[self.state]:
            paid = self._paid[self.state]
            colour = drawing.GREEN if paid >= 0 else drawing.RED
            drawing.label(axes, width / 2, 1.6, f"reward {paid:+.3f}", color=colour, size=18)
            return drawing.to_array(axes)
        step = width / len(self.names)
        for token, chance in enumerate(self.reference[self.state]):
            bar, x = chance * 1.1, (token + 0.5) * step
            drawing.rectangle(
                axes, x - 0.35 * step, 2.2 - bar, 0.7 * step, bar, color=drawing.GREEN
            )
            if len(self.names) <= 32:
                drawing.label(axes, x, 2.34, self.names[token], size=9)
        return drawing.to_array(axes)


def random_token_mdp(
    vocabulary: int | Sequence[str] = ("<end>", "a", "b", "c"),
    length: int = 4,
    seed: int = 0,
    eos: int | None = 0,
    render_mode: str | None = None,
) -> TokenMDP:
    """A TokenMDP whose reference is a softmax of normal logits and whose rewards are normal.

    Args:
        vocabulary, length, eos, render_mode: as for `TokenMDP`. seed: of the reference and rewards.
    """
    generator = np.random.default_rng(seed)
    env = TokenMDP(vocabulary, length, lambda y: generator.normal(), None, eos, render_mode)
    logits = generator.normal(size=env.reference.shape)
    env.reference[~env.terminal] = softmax(logits, axis=1)[~env.terminal]
    return env


def _check_size(n_tokens: int, length: int, eos: int | None) -> None:
    if n_tokens < 1:
        raise ProblemError(f"vocabulary: {n_tokens} tokens; at least one is needed")
    if length < 1:
        raise ProblemError(f"length: {length} is less than 1")
    if eos is not None and not 0 <= eos < n_tokens:
        raise ProblemError(f"eos: {eos} is not among the tokens 0 to {n_tokens - 1}")
    count, growing = 1, 1
    for _ in range(length):
        count += growing * n_tokens
        growing *= n_tokens - (eos is not None)
        if count > MAX_PREFIXES:
            raise ProblemError(
                f"{n_tokens} tokens and length {length} make more than {MAX_PREFIXES:,} "
                "prefixes: take fewer tokens or a shorter length"
            )


def _rewards(reward: Reward, sequences: list[Tokens]) -> np.ndarray:
    """r(y) of every completion, (N,), checked."""
    if isinstance(reward, Mapping):
        missing = next((y for y in sequences if y not in reward), None)
        if missing is not None:
            raise ProblemError(f"reward: the dict has none for the completion {missing}")
        values = np.array([reward[y] for y in sequences], dtype=float)
    elif callable(reward):
        values = np.array([reward(y) for y in sequences], dtype=float)
    else:
        values = np.array(reward, dtype=float)
    if values.shape != (len(sequences),):
        raise ProblemError(
            f"reward: shape {values.shape}, expected ({len(sequences)},), one for each completion"
        )
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ProblemError(f"reward: completion {sequences[place]} is paid {values[place]}")
    return values
