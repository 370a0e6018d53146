"""TokenMDP: the enumeration, and soft value iteration against the closed-form optimum."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from classic_rl.envs import TokenMDP, random_token_mdp
from classic_rl.errors import ProblemError
from classic_rl.tabular.planning import value_iteration
from classic_rl.tabular.soft import soft_value_iteration

small = st.tuples(
    st.integers(2, 4),  # vocabulary
    st.integers(1, 4),  # length
    st.one_of(st.none(), st.integers(0, 1)),  # eos
    st.integers(0, 10_000),  # seed
)


def brute_force(env: TokenMDP) -> list[tuple[int, ...]]:
    """The completions, from all strings of full length cut after their first eos."""
    cut = set()
    for tokens in itertools.product(range(len(env.names)), repeat=env.length):
        end = tokens.index(env.eos) + 1 if env.eos in tokens else env.length
        cut.add(tokens[:end])
    return sorted(cut, key=lambda y: (len(y), y))


@given(small)
@settings(max_examples=40, deadline=None)
def test_every_completion_is_enumerated_once(shape) -> None:
    env = random_token_mdp(*shape[:2], seed=shape[3], eos=shape[2])
    assert sorted(env.sequences, key=lambda y: (len(y), y)) == brute_force(env)
    assert env.prefixes[0] == () and len(set(env.prefixes)) == len(env.prefixes)
    assert [len(p) for p in env.prefixes] == sorted(len(p) for p in env.prefixes)
    for state, token in itertools.product(range(len(env.prefixes)), range(len(env.names))):
        child = int(env.children[state, token])
        expected = env.prefixes[state] + (token,)
        assert child == state if env.terminal[state] else env.prefixes[child] == expected


@given(small, st.floats(0.05, 20))
@settings(max_examples=40, deadline=None)
def test_soft_value_iteration_is_the_closed_form_optimum(shape, beta: float) -> None:
    """π*(y) ∝ π_ref(y) exp(r(y)/β), every completion and J* to 1e-10."""
    env = random_token_mdp(*shape[:2], seed=shape[3], eos=shape[2])
    solution = soft_value_iteration(env.mdp(), env.reference, beta)
    probabilities, objective = env.optimum(beta)
    chances = np.exp(env.sequence_logps(solution.policy))
    np.testing.assert_allclose(chances, probabilities, atol=1e-10, rtol=0)
    assert solution.objective == pytest.approx(objective, abs=1e-10)
    # J of that policy from its definition: E[r] - β KL(π* || π_ref).
    logps, reference = env.sequence_logps(solution.policy), env.sequence_logps(env.reference)
    gained = chances @ env.sequence_rewards - beta * (chances @ (logps - reference))
    assert gained == pytest.approx(objective, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_without_the_penalty_it_is_value_iteration(seed: int) -> None:
    """V_β is at most the hard V and at least V + β min log π_ref(y), so β → 0 closes the gap."""
    env = random_token_mdp(4, 4, seed, eos=0)
    hard = value_iteration(env.mdp())
    assert hard.values[0] == pytest.approx(env.sequence_rewards.max())
    least = env.sequence_logps(env.reference).min()
    for beta in (1e-1, 1e-2, 1e-4, 1e-6):
        soft = soft_value_iteration(env.mdp(), env.reference, beta)
        gap = hard.values - soft.values
        assert (gap >= -1e-12).all() and (gap <= -beta * least + 1e-12).all()
    going_on = ~env.terminal
    assert (soft.policy.argmax(axis=1) == hard.policy)[going_on].all()
    assert soft.policy.max(axis=1)[going_on].min() > 1 - 1e-6


def test_a_strong_penalty_keeps_the_reference() -> None:
    env = random_token_mdp(3, 4, seed=0, eos=0)
    probabilities, objective = env.optimum(1e8)
    reference = np.exp(env.sequence_logps(env.reference))
    np.testing.assert_allclose(probabilities, reference, atol=1e-7)
    assert objective == pytest.approx(reference @ env.sequence_rewards, abs=1e-6)


def test_a_known_optimum() -> None:
    """One token of two, uniform reference, rewards 0 and β log 3: π* = (1/4, 3/4), Z = 2."""
    beta = 0.7
    env = TokenMDP(2, 1, [0.0, beta * np.log(3)])
    probabilities, objective = env.optimum(beta)
    np.testing.assert_allclose(probabilities, [0.25, 0.75], rtol=1e-14)
    assert objective == pytest.approx(beta * np.log(2), rel=1e-14)


def test_tokens_that_the_reference_never_writes() -> None:
    env = TokenMDP(2, 1, [5.0, 1.0], reference=np.array([[0.0, 1.0], [9, 9], [9, 9]]))
    probabilities, objective = env.optimum(0.5)
    np.testing.assert_array_equal(probabilities, [0.0, 1.0])
    assert objective == pytest.approx(1.0)


def test_sampled_completions_follow_the_reference() -> None:
    """Chi-squared; a true policy is refused once in 10,000 seeds."""
    env = random_token_mdp(3, 3, seed=5, eos=0)
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(env.sequences, 0)
    for _ in range(5_000):
        state, _ = env.reset()
        terminated = False
        while not terminated:
            token = rng.choice(3, p=env.reference[state])
            state, reward, terminated, *_ = env.step(token)
        counts[env.prefixes[state]] += 1
        assert reward == env.sequence_rewards[env.sequences.index(env.prefixes[state])]
    expected = np.exp(env.sequence_logps(env.reference)) * 5_000
    assert expected.sum() == pytest.approx(5_000)
    likely = expected >= 5
    seen = np.array(list(counts.values()))
    observed = np.append(seen[likely], seen[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum())
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    assert stats.chi2.sf(statistic, len(wanted) - 1) > 1e-4


def test_rewards_as_a_function_a_dict_and_an_array_are_one() -> None:
    def parity(y: tuple[int, ...]) -> float:
        return float(sum(y) % 2)

    first = TokenMDP(3, 3, parity, eos=0)
    table = {y: parity(y) for y in first.sequences}
    for reward in (table, [parity(y) for y in first.sequences]):
        other = TokenMDP(3, 3, reward, eos=0)
        np.testing.assert_array_equal(other.sequence_rewards, first.sequence_rewards)


def test_a_float32_reference_is_normalised() -> None:
    """As a language model's softmax gives it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1 + 4 + 16 + 64, 4)).astype(np.float32)
    table = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    env = TokenMDP(4, 3, lambda y: 0.0, reference=table)
    assert np.exp(env.sequence_logps(env.reference)).sum() == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose(env.reference[~env.terminal], table[~env.terminal], atol=1e-6)


def test_the_text_shows_the_tokens() -> None:
    env = TokenMDP(["<end>", "so", "good"], 3, lambda y: float(y.count(2)), eos=0)
    env.render_mode = "ansi"
    env.reset()
    shown = [env.render()]
    for token in (1, 2, 0):
        env.step(token)
        shown.append(env.render())
    assert shown == ["_ _ _\n", "so _ _\n", "so good _\n", "so good <end> | reward +1.000\n"]


def zero(y: tuple[int, ...]) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2, zero), "vocabulary: 0 tokens"),
        ((2, 0, zero), "length: 0 is less than 1"),
        ((2, 2, zero, None, 2), "eos: 2 is not among the tokens 0 to 1"),
        ((26, 10, zero), "more than 1,000,000 prefixes: take fewer tokens"),
        ((2, 1, [0.0]), "reward: shape (1,), expected (2,)"),
        ((2, 1, {(0,): 1.0}), "none for the completion (1,)"),
        ((2, 1, [0.0, float("nan")]), "completion (1,) is paid nan"),
        ((2, 1, zero, np.ones((2, 2)) / 2), "shape (2, 2), expected (S, A) = (3, 2)"),
        (
            (2, 1, zero, np.ones((3, 2))),
            "row 0 (prefix ()) must be probabilities that sum to 1, but has the sum 2",
        ),
        ((2, 1, zero, np.full((3, 2), np.nan)), "but has the sum nan"),
        ((2, 1, zero, np.array([[1.5, -0.5]] * 3)), "the sum 1 and the least -0.5"),
    ],
)
def test_bad_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(message)) as error:
        TokenMDP(*arguments)
    assert "\n" not in str(error.value)


def test_bad_questions() -> None:
    env = TokenMDP(2, 1, zero)
    for beta in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ProblemError, match="beta"):
            env.optimum(beta)
    with pytest.raises(ProblemError, match="policy: shape"):
        env.sequence_logps(np.ones((2, 2)))
