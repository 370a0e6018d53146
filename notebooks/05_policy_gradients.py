# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Policy gradients: improving the policy itself
#
# After this lesson you can
#
# - derive the gradient of what a policy earns, and check an estimate of it against the exact one;
# - say what each of REINFORCE, reward-to-go, baseline and critic takes out of the noise, in
#   numbers;
# - compute a generalised advantage by hand, and say what λ trades;
# - train CartPole from the policy gradient alone, and read the entropy of a policy while it learns.
#
# *Before*: [lesson 4](04_dqn.ipynb). *Takes*: about two minutes.
# *Beside it*: [deep learning, sections 4 to 7](../classic-rl/deep.md),
# [formulas](../formulas.md).

# %%
import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from lesson import claim, either, exercise, show

import classic_rl.deep.probes  # it registers classic_rl/MDP-v0
from classic_rl import a2c, reinforce
from classic_rl.advantages import discounted_returns, gae
from classic_rl.deep.configuration import configure
from classic_rl.deep.evaluation import evaluate
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.reference import tabulate
from classic_rl.deep.training import learning_curve
from classic_rl.gradient_variance import UNBIASED, exact_policy_gradient, measure
from classic_rl.losses import policy_gradient
from classic_rl.mdp import from_function
from classic_rl.pictures import plots
from classic_rl.reinforce import EpisodePlayer, score_weights
from classic_rl.tabular.evaluation import policy_evaluation

# %% [markdown]
# ## Why not learn values?
#
# DQN learns what actions are worth and then takes the best one. Three things are hard for it: many
# actions (the maximum must be found), actions that are real numbers, and problems where the best
# policy must be random. A **policy gradient** method has a policy with weights $\theta$, and
# changes $\theta$ so that the policy earns more. Language models are tuned in this way.
#
# We begin where everything can be computed: three rooms in a row. *Safe* pays 1 and leads on.
# *Bold* pays 4 and leads on, or pays −1 and ends the episode, with chance ½ each.

# %%
SAFE, BOLD, END, GAMMA = 0, 1, 3, 0.9


def rooms(state, action):
    """(probability, next state, reward) of each outcome."""
    if action == SAFE:
        return [(1.0, state + 1, 1.0)]
    return [(0.5, state + 1, 4.0), (0.5, END, -1.0)]


mdp = from_function(rooms, n_states=4, n_actions=2, gamma=GAMMA, start=0, terminal=[END])


def softmax(logits):
    """Probabilities (S, A) of a table of logits (S, A)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def objective(logits):
    """J: the discounted return that the policy earns from the first room."""
    return float(mdp.start @ policy_evaluation(mdp, softmax(logits)))


print(f"at random J = {objective(np.zeros((4, 2))):.3f}")
for choice in np.ndindex(2, 2, 2):
    table = np.zeros((4, 2))
    table[np.arange(3), choice] = 50.0  # certain
    print("".join(f"{('safe', 'bold')[a]:6}" for a in choice), f"J = {objective(table):.3f}")

# %% [markdown]
# Bold pays 1.5 on average and safe pays 1. But a bold step may end the episode, and then the later
# rooms pay nothing. So bold is best in the last room only.
#
# $J$ is a smooth function of the logits: a landscape. Two of them are drawn here, the logits for
# *bold* in the first and in the last room. The arrows are the exact gradient, and the line follows
# it uphill.

# %%
size = either(25, 5)
axis = np.linspace(-3, 3, size)
height = np.zeros((size, size))
for i, j in np.ndindex(size, size):
    height[i, j] = objective(np.array([[0, axis[j]], [0, 0], [0, axis[i]], [0, 0]]))

logits, path = np.zeros((4, 2)), []
logits[0, BOLD], logits[2, BOLD] = 2.5, -2.5  # as wrong as can be
for _ in range(either(150, 5)):
    path.append((logits[0, BOLD] - logits[0, SAFE], logits[2, BOLD] - logits[2, SAFE]))
    step = exact_policy_gradient(mdp, softmax(logits))
    step[1] = 0.0  # the middle room stays at random here, or the picture would need 3 axes
    logits = logits + 0.5 * step

figure, axes = plt.subplots(figsize=(5.6, 4))
surface = axes.contourf(axis, axis, height, 18, cmap="Blues")
figure.colorbar(surface, label="J, discounted return")
for x in axis[:: max(size // 6, 1)]:
    for y in axis[:: max(size // 6, 1)]:
        g = exact_policy_gradient(mdp, softmax(np.array([[0, x], [0, 0], [0, y], [0, 0]])))
        axes.arrow(x, y, 4 * g[0, BOLD], 4 * g[2, BOLD], width=0.03, color=plots.INK)
axes.plot(*zip(*path, strict=True), color=plots.ORANGE, lw=2.5)
axes.set(xlabel="logit of bold, first room", ylabel="logit of bold, last room")
axes.set(xlim=(-3, 3), ylim=(-3, 3))
figure.tight_layout()

# %% [markdown]
# *What to see.* Uphill is to the left (safe first) and up (bold last). The arrows are long in the
# middle and short at the edges: where a policy is nearly certain, its gradient is nearly zero, also
# where it is certain of the wrong thing. We come back to this under *Entropy*.
#
# ## The score function
#
# A real problem gives no formula for $J$; we can only play. An episode
# $\tau = (s_0, a_0, s_1, a_1, …)$ has the return $R(\tau)$ and the probability
# $p_\theta(\tau) = d_0(s_0) \prod_t \pi_\theta(a_t \mid s_t)\, P(s_{t+1} \mid s_t, a_t)$. Then
#
# $$\nabla J = \nabla \sum_\tau p_\theta(\tau) R(\tau)
# = \sum_\tau p_\theta(\tau) \frac{\nabla p_\theta(\tau)}{p_\theta(\tau)} R(\tau)
# = E\big[\nabla \log p_\theta(\tau)\, R(\tau)\big]$$
#
# An expectation again, so playing estimates it. The logarithm turns the product into a sum. Of that
# sum $d_0$ and $P$ do not depend on $\theta$, and they drop out: **we need not know the rules.**
#
# $$\nabla J = E\Big[ \sum_t \nabla \log \pi_\theta(a_t \mid s_t) \; \Psi_t \Big], \qquad
# \Psi_t = R(\tau)$$
#
# $\nabla \log \pi$ is the **score**. Nothing is differentiated but the policy: the reward may come
# from a simulator, a person, or a model that judges text.
#
# As a loss for an optimiser that goes downhill it is one line:

# %%
show(policy_gradient)

# %% [markdown]
# **Exercise 5.1.** Let the policy be a softmax: $\pi(a) = e^{\theta_a} / \sum_b e^{\theta_b}$.
# Write the score $\partial \log \pi(a) / \partial \theta_b$ for each $b$, from the probabilities
# alone.


# %% tags=["exercise"]
def my_score(probabilities, action):
    # your code: an array as long as `probabilities`
    ...


# %% tags=["check"]
with exercise("5.1"):
    chances = np.array([0.2, 0.5, 0.3])
    found = np.asarray(my_score(chances, 1), dtype=float)
    assert found.shape == (3,), "one number for each logit"
    assert not np.allclose(found, [0, 1, 0]), (
        "log π(a) = θ_a − log Σ exp θ: the second term has a derivative too"
    )
    assert not np.allclose(found, [-0.1, 0.25, -0.15]), "that is ∇π; divide it by π(a)"
    assert np.allclose(found, [-0.2, 0.5, -0.3]), "1 at the action taken, minus the probabilities"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_score(probabilities, action):
#     score = -np.asarray(probabilities, dtype=float)
#     score[action] += 1.0
#     return score
# ```
#
# The scores of all actions, weighed by their probabilities, sum to zero. That is the whole reason
# why a baseline will be allowed below.
#
# </details>

# %% [markdown]
# ## Estimate against exact
#
# Now we play the three rooms, and compare. The policy is a network without hidden layers on
# one-hot states, that is a table. `score_weights` is the library's $\Psi$. Below, each episode
# gives a gradient of its own, so we see the mean and the spread.

# %%
rooms_env = {"model": mdp}
player = EpisodePlayer("classic_rl/MDP-v0", rooms_env, n_episodes=either(500, 8), seed=0)
torch.manual_seed(0)
table_policy = ActorCritic(player.observation_space, player.action_space, hidden=())
torch.nn.init.normal_(table_policy.actor_head.weight)  # some policy, neither random nor good
table = tabulate(table_policy)  # (S, A), its probabilities
exact = exact_policy_gradient(mdp, table)
rollouts = [player.play(table_policy) for _ in range(either(40, 2))]
print("probability of bold by room", table[:3, BOLD].round(2))
print("first episode: actions", rollouts[0].actions[:, 0][rollouts[0].mask[:, 0]].tolist())


def gradients(weights_of):
    """The gradient that each episode gives, (E, S, A): the sum over t of score times weight."""
    found = []
    for rollout in rollouts:
        states = rollout.observations.double().numpy()  # (T, N, S), one-hot
        taken = np.eye(2)[rollout.actions.numpy()]  # (T, N, A)
        scores = taken - states @ table  # 1[a = b] − π(b|s), as in exercise 5.1
        weights = (weights_of(rollout) * rollout.mask).double().numpy()  # (T, N)
        found.append(np.einsum("tn,tns,tna->nsa", weights, states, scores))
    return np.concatenate(found)


def psi(estimator, baseline):
    """The library's weights of that estimator, with the factor γ^t that the theorem has."""

    def weights(rollout):
        keep = {"gamma": GAMMA, "discount_states": True}
        return score_weights(rollout, estimator, baseline, **keep)[0]

    return weights


each = gradients(psi("reinforce", "none"))
mean = each.mean(0)
error = each.std(0) / np.sqrt(len(each))  # the standard error of that mean
for room in range(3):
    print(
        f"room {room}, ∂J/∂(logit of bold): exact {exact[room, BOLD]:+.4f}, "
        f"estimate {mean[room, BOLD]:+.4f} ± {error[room, BOLD]:.4f}"
    )
claim(
    "the estimate is within four standard errors of the exact gradient",
    (np.abs(mean - exact)[:3] < 4 * error[:3]).all(),
)

# %% [markdown]
# On average it is right. How many episodes does "on average" take?

# %%
counts = np.unique(np.logspace(0.7, np.log10(len(each)), either(14, 3)).astype(int))
off = [
    np.mean([np.linalg.norm(part.mean(0) - exact) for part in np.array_split(each, len(each) // n)])
    for n in counts
]
figure, axes = plt.subplots(figsize=(6.4, 3))
axes.loglog(counts, off, "o-", color=plots.BLUE, label="REINFORCE's error")
axes.axhline(np.linalg.norm(exact), ls="--", color=plots.INK, label="length of the gradient")
axes.loglog(counts, off[0] * np.sqrt(counts[0] / counts), ":", color=plots.GREY, label="∝ 1/√N")
axes.set(xlabel="episodes N", ylabel="distance from exact gradient")
axes.legend()
figure.tight_layout()
reached = next((int(n) for n, d in zip(counts, off, strict=True) if d < np.linalg.norm(exact)), 0)
print(f"the error falls below the gradient's own length at about {reached} episodes")

# %% [markdown]
# *What to see.* The error falls as $1/\sqrt N$: a hundred times the episodes for one more digit.
# Left of the crossing the estimate is mostly noise. That is the problem of policy gradients, and
# all that follows in this lesson is about it: **the same expectation with less variance.**
#
# ## Reward to go
#
# REINFORCE weighs each action by the whole return, also by what was paid *before* the action. The
# action cannot have caused that. It adds noise, and its expectation is zero. Without it (GPOMDP,
# Baxter & Bartlett 2001) the weight is the **reward to go**:
#
# $$\Psi_t = \gamma^t G_t, \qquad G_t = r_t + \gamma G_{t+1}$$
#
# In practice the factor $\gamma^t$ is dropped, so that late steps count as much as early ones.
# What is followed then is not quite a gradient (Nota & Thomas 2020), and it works better.

# %% [markdown]
# **Exercise 5.2.** Write the rewards to go of one episode, all of them.


# %% tags=["exercise"]
def my_rewards_to_go(rewards, gamma):
    # your code: a list as long as `rewards`
    ...


# %% tags=["check"]
with exercise("5.2"):
    paid = [1.0, 0.0, 2.0]
    found = np.asarray(my_rewards_to_go(paid, 0.5), dtype=float)
    assert found.shape == (3,), "a number for each step"
    assert not np.allclose(found, [1.5, 1.5, 1.5]), "that is REINFORCE: leave out the past rewards"
    assert not np.allclose(found, [1.5, 0.5, 0.5]), (
        "count the discount from step t, not from the start: γ^(k−t)"
    )
    wanted = discounted_returns(torch.tensor(paid), torch.tensor([False, False, True]), 0.5)
    assert np.allclose(found, wanted), "begin at the end: G = r + γ · G′"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_rewards_to_go(rewards, gamma):
#     total, found = 0.0, []
#     for reward in reversed(rewards):
#         total = reward + gamma * total
#         found.append(total)
#     return found[::-1]
# ```
#
# </details>

# %% [markdown]
# ## A baseline
#
# Let all rewards be 100 larger. Nothing about the best policy changes, but every action taken is
# now pushed up with force 100, and the differences drown. Take off a number $b(s)$ that does not
# depend on the action. The expectation stays, because the scores of a policy sum to zero:
#
# $$E_{a \sim \pi}[\nabla \log \pi(a \mid s)\, b(s)] = b(s) \sum_a \pi(a \mid s)
# \frac{\nabla \pi(a \mid s)}{\pi(a \mid s)}
# = b(s)\, \nabla \sum_a \pi(a \mid s) = b(s)\, \nabla 1 = 0$$
#
# One state, three arms, no randomness in the rewards: the variance is a parabola in $b$.

# %%
arms = np.array([0.7, 0.2, 0.1])
pays = np.array([1.0, 2.0, 4.0])
scores = np.eye(3) - arms  # a row for each action
squares = np.square(scores).sum(1)  # ‖score‖² of each action


def arm_variance(b):
    """E‖g‖² − ‖E g‖² of the estimate from one pull, with the baseline b."""
    mean_gradient = arms @ (scores * (pays - b)[:, None])
    return arms @ (squares * (pays - b) ** 2) - mean_gradient @ mean_gradient


grid = np.linspace(-1, 5, 100)
figure, axes = plt.subplots(figsize=(6.4, 3))
axes.plot(grid, [arm_variance(b) for b in grid], color=plots.BLUE)
axes.axvline(0, color=plots.GREY, ls=":", label="no baseline")
axes.axvline(arms @ pays, color=plots.ORANGE, ls="--", label=f"mean reward {arms @ pays:.2f}")
axes.set(xlabel="baseline b", ylabel="variance of the gradient", ylim=(0, None))
axes.legend()
figure.tight_layout()
print(f"variance: none {arm_variance(0):.2f}, mean reward {arm_variance(arms @ pays):.2f}")

# %% [markdown]
# *What to see.* The mean reward is a good baseline, and not the best one: the minimum lies to its
# right. A baseline that is far off does harm.
#
# **Exercise 5.3.** Find the lowest point. The part that depends on $b$ is $\sum_a \pi(a)\,
# \|\nabla \log \pi(a)\|^2\, (r(a) - b)^2$; set its derivative to zero. `squares` are the $\|\nabla
# \log \pi(a)\|^2$.


# %% tags=["exercise"]
def my_best_baseline(chances, rewards, squares):
    # your code: one number
    ...


# %% tags=["check"]
with exercise("5.3"):
    found = float(my_best_baseline(arms, pays, squares))
    assert not np.isclose(found, arms @ pays), (
        "that is the mean reward: each action counts by its squared score as well"
    )
    assert not np.isclose(found, (squares * pays).sum() / squares.sum()), "π(a) is missing"
    near = [arm_variance(found + d) for d in (-0.01, 0.0, 0.01)]
    assert near[1] < min(near[0], near[2]), (
        "a weighted mean of the rewards: the weights are π(a)·‖score‖², divided by their sum"
    )
    other = my_best_baseline(np.array([0.5, 0.5]), np.array([0.0, 1.0]), np.array([1.0, 3.0]))
    assert np.isclose(other, 0.75), "right for these arms: now use the arguments, not the arms"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_best_baseline(chances, rewards, squares):
#     weights = np.asarray(chances) * squares
#     return (weights * rewards).sum() / weights.sum()
# ```
#
# It is known (Greensmith et al. 2004) and hardly used: the value of the state is nearly as good
# and is learned anyway.
#
# </details>

# %% [markdown]
# ## The critic, and what it costs
#
# The usual baseline is the value $V(s)$, learned by a second network, the **critic**. Then the
# weight is an **advantage**: how much better it went than usual in this state.
#
# Once there is a critic, it can do more. After one step it can say what is still to come:
# $\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t)$. This is the TD error of lesson 3. Its noise is
# that of one step, and it is as wrong as the critic is. **Generalised advantage estimation** (GAE,
# Schulman et al. 2016) has a dial between the two:
#
# $$\hat A_t = \delta_t + \gamma \lambda\, \hat A_{t+1}$$
#
# λ = 1 is the reward to go minus $V$; λ = 0 is $\delta_t$ alone. In the library:

# %%
show(gae, "delta =")

# %% [markdown]
# Mind the two words in it. **Terminated**: there is no future, so $V(s_{t+1})$ counts as 0.
# **Ended**: terminated or cut off by a time limit; the sum stops there, but a cut-off episode
# *would* have gone on, so its $V(s_{t+1})$ counts. Lesson 6 shows what happens when the two are
# mixed up.
#
# **Exercise 5.4.** Three steps with rewards 1, 0, 2 and values 1.0, 2.0, 1.5. After the last step
# the critic says 4.0. Give the three advantages for γ = 0.5, λ = 0.5: (a) if the episode
# terminates there, (b) if a time limit cuts it off there. By hand, or in Python.

# %% tags=["exercise"]
terminates = ...  # [Â0, Â1, Â2]
cut_off = ...  # the same three

# %% tags=["check"]
with exercise("5.4"):

    def worked(terminated, lam=0.5):
        flags = torch.tensor([False, False, terminated])
        rewards, values = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 2.0, 1.5])
        following, last = torch.tensor([2.0, 1.5, 4.0]), torch.tensor([False, False, True])
        places = {"terminated": flags, "ended": last, "gamma": 0.5, "lam": lam}
        return gae(rewards, values, following, **places)[0].numpy()

    first, second = (np.asarray(x, dtype=float) for x in (terminates, cut_off))
    assert first.shape == second.shape == (3,), "three numbers each"
    assert not np.allclose(first, worked(False)), "(a): nothing follows, so V(s′) of the last is 0"
    assert not np.allclose(second, worked(True)), "(b): the critic's 4.0 counts, discounted"
    assert not np.allclose(first, worked(True, lam=1.0)), "Â(t+1) comes with γ·λ, not with γ"
    assert not np.allclose(first, worked(True, lam=0.0)), "these are the δ; now add γ·λ·Â(t+1)"
    assert np.allclose(first, worked(True)), "(a): begin with Â2 = 2 + 0 − 1.5"
    assert np.allclose(second, worked(False)), "(b): begin with Â2 = 2 + 0.5 · 4.0 − 1.5"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# # δ0 = 1 + 0.5·2 − 1 = 1;  δ1 = 0 + 0.5·1.5 − 2 = −1.25;  δ2 = 2 − 1.5 = 0.5, or 2.5 when cut off
# terminates = [1 + 0.25 * (-1.25 + 0.25 * 0.5), -1.25 + 0.25 * 0.5, 0.5]
# cut_off = [1 + 0.25 * (-1.25 + 0.25 * 2.5), -1.25 + 0.25 * 2.5, 2.5]
# ```
#
# </details>

# %% [markdown]
# What does λ trade? In the three rooms we know the exact gradient and the exact values. We take a
# critic that is right, and one that is wrong by a constant pattern, and measure variance and bias.

# %%
right = policy_evaluation(mdp, table)
wrong = right + np.array([0.8, -1.5, 0.8, 0.0])


def by_gae(values, lam):
    """The library's GAE with these values of the states instead of the network's."""

    def weights(rollout):
        known = torch.from_numpy(values[rollout.observations.argmax(-1).numpy()]).float()
        following = torch.cat([known[1:], torch.zeros_like(known[:1])])  # all episodes terminate
        told = replace(rollout, values=known, next_values=following)
        keep = {"gamma": GAMMA, "lam": lam, "discount_states": True}
        return score_weights(told, "gae", "value", **keep)[0]

    return weights


def variance_and_bias(each):
    """Trace of one episode's covariance, and squared distance of the mean from the exact."""
    variance = each.var(0, ddof=1).sum()
    # The mean's own noise is part of that distance and is taken off.
    return variance, max(np.square(each.mean(0) - exact).sum() - variance / len(each), 0.0)


lams = np.linspace(0, 1, either(11, 3))
measured = {
    name: np.array([variance_and_bias(gradients(by_gae(values, lam))) for lam in lams])
    for name, values in (("right critic", right), ("wrong critic", wrong))
}
figure, (left_axes, right_axes) = plt.subplots(1, 2, figsize=(6.4, 3))
for (name, numbers), colour in zip(measured.items(), plots.SERIES, strict=False):
    left_axes.plot(lams, numbers[:, 0], "o-", ms=4, color=colour, label=name)
    right_axes.plot(lams, numbers[:, 1], "o-", ms=4, color=colour, label=name)
left_axes.set(xlabel="λ", title="variance, one episode", ylim=(0, None))
right_axes.set(xlabel="λ", title="squared bias")
right_axes.legend()
figure.tight_layout()

rows = {
    "REINFORCE": psi("reinforce", "none"),
    "reward to go": psi("gpomdp", "none"),
    "reward to go − V": by_gae(right, 1.0),
    "δ, right critic": by_gae(right, 0.0),
    "δ, wrong critic": by_gae(wrong, 0.0),
}
noise_of = {}
for name, weights in rows.items():
    noise_of[name], bias = variance_and_bias(gradients(weights))
    print(f"{name:18} variance {noise_of[name]:6.3f}   squared bias {bias:.4f}")
names = list(noise_of)[:4]
claim(
    "each of the first four has less variance than the one before",
    all(noise_of[a] > noise_of[b] for a, b in zip(names, names[1:], strict=False)),
)

# %% [markdown]
# *What to see.* With the right critic λ = 0 is best: no bias, least variance. With the wrong
# critic the bias grows as λ falls, and at λ = 1 it is gone, whatever the critic says. Real critics
# are between the two, and so is the usual λ = 0.95.
#
# ## The same on CartPole
#
# There is no exact gradient here, but the variance can be measured: hold the policy fixed, and
# estimate its gradient again and again from eight fresh episodes, with every estimator on the same
# episodes. We do so for a fresh policy and for one that has learned for 10,000 steps.

# %%
half = reinforce.train(
    configure("reinforce", "CartPole-v1", flags={"total_steps": either(10_000, 200)})
).policy
assert isinstance(half, ActorCritic)
torch.manual_seed(0)
fresh = ActorCritic(half.observation_space, half.action_space)
sizes = {"n_episodes": either(8, 3), "batches": either(60, 2), "critic_batches": either(20, 1)}
noises = {
    "fresh policy": measure(fresh, "CartPole-v1", **sizes),
    "after 10,000 steps": measure(half, "CartPole-v1", **sizes),
}
figure, axes = plt.subplots(figsize=(6.4, 3.6))
for k, (name, noise) in enumerate(noises.items()):
    # Variance over the squared length of the gradient: noise to signal, without a unit.
    places = np.arange(len(noise.names))[::-1] + 0.2 - 0.4 * k
    axes.barh(places, noise.relative, 0.38, color=plots.SERIES[k], label=name)
axes.set_yticks(np.arange(len(noise.names))[::-1], noise.names)
axes.axvline(1.0, color=plots.INK, ls=":")
axes.set(xscale="log", xlabel="variance ÷ |gradient|², eight episodes (log scale)")
axes.legend()
figure.tight_layout()
for name, noise in noises.items():
    of = dict(zip(noise.names, noise.relative, strict=True))
    print(
        f"{name}: REINFORCE {of['REINFORCE']:.2f}, GPOMDP {of['GPOMDP']:.2f}, "
        f"with V {of[UNBIASED]:.2f}, GAE 0.95 {of['GAE 0.95']:.2f}"
    )
    order = ["REINFORCE", "GPOMDP", UNBIASED, "GAE 0.95"]
    claim(
        "the variances fall in this order",
        all(of[a] > of[b] for a, b in zip(order, order[1:], strict=False)),
    )

# %% [markdown]
# *What to see.* The dotted line is where noise and signal are equal. The longer the episodes, the
# more past and future rewards an action is wrongly paid for, and the more the estimator matters.
# The names: *mean* has the mean of the other episodes as its baseline, *value* the critic's.

# %% [markdown]
# ## Does less noise mean better learning?
#
# Four trainings that differ in the estimator only. The loop is short: play some whole episodes,
# weigh, one step of the policy, and some steps of the critic. This is the step:

# %%
show(reinforce.update, "real, n_episodes", "_descend")

# %%
variants = {
    "REINFORCE": ["estimator=reinforce", "baseline=none"],
    "reward to go": ["estimator=gpomdp", "baseline=none"],
    "reward to go − V": ["estimator=gpomdp", "baseline=value"],
    "GAE, λ = 0.95": ["estimator=gae", "baseline=value"],
}
seeds = either((0, 1), (0,))
steps = either(150_000, 300)
runs = {
    name: [
        reinforce.train(
            configure(
                "reinforce",
                "CartPole-v1",
                flags={"total_steps": steps, "seed": seed},
                overrides=settings,
            )
        )
        for seed in seeds
    ]
    for name, settings in variants.items()
}


def returns_of(runs, points=60):
    """Steps (G,) and a learning curve (K, G) of K runs: the mean return of recent episodes."""
    total = min(run.config.total_steps for run in runs)
    grid = np.linspace(0, total, points + 1)[1:]
    episodes = [{"steps": r.episodes.steps, "returns": r.episodes.returns} for r in runs]
    return grid, np.stack([learning_curve(e, grid, total / 20) for e in episodes])


display(
    plots.curves(
        {name: returns_of(group) for name, group in runs.items()},
        title="CartPole: only the estimator differs",
        xlabel="environment steps",
        ylabel="episode return",
    )
)
scores = {
    name: [evaluate(run.policy, "CartPole-v1", either(100, 2)).returns.mean() for run in group]
    for name, group in runs.items()
}
for name, found in scores.items():
    print(f"{name:18} greedy return by seed:", " ".join(f"{score:.0f}" for score in found))
claim(
    "reward to go − V plays CartPole with more than 450 over 100 episodes, on both seeds",
    min(scores["reward to go − V"]) > 450,
)

# %% [markdown]
# *What to see.* Bands reach from one seed to the other; there are two, so this is an impression.
# Five seeds are in the [course page](../classic-rl/deep.md). REINFORCE has played the same number
# of steps, and most of what it follows is noise.
#
# ## Entropy: how undecided the policy is
#
# $H[\pi] = -\sum_a \pi(a) \log \pi(a)$, in **nats**. Two actions that are equally likely have
# $\log 2 = 0.69$ nats; a certain policy has 0, tries nothing else, and learns nothing more.

# %%
entropies = {}
for name, group in runs.items():
    grid = np.linspace(0, steps, 60)
    rows = [np.interp(grid, run.curve["steps"], run.curve["entropy"]) for run in group]
    entropies[name] = (grid, np.stack(rows))
    print(f"{name:18} entropy at the end {np.mean([row[-1] for row in rows]):.2f} nats")
display(
    plots.curves(
        entropies,
        title="CartPole: entropy while learning",
        xlabel="environment steps",
        ylabel="entropy, nats",
        level=(float(np.log(2)), "both alike"),
    )
)

# %% [markdown]
# *What to see.* Entropy falls while the policy makes up its mind. In these two runs REINFORCE ends
# with the lowest entropy and the lowest return: it is sure of the wrong thing. If it falls to zero
# before the return has risen, the policy is stuck. Here is why, and what an **entropy bonus**
# does: we start in the three rooms with a policy that is nearly certain of *bold* in the first
# room (wrong), and follow the exact gradient of $J + c\,H$, with $H$ the entropy in the first
# room.

# %%


def entropy_gradient(table):
    """∂H/∂θ_b = −π(b) (log π(b) + H) of each state's softmax, (S, A)."""
    entropy = -(table * np.log(table)).sum(1, keepdims=True)
    return -table * (np.log(table) + entropy)


figure, axes = plt.subplots(figsize=(6.4, 3))
halfway = {}
for coefficient, colour in zip((0.0, 0.05, 0.2), plots.SERIES, strict=False):
    logits, chances = np.zeros((4, 2)), []
    logits[0, BOLD] = 6.0  # π(bold) = 0.9975 in the first room
    logits[2, BOLD] = 3.0
    for _ in range(either(3000, 20)):
        table_now = softmax(logits)
        chances.append(table_now[0, SAFE])
        step = exact_policy_gradient(mdp, table_now) + coefficient * entropy_gradient(table_now)
        logits[0] += 0.2 * step[0]
    axes.plot(chances, color=colour, label=f"entropy coefficient {coefficient:g}")
    halfway[coefficient] = int(np.sum(np.array(chances) < 0.5))
    print(
        f"coefficient {coefficient:g}: safe is the likelier after {halfway[coefficient]} steps,"
        f" at the end its probability is {chances[-1]:.3f}"
    )
axes.set(xlabel="gradient steps", ylabel="π(safe), first room", ylim=(0, 1.02))
axes.legend(loc="lower right")
figure.tight_layout()
claim("the bonus leaves the plateau sooner", halfway[0.2] < halfway[0.05] < halfway[0.0])

# %% [markdown]
# *What to see.* Without the bonus nothing happens for a long time: the gradient is $\pi(1-\pi)$
# times the advantage, and at certainty that is zero. The bonus leaves the plateau much sooner. It
# has a price, too: the final policy stays more random than is best. So the coefficient is small:
# 0.01 is usual.
#
# ## Actor and critic: A2C
#
# Waiting for whole episodes is not needed once a critic says what the rest is worth. **A2C** takes
# a few steps in 16 environments, makes one step on actor and critic together, and goes on:

# %%
show(a2c.update, "actor =", "loss =")

# %%
quick = either({}, {"total_steps": 600})
actor_critic = a2c.train(configure("a2c", "CartPole-v1", flags=quick))
greedy = evaluate(actor_critic.policy, "CartPole-v1", either(100, 2)).returns
x, y = returns_of([actor_critic])
display(
    plots.curves(
        {"A2C": (x, y)},
        title="A2C on CartPole",
        xlabel="environment steps",
        ylabel="episode return",
        level=(475, "solved"),
    )
)
print(f"A2C: {actor_critic.steps:,} steps, greedy return {greedy.mean():.1f} over 100 episodes")
claim("A2C plays CartPole with more than 450 over 100 episodes", greedy.mean() > 450)

# %% [markdown]
# ## LunarLander
#
# A harder problem: eight numbers to see, four actions (no engine, left, main, right), episodes of hundreds of steps, and a reward
# that mixes fuel, speed, legs and crashes. This is a short run, with one seed, of the policy
# gradient with reward to go and critic. The return rises slowly
# and stays far below 200.

# %%
short = reinforce.train(
    configure("reinforce", "LunarLander-v3", flags={"total_steps": either(120_000, 300)})
)
played = np.array(short.episodes.returns)
display(
    plots.curves(
        {"reward to go − V": returns_of([short])},
        title="LunarLander, a short run",
        xlabel="environment steps",
        ylabel="episode return",
        level=(200, "solved"),
    )
)
first, last = played[:100].mean(), played[-100:].mean()
print(f"{len(played)} episodes: the first hundred {first:.0f}, the last hundred {last:.0f}")
claim("the return has risen by more than 50", last - first > 50)

# %% [markdown]
# What solves it is PPO, the next lesson. These are the five seeds that the project keeps:

# %%
kept = Path(classic_rl.__file__).parents[1] / "docs" / "classic-rl" / "results.json"
rows = json.loads(kept.read_text(encoding="utf-8"))["rows"]
for name in ("reinforce-cartpole", "a2c-cartpole", "ppo-cartpole", "ppo-lunarlander"):
    found = [seed["score"] for seed in rows[name]["seeds"]]
    print(f"{name:20} greedy, 100 episodes:", " ".join(f"{score:6.1f}" for score in found))

# %% [markdown]
# The whole LunarLander runs, in a terminal:
#
# ```
# python -m classic_rl ppo --env LunarLander-v3 --seeds 0 1 2 3 4
# python -m classic_rl reinforce --env LunarLander-v3
# python docs/make/classic_deep_figures.py estimators-lunarlander --seeds 0 1 2
# ```
#
# ## Run it on your own
#
# Change the names in the next cell. Three things worth trying:
#
# 1. `n_episodes=4`, then `64`: fewer episodes for each step, but more steps. Which learns faster?
# 2. `learning_rate=0.05` with `estimator=reinforce`: see the entropy fall before the return rises.
#    Then add `entropy_coef=0.01`.
# 3. `Acrobot-v1`, where each step costs 1 and nothing else is paid: does the value baseline still
#    help?

# %%
ENVIRONMENT = "CartPole-v1"
SETTINGS = ["estimator=gpomdp", "baseline=value", "n_episodes=16", "learning_rate=0.01"]
STEPS = either(40_000, 200)

mine = reinforce.train(
    configure("reinforce", ENVIRONMENT, flags={"total_steps": STEPS}, overrides=SETTINGS)
)
print(
    f"{ENVIRONMENT}: return of the last 100 training episodes {mine.episodes.recent_return():.0f}"
)
print(f"entropy {mine.curve['entropy'][0]:.2f} → {mine.curve['entropy'][-1]:.2f} nats")
print(f"observation {gym.make(ENVIRONMENT).observation_space.shape}, {mine.seconds:.0f} s")
