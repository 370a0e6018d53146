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
# # 4. DQN: Q-learning with a network
#
# After this lesson you can
#
# - say why a network needs a replay memory and a target network, and when it does not;
# - compute DQN's targets and losses, double, n-step and prioritised included;
# - train CartPole to 500 points, see it forget, and check whether it overestimates;
# - make the screen of an Atari game into an input.
#
# *Before*: [lesson 3](03_q_learning.ipynb). *Takes*: two minutes.
# *Beside it*: [networks](../classic-rl/deep.md#3-deep-q-learning).

# %%
import json
from dataclasses import replace

import gymnasium as gym
import lesson
import matplotlib.pyplot as plt
import numpy as np
from lesson import claim, either, exercise, show

from classic_rl import dqn
from classic_rl.deep import policies, replay
from classic_rl.deep.configuration import configure
from classic_rl.deep.evaluation import evaluate
from classic_rl.envs import environments
from classic_rl.errors import ProblemError

# %% [markdown]
# ## Where tables end
#
# CartPole's state is four real numbers. No state is ever met twice, so a table has nothing to look up. A
# network $Q_\theta(s, \cdot)$ *generalises*: what it learns of one state changes its neighbours too. The
# update of lesson 3 becomes a loss:
#
# $$y = r + \gamma \max_{a'} Q_{\theta^-}(s', a'), \qquad L(\theta) = \tfrac12 \big(y - Q_\theta(s, a)\big)^2$$
#
# $y$ is taken as a constant. It is "semi" a gradient: nothing flows back through the target.

# %%
show(dqn.Learner.update)

# %% [markdown]
# **Exercise 4.1.** Compute the targets of a batch. `q_next` has the target network's values of the next
# states, `(B, A)`; `terminated` is a boolean array.


# %% tags=["exercise"]
def my_targets(rewards, q_next, terminated, gamma):
    # your code: an array (B,)
    ...


# %% tags=["check"]
with exercise("4.1"):
    found = np.asarray(
        my_targets(
            np.array([1.0, 1.0]), np.array([[2.0, 5.0], [2.0, 5.0]]), np.array([False, True]), 0.9
        ),
        dtype=float,
    )
    assert found.shape == (2,), "one target a transition"
    assert found[1] == 1.0, "a fall has no future: only the reward is left"
    assert np.isclose(found[0], 5.5), "1 + 0.9 · max(2, 5)"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_targets(rewards, q_next, terminated, gamma):
#     return rewards + gamma * np.where(terminated, 0.0, q_next.max(axis=1))
# ```
#
# </details>

# %% [markdown]
# ## Train it
#
# The settings are in `configs/classic/dqn-CartPole-v1.yaml`. A seed takes some ten seconds.

# %%
SETTINGS = replace(configure("dqn", "CartPole-v1"), total_steps=either(60_000, 2_000))


def trained(seed=0, **changes):
    return dqn.train(replace(SETTINGS, seed=seed, **changes))


EPISODES = either(100, 3)


def plays(result, episodes=EPISODES):
    """Mean return of greedy episodes that no training has seen."""
    return float(
        evaluate(result.policy, "CartPole-v1", episodes=episodes, seed=1_000_000).returns.mean()
    )


runs = [trained(seed) for seed in either((0, 1), (0,))]
scores = [plays(run) for run in runs]
print("mean return of 100 greedy episodes:", [round(score, 1) for score in scores])
claim("more than 450 on every seed", min(scores) > 450)

table = json.loads((lesson.ROOT / "docs/classic-rl/results.json").read_text(encoding="utf-8"))
five = [seed["score"] for seed in table["rows"]["dqn-cartpole"]["seeds"]]
print("five seeds, measured by docs/make/classic_results.py:", five)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
for seed, run in enumerate(runs):
    left.plot(run.curve["steps"], run.curve["episode_return"], label=f"seed {seed}")
    right.plot(run.curve["steps"], run.curve["action_value"], label=f"seed {seed}")
left.set(xlabel="steps", ylabel="return of recent episodes")
right.set(xlabel="steps", ylabel="mean Q of a batch")
left.legend()
figure.tight_layout()

# %% [markdown]
# *What to see.* Left the training episodes, random actions included. Right the values that the network
# believes. At γ = 0.998 a pole that never falls is worth $1/(1-\gamma) = 500$. Values far above that would
# be a sign of divergence.
#
# ## Take a part away
#
# Steps that follow each other are alike, and a network forgets what it does not see. So the steps go
# into a **replay** memory, and each update takes a random batch. The target moves with every step of the
# network that chases it. So a slower copy, the **target network**, computes it. Without them:

# %%
parts = {
    "as shipped": {},
    "no replay": {"replay": False},
    "no target network": {"target_network": False},
    "one-step targets": {"n_step": 1},
}
curves = {name: trained(2, **changes) for name, changes in parts.items()}
figure, axes = plt.subplots(figsize=(6.4, 3.4))
for name, run in curves.items():
    axes.plot(run.curve["steps"], run.curve["episode_return"], label=name)
    print(f"{name:18s} greedy return {plays(run, either(20, 2)):6.1f}")
axes.set(xlabel="steps", ylabel="return of recent episodes")
axes.legend()

# %% [markdown]
# *What to see.* One seed; [deep.md](../classic-rl/deep.md#3-deep-q-learning) has five: 500 as shipped, 312
# without replay, 210 with one-step targets, and 500 without the target network. So the famous target
# network is not what holds it up *here*: with ten measured rewards in each target there is little left
# that moves. Which part matters depends on the others. That is why one removes them one at a time.
#
# ## Forgetting, and the best on the way
#
# "It reached 500, then collapsed" is an old question (for one: datascience.stackexchange.com/questions/56053).
# Tutorials use one-step targets, a shorter horizon and a constant learning rate. One seed:

# %%
tutorial = trained(
    3,
    n_step=1,
    gamma=0.99,
    huber=True,
    learning_rate=1e-3,
    anneal=False,
    batch_size=128,
    update_every=4,
)
figure, axes = plt.subplots(figsize=(6.4, 3))
axes.plot(tutorial.curve["steps"], tutorial.curve["episode_return"])
axes.axhline(tutorial.best.episode_return, linestyle=":", color="k", label="best on the way")
axes.set(xlabel="steps", ylabel="return of recent episodes")
axes.legend()
print(
    f"at the end {plays(tutorial, either(20, 2)):.0f}; best on the way {tutorial.best.episode_return:.0f}"
)

# %% [markdown]
# The library keeps the best policy of the way beside the last one (`best-in-training/` in the run's
# folder), and says so when the run ended well below it. *What to see.* Compare the two printed numbers: what
# is played at the end, and the best on the way (a mean of fewer episodes than the curve's, so it can lie
# above it). One seed does not tell how often a run forgets: change the 3 and look again.
#
# ## Double Q-learning: who chooses does not rate
#
# The maximum of noisy values is too large (lesson 3). **Double DQN** lets the network choose the action and the
# target network rate it: $y = r + \gamma\, Q_{\theta^-}\big(s', \arg\max_a Q_\theta(s', a)\big)$.

# %%
show(dqn.Learner.targets)

# %% [markdown]
# **Exercise 4.2.** The same for your function: `q_online` is the network's, `q_target` its copy's.


# %% tags=["exercise"]
def my_double_targets(rewards, q_online, q_target, terminated, gamma):
    # your code: an array (B,)
    ...


# %% tags=["check"]
with exercise("4.2"):
    found = my_double_targets(
        np.array([1.0, 1.0]),
        np.array([[1.0, 2.0], [1.0, 2.0]]),
        np.array([[9.0, 4.0], [9.0, 4.0]]),
        np.array([False, True]),
        0.5,
    )
    assert found is not None, "not solved yet"
    assert found[0] != 5.5, "that is the plain maximum: let q_online choose"
    assert found[0] not in (1.5, 2.0), "q_online chooses, and q_target rates what it chose"
    assert found[0] == 3.0, "1 + 0.5 · 4: q_online's best is action 1, which q_target rates 4"
    assert found[1] == 1.0, "a fall has no future: only the reward is left"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_double_targets(rewards, q_online, q_target, terminated, gamma):
#     best = q_online.argmax(axis=1)
#     rated = q_target[np.arange(len(best)), best]
#     return rewards + gamma * np.where(terminated, 0.0, rated)
# ```
#
# </details>

# %% [markdown]
# Is it overestimated here? Compare the network's value of the first state with the discounted return that
# its greedy policy really earns from there (500 ones at most):

# %%
gamma = SETTINGS.gamma
real = (1 - gamma**500) / (1 - gamma)
for name, run in (("double", runs[0]), ("not double", trained(0, double=False))):
    starts = np.array([gym.make("CartPole-v1").reset(seed=s)[0] for s in range(20)])
    believed = run.policy.action_values(run.policy.scale(starts)).max(-1).mean()
    print(f"{name:11s} believes {believed:6.1f}; 500 steps are worth {real:.1f}")

# %% [markdown]
# *What to see.* Compare each number with what 500 steps are worth, then the two with each other. One seed:
# it does not tell what double Q-learning does on average, and overestimation need not appear at all. Ten
# measured rewards leave little to the maximum. The network does not see the time limit (the state does not
# hold the clock), so a value up to 500, "for ever", would not be an overestimate either.
#
# ## n steps, dueling, priorities
#
# - **n-step targets**: $R = r_0 + \gamma r_1 + \dots + \gamma^{n-1} r_{n-1}$, then $\gamma^n \max Q$. News of a
#   fall travels n steps in one update.
# - **Dueling**: the network gives $V(s)$ and the advantages of actions, $Q = V + A - \bar A$. Where
#   actions hardly matter, all learn from each.
# - **Prioritised replay**: draw a transition in proportion to $|\delta|^\alpha$, and weigh it down by its
#   chance, so that the expectation stays right.

# %%
show(policies.QNetwork.forward)
show(replay.Replay.sample, "masses =")

# %% [markdown]
# **Exercise 4.3.** One transition by hand, with $n = 2$: rewards `[1, 1]`, γ = 0.5, the target network's
# values two steps later are 4 and 8, and $Q_\theta(s, a) = 2$. What are the target, the squared loss (with
# its ½), and the Huber loss (½ δ² up to |δ| = 1, then |δ| − ½)?

# %% tags=["exercise"]
target, squared, huber = ..., ..., ...

# %% tags=["check"]
with exercise("4.3"):
    assert target != 1.5 + 0.5 * 8, "what follows comes two steps later: γ², not γ"
    assert target != 2.0 + 0.25 * 8, "the second reward is discounted too: 1 + γ · 1"
    assert target == 3.5, "r₀ + γ r₁ + γ² · max(4, 8)"
    assert squared != 2.25, "the ½ is missing"
    assert squared == 1.125, "½ (3.5 − 2)²"
    assert huber != 1.125, "|δ| = 1.5 is beyond 1, where the loss is a straight line"
    assert huber == 1.0, "|δ| − ½"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# target = 1 + 0.5 * 1 + 0.5**2 * 8
# squared, huber = 0.5 * (target - 2) ** 2, abs(target - 2) - 0.5
# ```
#
# </details>

# %% [markdown]
# The Huber loss bounds what one surprising transition can do to the network.
#
# **Exercise 4.4.** Three transitions have errors `deltas`. With which probability is each drawn, for an exponent
# `alpha`? And by what weight is its loss multiplied so that the mean is unbiased ($\beta = 1$), relative
# to the largest weight?


# %% tags=["exercise"]
def my_priorities(deltas, alpha):
    # your code: (probabilities, weights), two arrays
    ...


# %% tags=["check"]
with exercise("4.4"):
    answer = my_priorities(np.array([1.0, -2.0, 1.0]), 1.0)
    assert answer is not None, "not solved yet"
    chances, weights = answer
    assert np.all(np.asarray(chances) >= 0), "an error below zero is as surprising: use |δ|"
    assert np.allclose(chances, [0.25, 0.5, 0.25]), "|δ|^α over its sum"
    assert np.allclose(weights, [1.0, 0.5, 1.0]), "1 / (N · chance), divided by the largest of them"
    alike, _ = my_priorities(np.array([1.0, -2.0, 1.0]), 0.0)
    assert np.allclose(alike, 1 / 3), "with α = 0 all are alike: the exponent is missing"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_priorities(deltas, alpha):
#     chances = np.abs(deltas) ** alpha
#     chances = chances / chances.sum()
#     weights = 1 / (len(deltas) * chances)
#     return chances, weights / weights.max()
# ```
#
# </details>

# %% [markdown]
# ## From a screen to an input
#
# The Atari game's screen has 210 × 160 × 3 numbers, 60 times a second. Three steps make an input: grey and
# 84 × 84; every fourth frame only; the last four together, since one picture shows no motion.

# %%
try:
    breakout = environments.make("ALE/Breakout-v5", {"render_mode": "rgb_array"})
    seen, _ = breakout.reset(seed=0)
    for action in (1, 2, 2, 3, 0, 0):
        seen, *_ = breakout.step(action)
    screen = breakout.unwrapped.render()
    figure, panels = plt.subplots(1, 5, figsize=(9, 2.4))
    panels[0].imshow(screen)
    panels[0].set_title(f"screen {screen.shape}", fontsize=8)
    for panel, frame in zip(panels[1:], np.asarray(seen), strict=True):
        panel.imshow(frame, cmap="gray")
        panel.set_title(str(frame.shape), fontsize=8)
    for panel in panels:
        panel.axis("off")
    print("what the network sees:", np.asarray(seen).shape)
except ProblemError as error:  # the games are an extra package
    print("Atari is not installed here:", error)

# %% [markdown]
# ## Run it on your own

# %%
mine = replace(
    configure("dqn", "CartPole-v1"),
    total_steps=either(20_000, 1_000),
    dueling=True,
    prioritized=True,
    seed=0,
)
result = dqn.train(mine)
print(f"{plays(result, either(20, 2)):.0f} after {result.steps:,} steps in {result.seconds:.0f} s")

# %% [markdown]
# Worth trying: ReLU instead of tanh; a replay memory of 1,000; LunarLander
# (`python -m classic_rl dqn --env LunarLander-v3`). Next: instead of values, the policy itself:
# [policy gradients](05_policy_gradients.ipynb).
