"""Policy gradients: the exact one, its estimators' expectations and noise, and the updates."""

from __future__ import annotations

from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from classic_rl import a2c, reinforce
from classic_rl.deep.adam import Adam
from classic_rl.deep.networks import flatten_parameters
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.probes import MDPEnv
from classic_rl.deep.rollout import Rollout
from classic_rl.errors import ProblemError
from classic_rl.gradient_variance import ESTIMATORS, UNBIASED, exact_policy_gradient, measure
from classic_rl.mdp import MDP, from_function
from classic_rl.reinforce import EpisodePlayer, score_weights
from classic_rl.tabular.planning import policy_evaluation

GAMMA = 0.8
END = 4
Path = list[tuple[int, int, float]]  # (state, action, reward) of each step


def tree(seed: int) -> MDP:
    """State 0 leads to 1, 2, or the end, 1 to 2, 3 or the end, and so on: at most four steps."""
    rng = np.random.default_rng(seed)

    def outcomes(state: int, action: int) -> list[tuple[float, int, float]]:
        following = [s for s in (state + 1, state + 2) if s < END] + [END]
        odds = rng.dirichlet(np.ones(len(following)))
        return [(float(p), s, float(rng.normal())) for p, s in zip(odds, following, strict=True)]

    return from_function(outcomes, END + 1, 2, GAMMA, start=0, terminal=[END])


def random_policy(mdp: MDP, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(mdp.n_states, mdp.n_actions))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def objective(mdp: MDP, logits: np.ndarray) -> float:
    policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(mdp.start @ policy_evaluation(mdp, policy))


def paths(mdp: MDP, policy: np.ndarray) -> list[tuple[float, Path]]:
    """Every episode from state 0 with its probability."""
    episodes: list[tuple[float, Path]] = []

    def walk(state: int, probability: float, path: Path) -> None:
        if mdp.terminal[state]:
            episodes.append((probability, path))
            return
        for action in range(mdp.n_actions):
            for p, following, reward in mdp.outcomes(state, action):
                step = (state, action, reward)
                walk(following, probability * policy[state, action] * p, [*path, step])

    walk(0, 1.0, [])
    assert sum(p for p, _ in episodes) == pytest.approx(1, abs=1e-12)
    return episodes


def as_rollout(episodes: list[Path], values: np.ndarray) -> Rollout:
    """Episodes beside each other, their states' numbers as observations."""
    length = max(map(len, episodes))
    table = np.zeros((3, length, len(episodes)))
    mask = np.zeros((length, len(episodes)), dtype=bool)
    ended = mask.copy()
    for i, episode in enumerate(episodes):
        table[:, : len(episode), i] = np.transpose(episode)
        mask[: len(episode), i] = True
        ended[len(episode) - 1, i] = True
    states, actions = table[0].astype(int), table[1].astype(int)
    known = torch.from_numpy(values[states])
    return Rollout(
        observations=torch.from_numpy(states),
        actions=torch.from_numpy(actions),
        logps=torch.zeros(states.shape),
        values=known,
        next_values=torch.cat([known[1:], torch.zeros_like(known[:1])]),
        rewards=torch.from_numpy(table[2]),
        terminated=torch.from_numpy(ended),
        ended=torch.from_numpy(ended),
        mask=torch.from_numpy(mask),
    )


def score_sum(policy: np.ndarray, rollout: Rollout, weights: np.ndarray) -> np.ndarray:
    """Sum of Ψ ∇log π over all steps, by hand: 1[a = b] - π(b|s) at the logits of s."""
    gradient = np.zeros_like(policy)
    for t, i in zip(*np.nonzero(rollout.mask.numpy()), strict=True):
        state, action = int(rollout.observations[t, i]), int(rollout.actions[t, i])
        gradient[state] -= weights[t, i] * policy[state]
        gradient[state, action] += weights[t, i]
    return gradient


def expectation(mdp, policy, estimator, baseline, *, values=None, lam=1.0, keep=True) -> np.ndarray:
    """The estimator's exact expectation, over all pairs of episodes for the mean baseline."""
    values = np.zeros(mdp.n_states) if values is None else values
    total = np.zeros_like(policy)
    together = 2 if baseline == "mean" else 1
    for drawn in product(paths(mdp, policy), repeat=together):
        rollout = as_rollout([path for _, path in drawn], values)
        weights, _ = score_weights(
            rollout, estimator, baseline, gamma=mdp.gamma, lam=lam, discount_states=keep
        )
        probability = float(np.prod([p for p, _ in drawn]))
        total += probability / together * score_sum(policy, rollout, weights.numpy())
    return total


@pytest.mark.parametrize("seed", range(5))
def test_exact_gradient_is_the_finite_difference_of_the_objective(seed: int) -> None:
    mdp = tree(seed)
    logits = np.random.default_rng(seed).normal(size=(mdp.n_states, mdp.n_actions))
    policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    numeric = np.zeros_like(logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        numeric[place] = (objective(mdp, logits + step) - objective(mdp, logits - step)) / 2e-5
    np.testing.assert_allclose(exact_policy_gradient(mdp, policy), numeric, atol=1e-8)


@pytest.mark.parametrize("baseline", ["none", "mean", "value"])
@pytest.mark.parametrize("estimator", ["reinforce", "gpomdp"])
def test_unbiased_with_any_baseline(estimator: str, baseline: str) -> None:
    """The expectation over every episode is the exact gradient; the values are arbitrary."""
    mdp = tree(1)
    policy, values = random_policy(mdp, 1), np.random.default_rng(2).normal(size=mdp.n_states)
    gradient = expectation(mdp, policy, estimator, baseline, values=values)
    np.testing.assert_allclose(gradient, exact_policy_gradient(mdp, policy), atol=1e-10)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gae_is_unbiased_with_exact_values_and_for_lambda_1(lam: float) -> None:
    mdp = tree(3)
    policy = random_policy(mdp, 3)
    exact, values = exact_policy_gradient(mdp, policy), policy_evaluation(mdp, policy)
    gradient = expectation(mdp, policy, "gae", "value", values=values, lam=lam)
    np.testing.assert_allclose(gradient, exact, atol=1e-10)
    wrong = expectation(mdp, policy, "gae", "value", values=values + np.arange(5), lam=lam)
    assert np.allclose(wrong, exact, atol=1e-10) == (lam == 1.0)


def test_dropping_the_state_discount_follows_another_direction() -> None:
    mdp = tree(4)
    policy = random_policy(mdp, 4)
    kept, dropped = (expectation(mdp, policy, "gpomdp", "none", keep=k) for k in (True, False))
    exact = exact_policy_gradient(mdp, policy)
    np.testing.assert_allclose(kept[0], exact[0], atol=1e-10)
    np.testing.assert_allclose(dropped[0], exact[0], atol=1e-10)  # the first step has γ^0
    assert np.abs(dropped[1:] - exact[1:]).max() > 0.01


def table_policy(mdp: MDP, seed: int) -> tuple[ActorCritic, np.ndarray]:
    """A softmax table as a network without hidden layers on one-hot states, and its table."""
    env = MDPEnv(mdp)
    torch.manual_seed(seed)
    policy = ActorCritic(env.observation_space, env.action_space, hidden=())
    torch.nn.init.normal_(policy.actor_head.weight)
    outputs, _ = policy(torch.eye(mdp.n_states))
    return policy, torch.softmax(outputs.double(), -1).detach().numpy()


def test_sampled_gradients_agree_with_exact_mean_and_variance() -> None:
    """Seeds 6 (policy) and 0 (episodes): 500 gradients from 4 episodes each."""
    mdp, n_episodes, batches = tree(6), 4, 500
    policy, table = table_policy(mdp, 6)
    noise = measure(
        policy,
        "classic_rl/MDP-v0",
        env_kwargs={"model": mdp},
        n_episodes=n_episodes,
        batches=batches,
        gamma=GAMMA,
    )
    exact = exact_policy_gradient(mdp, table)
    wanted = np.concatenate([exact.T.ravel(), exact.sum(0)])  # ∂J/∂W (A, S), then ∂J/∂b (A,)
    for name, variance, mean in zip(noise.names, noise.variance, noise.mean_gradient, strict=True):
        if name.startswith("GAE") and ESTIMATORS[name].lam < 0.95:
            continue  # biased by the fitted critic
        # E‖ḡ - g‖² is variance / batches.
        assert np.square(mean - wanted).sum() < 3 * variance / batches, name
    # The variance of one episode's gradient over all episodes, by enumeration.
    second = 0.0
    for probability, path in paths(mdp, table):
        rollout = as_rollout([path], np.zeros(mdp.n_states))
        weights, _ = score_weights(rollout, "reinforce", "none", gamma=GAMMA)
        one = score_sum(table, rollout, weights.numpy())
        second += probability * (np.square(one).sum() + np.square(one.sum(0)).sum())
    variance = (second - np.square(wanted).sum()) / n_episodes
    assert abs(noise.variance[0] - variance) < 4 * noise.variance_error[0]
    unbiased = [i for i, name in enumerate(noise.names) if not name.startswith("GAE")]
    bias, error = noise.squared_bias[unbiased], noise.bias_error[unbiased]
    assert (np.abs(bias) <= 4 * error).all()


def test_each_estimator_drops_noise_on_cartpole() -> None:
    """A fresh policy, seed 0; the variances fall by 1.5 and more at every one of these steps."""
    env = gym.make("CartPole-v1")
    torch.manual_seed(0)
    policy = ActorCritic(env.observation_space, env.action_space, hidden=(32,))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    noise = measure(policy, "CartPole-v1", n_episodes=8, batches=60)
    of = dict(zip(noise.names, noise.variance, strict=True))
    order = ["REINFORCE", "GPOMDP", UNBIASED, "GAE 0.95"]
    for noisy, calm in zip(order, order[1:], strict=False):
        assert of[noisy] > 1.3 * of[calm], (noisy, calm)
    assert of["REINFORCE"] > 1.5 * of["REINFORCE, mean"]
    assert of["GAE 0.95"] > of["GAE 0"]
    assert noise.relative.shape == noise.variance.shape and 0 < noise.entropy <= np.log(2)
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())


def test_measure_refuses_what_it_cannot_do() -> None:
    policy, _ = table_policy(tree(0), 0)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batches": 1}, "batches: 1"),
        ({"estimators": {"GPOMDP": ESTIMATORS["GPOMDP"]}}, "must be among them"),
        ({"n_episodes": 1}, "n_episodes must be above 1"),
    ]
    for settings, message in cases:
        with pytest.raises(ProblemError, match=message):
            measure(policy, "classic_rl/MDP-v0", env_kwargs={"model": tree(0)}, **settings)


def doubled(rollout: Rollout) -> Rollout:
    """All floats in double precision, for finite differences."""
    columns = {n: t.double() if t.is_floating_point() else t for n, t in vars(rollout).items()}
    return Rollout(**columns)


def small_world(env_id: str) -> tuple[ActorCritic, Rollout, torch.Tensor]:
    """A policy in double precision, some episodes, and its weights as one vector."""
    player = EpisodePlayer(env_id, {}, 3, seed=1)
    torch.manual_seed(1)
    policy = ActorCritic(player.observation_space, player.action_space, hidden=(8,), log_std=-0.3)
    rollout = doubled(player.play(policy))
    policy.double()
    return policy, rollout, torch.nn.utils.parameters_to_vector(policy.parameters()).detach()


class Plain(Adam):
    """Gradient descent."""

    @torch.no_grad()
    def step(self) -> None:
        assert self.parameters.grad is not None
        self.parameters.sub_(self.learning_rate * self.parameters.grad)


def log_density(policy: ActorCritic, outputs: np.ndarray, actions: np.ndarray) -> np.ndarray:
    if policy.discrete:
        return outputs[np.arange(len(actions)), actions] - np.log(np.exp(outputs).sum(1))
    std = np.exp(policy.log_std.detach().numpy())
    squares = ((actions - outputs) / std) ** 2
    return (-squares / 2 - np.log(std * np.sqrt(2 * np.pi))).sum(1)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_updates_step_along_the_finite_difference_gradient(env_id: str) -> None:
    """One step of plain gradient descent by `update`, against differences of the loss by hand."""
    policy, rollout, start = small_world(env_id)
    real = rollout.mask
    seen, actions = rollout.observations[real], rollout.actions[real].numpy()
    direction = torch.randn(len(start), dtype=torch.float64, generator=torch.manual_seed(2))

    def slope(loss) -> float:
        ends = []
        for step in (1e-5, -1e-5):
            torch.nn.utils.vector_to_parameters(start + step * direction, policy.parameters())
            with torch.no_grad():
                outputs, values = policy(seen)
            logps = log_density(policy, outputs.numpy(), actions)
            ends.append(loss(logps, values.numpy()))
        torch.nn.utils.vector_to_parameters(start, policy.parameters())
        return (ends[0] - ends[1]) / 2e-5

    config = reinforce.ReinforceConfig(estimator="gpomdp", baseline="mean", gamma=0.9)
    psi, _ = score_weights(rollout, "gpomdp", "mean", gamma=0.9)
    weights = psi[real].numpy()
    plain = Plain(reinforce.actor_parameters(policy), 1.0)
    reinforce.update(policy, {"actor": plain}, rollout, config, np.random.default_rng())
    moved = torch.nn.utils.parameters_to_vector(policy.parameters()).detach() - start
    # E over the 3 episodes of Σ_t Ψ_t log π rises along the step.
    assert float(moved @ direction) == pytest.approx(
        slope(lambda logps, values: weights @ logps / 3), rel=1e-6
    )
    if env_id == "Pendulum-v1":
        return  # the entropy by hand below is that of a softmax
    settings = a2c.A2CConfig(gamma=0.9, lam=0.7, value_coef=0.3, entropy_coef=0.2, max_grad_norm=0)
    advantage, returns = (
        column[real].numpy()
        for column in score_weights(rollout, "gae", "value", gamma=0.9, lam=0.7)
    )

    def loss(logps: np.ndarray, values: np.ndarray) -> float:
        with torch.no_grad():
            chances = torch.softmax(policy(seen)[0], -1).numpy()
        entropy = -(chances * np.log(chances)).sum(1).mean()
        error = 0.5 * np.square(values - returns).mean()
        return -(advantage * logps).mean() + 0.3 * error - 0.2 * entropy

    expected = slope(loss)
    plain = Plain(flatten_parameters(policy), 1.0)
    before = plain.parameters.detach().clone()
    a2c.update(policy, plain, rollout, settings)
    moved = plain.parameters.detach() - before
    assert -float(moved @ direction) == pytest.approx(expected, rel=1e-6)
