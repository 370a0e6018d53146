"""Soft value iteration against enumeration of every completion, and its two limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classic_rl.errors import ProblemError
from classic_rl.mdp import MDP, from_arrays, from_function
from classic_rl.tabular.planning import policy_evaluation, value_iteration
from classic_rl.tabular.soft import soft_value_iteration

Tree = tuple[MDP, np.ndarray, list[tuple[int, ...]], np.ndarray, np.ndarray]


def token_tree(vocabulary: int, length: int, seed: int, unlikely: bool) -> Tree:
    """All completions of ``length`` tokens as an MDP whose states are the prefixes.

    Returns the MDP, π_ref, and of each completion: its tokens, its reward, its log-probability.
    """
    rng = np.random.default_rng(seed)
    depths = [list(itertools.product(range(vocabulary), repeat=d)) for d in range(length + 1)]
    prefixes = [prefix for depth in depths for prefix in depth]
    number = {prefix: state for state, prefix in enumerate(prefixes)}
    reward = dict(zip(depths[-1], rng.normal(size=len(depths[-1])), strict=True))
    reference = rng.dirichlet(np.ones(vocabulary), size=len(prefixes))
    if unlikely:  # some tokens that the reference never says
        reference[rng.random(reference.shape) < 0.3] = 0.0
        reference[reference.sum(axis=1) == 0, 0] = 1.0
        reference /= reference.sum(axis=1, keepdims=True)

    def outcomes(state: int, token: int):
        longer = (*prefixes[state], token)
        return [(1.0, number[longer], reward.get(longer, 0.0))]

    ends = [number[prefix] for prefix in depths[-1]]
    mdp = from_function(outcomes, len(prefixes), vocabulary, 1.0, terminal=ends)
    return (
        mdp,
        reference,
        depths[-1],
        np.array(list(reward.values())),
        log_probabilities(reference, depths[-1], number),
    )


def log_probabilities(table, completions, number) -> np.ndarray:
    with np.errstate(divide="ignore"):
        logs = np.log(table)
    return np.array([sum(logs[number[y[:t]], y[t]] for t in range(len(y))) for y in completions])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.integers(2, 4),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([0.02, 0.1, 1.0, 30.0]),
)
def test_the_optimum_is_the_enumerated_one(vocabulary, length, seed, unlikely, beta):
    """π*(y) = π_ref(y) exp(r(y)/β) / Z and J* = β log Z (Rafailov et al. 2023, appendix A.1)."""
    mdp, reference, completions, rewards, logps = token_tree(vocabulary, length, seed, unlikely)
    exponents = logps + rewards / beta
    largest = exponents.max()
    log_z = largest + np.log(np.exp(exponents - largest).sum())
    optimum = np.exp(exponents - log_z)

    solution = soft_value_iteration(mdp, reference, beta)
    prefixes = itertools.chain.from_iterable(
        itertools.product(range(vocabulary), repeat=d) for d in range(length + 1)
    )
    number = {prefix: state for state, prefix in enumerate(prefixes)}
    policy = np.exp(log_probabilities(solution.policy, completions, number))
    assert np.abs(policy - optimum).max() < 1e-10
    assert solution.objective == pytest.approx(beta * log_z, abs=1e-10)
    assert solution.residual < 1e-12
    # J* is reached: expected reward less β times the KL of the completions' distributions.
    seen = optimum > 0
    divergence = (policy[seen] * (np.log(policy[seen]) - logps[seen])).sum()
    reached = (policy * rewards).sum() - beta * divergence
    assert solution.objective == pytest.approx(reached, abs=1e-10)


def random_process(seed: int, gamma: float = 0.9) -> tuple[MDP, np.ndarray]:
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(6, 0.5), size=(6, 3))
    mdp = from_arrays(transitions, rng.normal(size=(6, 3)), gamma, start=np.full(6, 1 / 6))
    return mdp, rng.dirichlet(np.ones(3), size=6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.5, 5.0]))
def test_the_policy_is_worth_the_soft_values_and_no_other_more(seed, beta):
    mdp, reference = random_process(seed)

    def worth(policy: np.ndarray) -> np.ndarray:
        """Policy evaluation with the KL's price taken off the reward."""
        # One reward for the state: Σ_a π (r − β log π/π_ref) is the same under any such split.
        price = beta * np.log(np.maximum(policy, 1e-300) / reference)
        charged = from_arrays(mdp.transitions, mdp.rewards - price, mdp.gamma, start=mdp.start)
        return policy_evaluation(charged, policy, method="direct")

    solution = soft_value_iteration(mdp, reference, beta)
    assert worth(solution.policy) == pytest.approx(solution.values, abs=1e-9)
    assert solution.objective == pytest.approx(mdp.start @ solution.values)
    rng = np.random.default_rng(seed)
    for weight in (0.01, 0.3, 1.0):
        other = rng.dirichlet(np.ones(3), size=6)
        mixed = (1 - weight) * solution.policy + weight * other
        assert (worth(mixed) <= solution.values + 1e-9).all()


def test_as_beta_vanishes_it_is_value_iteration():
    mdp, reference = random_process(seed=0)
    hard = value_iteration(mdp, tolerance=1e-12)
    lowest = -np.log(reference.min())
    for beta in (1e-1, 1e-3, 1e-6, 1e-12, 1e-300, 5e-324):
        solution = soft_value_iteration(mdp, reference, beta)
        # 0 ≤ V − V_β ≤ β log(1/π_ref) in each of the 1/(1 − γ) expected steps.
        gap = hard.values - solution.values
        assert (gap >= -1e-10).all() and (gap <= beta * lowest / 0.1 + 1e-10).all()
        assert solution.policy.sum(axis=1) == pytest.approx(np.ones(6))
    assert solution.policy.argmax(axis=1).tolist() == hard.policy.tolist()
    assert solution.policy.max(axis=1) == pytest.approx(np.ones(6))


def test_as_beta_grows_it_is_the_reference():
    mdp, reference = random_process(seed=1)
    solution = soft_value_iteration(mdp, reference, 1e9)
    assert solution.policy == pytest.approx(reference, abs=1e-6)
    assert solution.values == pytest.approx(policy_evaluation(mdp, reference), abs=1e-6)


@pytest.mark.parametrize("beta", [1e-13, 1e-3, 1.0])
def test_large_rewards_neither_overflow_nor_break_ties(beta):
    """Two equally good actions keep the reference's proportion, whatever the scale."""
    rewards = np.array([[1e8, 1e8, -1e8], [0.0, 0.0, 0.0]])
    transitions = np.zeros((2, 3, 2))
    transitions[..., 1] = 1.0
    mdp = from_arrays(transitions, rewards, 1.0, terminal=[1])
    reference = np.array([[0.3, 0.1, 0.6], [1.0, 0.0, 0.0]])
    solution = soft_value_iteration(mdp, reference, beta)
    assert solution.policy[0] == pytest.approx([0.75, 0.25, 0.0], abs=1e-12)
    assert solution.values[0] == pytest.approx(1e8 + beta * np.log(0.4), rel=1e-15)


def test_an_action_outside_the_reference_is_never_taken():
    mdp = from_arrays(
        np.array([[[0.0, 1.0]] * 2, [[0.0, 1.0]] * 2]),
        np.array([[1000.0, 1.0], [0.0, 0.0]]),
        1.0,
        terminal=[1],
    )
    solution = soft_value_iteration(mdp, np.array([[0.0, 1.0], [0.5, 0.5]]), 0.1)
    assert solution.policy[0].tolist() == [0.0, 1.0]
    assert solution.values.tolist() == [1.0, 0.0]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 1.0, 100.0]))
def test_the_soft_backup_contracts(seed, beta):
    """‖V_k+1 − V_k‖ shrinks by γ or more in each sweep."""
    mdp, reference = random_process(seed)
    tables: list[np.ndarray] = []
    soft_value_iteration(mdp, reference, beta, on_sweep=lambda k, v: tables.append(v))
    changes = [np.abs(b - a).max() for a, b in itertools.pairwise(tables)]
    assert all(b <= mdp.gamma * a + 1e-12 for a, b in itertools.pairwise(changes))


def stay_or_leave() -> MDP:
    """State 0: action 0 stays and pays 1, action 1 leaves. γ = 1."""
    return from_function(lambda s, a: [(1.0, a, 1.0 - a)], 2, 2, 1.0, terminal=[1])


def test_without_discount_staying_pays_only_while_the_kl_costs_more():
    # V = β log(½ e^{(1 + V)/β} + ½): with β = 1, x = e^V solves x = (e x + 1)/2, which has no
    # positive solution; with β = 4 it is x = e^{V/4} = 1/(2 − e^{1/4}).
    half = np.full((2, 2), 0.5)
    solution = soft_value_iteration(stay_or_leave(), half, 4.0)
    assert solution.values[0] == pytest.approx(-4 * np.log(2 - np.exp(0.25)))
    with pytest.raises(ProblemError, match="loop earns for ever"):
        soft_value_iteration(stay_or_leave(), half, 1.0, max_sweeps=1000)


@pytest.mark.parametrize(
    ("reference", "beta", "message"),
    [
        (np.full((2, 2), 0.5), 0.0, "beta: 0.0 must be positive"),
        (np.full((2, 2), 0.5), -1.0, "beta: -1.0 must be positive"),
        (np.full((2, 2), 0.5), np.inf, "beta: inf must be positive and finite"),
        (np.full((2, 2), 0.5), np.nan, "beta: nan must be positive"),
        (np.full((2, 3), 1 / 3), 1.0, r"reference: shape \(2, 3\), expected \(S, A\) = \(2, 2\)"),
        (np.full((2, 2), 0.4), 1.0, "reference: the row of state 0 .* sums to 0.8"),
        (np.array([[0.5, 0.5], [1.5, -0.5]]), 1.0, "reference: the row of state 1"),
        (np.array([[1.0, 0.0], [0.5, 0.5]]), 1.0, "needs a reference that ends.* state 0"),
    ],
)
def test_a_mistake_is_named_in_one_line(reference, beta, message):
    with pytest.raises(ProblemError, match=message) as caught:
        soft_value_iteration(stay_or_leave(), reference, beta)
    assert "\n" not in str(caught.value)
