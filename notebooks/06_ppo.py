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
# # 6. PPO: several steps on the same experience
#
# After this lesson you can
#
# - say what the clip of PPO does for each sign of the advantage, and draw it;
# - show what goes wrong with many epochs and no clip, and measure how far an update goes (KL);
# - find the dozen details that matter in the code, and test one of them with a probe;
# - train discrete and continuous actions, and a small "language model" to its exact optimum.
#
# *Before*: [lesson 5](05_policy_gradients.ipynb). *Takes*: about two minutes.
# *Beside it*: [deep learning, sections 8 to 10](../classic-rl/deep.md),
# [formulas](../formulas.md).

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from lesson import claim, either, exercise, show

from classic_rl import ppo
from classic_rl.deep.configuration import configure
from classic_rl.deep.evaluation import evaluate
from classic_rl.deep.policies import ActorCritic
from classic_rl.deep.probes import GAMMA, PROBES, failures
from classic_rl.deep.reference import optimality, tabulate
from classic_rl.deep.training import learning_curve
from classic_rl.envs.environments import make
from classic_rl.losses import clip_active, clipped_surrogate, kl_estimate, value_loss
from classic_rl.pictures import plots

# %% [markdown]
# ## The ratio
#
# A rollout is expensive and a gradient step is cheap, so we want several steps on each rollout.
# But the actions were drawn by the policy that played, $\pi_{old}$, and after one step the policy
# is another one. **Importance sampling** corrects for that. An action that is now twice as likely
# counts twice:
#
# $$E_{a \sim \pi}[A(a)] = E_{a \sim \pi_{old}}\big[r\, A(a)\big], \qquad
# r = \frac{\pi(a \mid s)}{\pi_{old}(a \mid s)} = e^{\log \pi - \log \pi_{old}}$$
#
# At the first step $r = 1$, and the gradient is that of lesson 5. The correction is exact on
# average. Its noise grows with the distance between the policies:

# %%
rng = np.random.default_rng(0)
old = np.array([0.5, 0.3, 0.2])
advantage = np.array([-1.0, 0.5, 1.75])  # its mean under `old` is zero
drawn = rng.choice(3, size=either(20_000, 200), p=old)
noise_by_distance = []
for strength in (0.0, 0.5, 1.0, 2.0, 4.0):
    new = old * np.exp(strength * np.array([-1.0, 0.0, 1.0]))
    new /= new.sum()
    weighed = (new / old)[drawn] * advantage[drawn]
    kl = float((old * np.log(old / new)).sum())
    noise_by_distance.append(weighed.std())
    print(
        f"KL {kl:5.2f} nats: exact {new @ advantage:+.3f}, "
        f"from samples {weighed.mean():+.3f}, standard deviation of one {weighed.std():.2f}"
    )
claim("the noise grows with the distance", noise_by_distance[-1] > 2 * noise_by_distance[0])

# %% [markdown]
# ## The clip
#
# PPO (Schulman et al. 2017) stops paying for a change once the ratio has left $1 \pm \varepsilon$:
#
# $$L = -\min\big(r \hat A,\; \mathrm{clip}(r, 1 - \varepsilon, 1 + \varepsilon)\, \hat A\big)$$

# %%
show(clipped_surrogate, "ratio =", "loss =")

# %%
ratios = torch.linspace(0.4, 1.8, 141)
figure, panels = plt.subplots(1, 2, figsize=(6.4, 3), sharex=True)
for axes, sign in zip(panels, (1.0, -1.0), strict=True):
    plain = ratios * sign
    clipped = -clipped_surrogate(ratios.log(), torch.full_like(ratios, sign), 0.2)
    axes.plot(ratios, plain, ":", color=plots.GREY, label="r · A")
    axes.plot(ratios, clipped, color=plots.BLUE, lw=2.5, label="what PPO maximises")
    axes.axvspan(0.8, 1.2, color=plots.GREEN, alpha=0.12, lw=0)
    axes.plot(1, sign, "o", color=plots.ORANGE)
    axes.set(xlabel="ratio r", title=f"advantage {'+1' if sign > 0 else '−1'}")
panels[0].set_ylabel("objective")
panels[0].legend(loc="lower right", fontsize=8)
figure.tight_layout()

# %% [markdown]
# *What to see.* The dot is where each update begins. Left: a good action. It may become likelier
# up to 1.2; beyond that the line is flat and its gradient is zero. Right: a bad action. It may
# become rarer down to 0.8. **On the wrong side nothing is flat**: where a good action has become
# rarer (left of the dot in the left picture), the gradient brings it back. The clip is no wall. It
# only takes away the reason to go further.
#
# **Exercise 6.1.** Write the objective (to be maximised) for one action.


# %% tags=["exercise"]
def my_objective(ratio, advantage, epsilon):
    # your code: one number
    ...


# %% tags=["check"]
with exercise("6.1"):
    at = {(r, a): my_objective(r, a, 0.2) for r in (0.5, 1.0, 1.5) for a in (2.0, -2.0)}
    assert all(isinstance(value, (int, float)) for value in at.values()), "a number, please"
    unclipped, capped = abs(at[1.5, 2.0] - 3.0) < 1e-6, abs(at[1.5, -2.0] + 2.4) < 1e-6
    assert not (unclipped and capped), "the smaller of the two, not the larger"
    assert not unclipped, "a good action is paid no more beyond 1.2: where is the clip?"
    assert not capped, (
        "clipping alone is not it: a bad action that became likelier must hurt in full; take the min"
    )
    for (r, a), value in at.items():
        wanted = -clipped_surrogate(torch.tensor(r).log(), torch.tensor(a), 0.2).item()
        assert abs(value - wanted) < 1e-5, f"r = {r}, A = {a}: {wanted:.2f} is right"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_objective(ratio, advantage, epsilon):
#     clipped = min(max(ratio, 1 - epsilon), 1 + epsilon)
#     return min(ratio * advantage, clipped * advantage)
# ```
#
# </details>

# %% [markdown]
# **Exercise 6.2.** Read the picture. For each of these (ratio, advantage), with ε = 0.2: does this
# action still push the policy (`True`), or is its gradient cut off (`False`)?

# %% tags=["exercise"]
cases = [(1.3, +1.0), (1.3, -1.0), (0.7, +1.0), (0.7, -1.0), (1.1, +1.0)]
pushes = ...  # five times True or False

# %% tags=["check"]
with exercise("6.2"):
    asked = torch.tensor([(1.3, 1.0), (1.3, -1.0), (0.7, 1.0), (0.7, -1.0), (1.1, 1.0)])
    wanted = (~clip_active(asked[:, 0].log(), asked[:, 1], 0.2)).tolist()
    assert len(pushes) == 5, "five answers"
    assert list(pushes) != [False, False, False, False, True], (
        "not all outside 0.8 to 1.2 is cut off: look at the slope in the picture of that sign"
    )
    assert list(pushes) == wanted, "flat: a good action beyond 1.2, a bad action below 0.8"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# pushes = [False, True, True, False, True]
# ```
#
# </details>

# %% [markdown]
# ## One update
#
# Collect T steps in N environments, compute advantages by GAE, then some **epochs**: each passes
# over the rollout in **minibatches**, in a new order.

# %%
show(ppo.update, "for _ in range", "break")

# %% [markdown]
# The loss of a minibatch has three parts: the surrogate, the value's error with weight $c_v$, and
# an **entropy bonus** with weight $c_e$, as in lesson 5:

# %%
show(ppo.loss_of, "log_ratio =", "# 10")

# %% [markdown]
# The value can be clipped, too: `cliprange_value` takes the larger of two errors, that of the
# value and that of the value kept near the old one. It depends on the rewards' scale, and it is
# off here (`None`), because it rarely helps (Engstrom et al. 2020; Andrychowicz et al. 2021). In
# TRL's old trainer it was on.

# %%
values, returns, before = (
    torch.tensor([3.0, 1.1]),
    torch.tensor([4.0, 4.0]),
    torch.tensor([1.0] * 2),
)
print("plain error  ", value_loss(values, returns, before, None).tolist())
print("clipped, 0.2 ", [round(x, 3) for x in value_loss(values, returns, before, 0.2).tolist()])
print("the first value has moved by 2: its error is counted as if it had moved by 0.2, a constant")

# %% [markdown]
# ## Against the vanilla policy gradient
#
# The same code three times on CartPole: PPO; **vanilla**, with one step on each rollout; and ten
# epochs without the clip.

# %%
NO_CLIP = "cliprange=1.0e+9"
variants = {
    "PPO": [],
    "vanilla: one step": ["epochs=1", "minibatch_size=1000000", NO_CLIP],
    "ten epochs, no clip": [NO_CLIP],
}
seeds = either((0, 1), (0,))


def cartpole(settings, steps=100_000):
    """A PPO run for each seed, with the tuned settings and these overrides."""
    flags = {"total_steps": either(steps, 1100)}
    return [
        ppo.train(replace(configure("ppo", "CartPole-v1", flags=flags, overrides=settings), seed=s))
        for s in seeds
    ]


def returns_of(runs, points=60):
    """Steps (G,) and learning curves (K, G): the mean return of recent episodes."""
    total = min(run.config.total_steps for run in runs)
    grid = np.linspace(0, total, points + 1)[1:]
    episodes = [{"steps": r.episodes.steps, "returns": r.episodes.returns} for r in runs]
    rows = np.stack([learning_curve(e, grid, total / 20) for e in episodes])
    known = np.isfinite(rows).all(0)
    return grid[known], rows[:, known]


runs = {name: cartpole(settings) for name, settings in variants.items()}
display(
    plots.curves(
        {name: returns_of(group) for name, group in runs.items()},
        title="CartPole: PPO and what it is made of",
        xlabel="environment steps",
        ylabel="episode return",
    )
)
for name, group in runs.items():
    greedy = [evaluate(r.policy, "CartPole-v1", either(100, 2)).returns.mean() for r in group]
    moved = np.mean([np.max(r.curve["kl"]) for r in group])
    scores = " ".join(f"{score:.0f}" for score in greedy)
    print(f"{name:20} greedy return by seed: {scores:10} largest KL of an update {moved:.3g} nats")
    if name == "PPO":
        claim("PPO plays CartPole with more than 475 over 100 episodes", min(greedy) > 475)

# %% [markdown]
# *What to see.* The KL is measured in the last epoch, before each of its steps, so with one step
# it reads zero. One step on each rollout is steady and slow. Ten epochs learn faster on the same
# data. Without the clip an update may go as far as it likes, and the return can fall again. Two
# seeds are an impression; [the course page](../classic-rl/deep.md) has five, of which the one
# without a clip ended at 162 once.

# %% [markdown]
# ## How far an update goes
#
# The distance between the policies before and after is a **KL divergence**. From actions drawn by
# $\pi_{old}$ it is estimated with $r = \pi / \pi_{old}$ by k3: $(r - 1) - \log r$. It is unbiased
# and never negative. The estimate $-\log r$ (k1) is unbiased as well, but it can be negative for a
# batch.

# %%
new = np.array([0.4, 0.35, 0.25])
exact_kl = float((old * np.log(old / new)).sum())
logps, new_logps = (torch.from_numpy(np.log(p)[drawn]) for p in (old, new))
print(f"exact    {exact_kl:.4f} nats")
for estimator in ("k1", "k2", "k3"):
    each = kl_estimate(logps, new_logps, estimator)
    print(f"{estimator}       {each.mean():.4f}, standard deviation of one {each.std():.4f}")

# %% [markdown]
# The clip range decides how far. A sweep over ε:

# %%
ranges = either((0.02, 0.1, 0.2, 0.4, 1.6), (0.2,))
learned, moved = [], []
for epsilon in ranges:
    group = cartpole([f"cliprange={epsilon}"], steps=60_000)
    learned.append([np.nanmean(returns_of(group)[1][k]) for k in range(len(group))])
    moved.append([np.mean(run.curve["kl"]) for run in group])
    print(
        f"ε = {epsilon:<4g} mean return over training {np.mean(learned[-1]):5.0f}, "
        f"KL of an update {np.mean(moved[-1]):.4f} nats"
    )
figure, panels = plt.subplots(1, 2, figsize=(6.4, 3))
for axes, rows, colour in zip(panels, (learned, moved), plots.SERIES, strict=False):
    rows = np.array(rows)
    axes.plot(ranges, rows.mean(1), "o-", color=colour)
    axes.fill_between(ranges, rows.min(1), rows.max(1), color=colour, alpha=0.18, lw=0)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(ranges, [f"{epsilon:g}" for epsilon in ranges])
    axes.set_xlabel("clip range ε")
panels[0].set_title("mean return over training")
panels[1].set_title("KL of an update, nats")
panels[1].set_yscale("log")
figure.tight_layout()
distances = [np.mean(row) for row in moved]
claim(
    "KL grows with ε over the whole sweep",
    all(a < b for a, b in zip(distances, distances[1:], strict=False)),
)

# %% [markdown]
# *What to see.* The KL of an update grows with ε. The return is best in the
# middle: short steps waste experience, long ones break what was learned.
#
# Another brake is the **early stop**: leave the epochs once the KL is above `target_kl`. Here it
# stands in for the clip.

# %%
stopped = cartpole([NO_CLIP, "target_kl=0.02"], steps=60_000)
for run in stopped:
    share, kl = np.mean(run.curve["stopped_early"]), np.mean(run.curve["kl"])
    print(f"seed {run.config.seed}: stopped early in {share:.0%} of the updates, KL {kl:.4f} nats")
    print(f"        training return at the end {run.episodes.recent_return():.0f}")

# %% [markdown]
# It holds the KL near its limit, but it throws away the epochs that it stops. The clip stops only
# those actions that have moved far enough.
#
# ## Details that matter
#
# "The 37 Implementation Details of PPO" (Huang et al. 2022) is a list of what the paper does not
# say. These are at work here, with the paper's number where the code has one; each is a commented
# line of `classic_rl/ppo.py`.
#
# | detail | here | why |
# | --- | --- | --- |
# | 2 orthogonal weights, last layer × 0.01 | `ActorCritic` | the first policy is nearly uniform |
# | 3 Adam's ε = 1e-5 | `eps=1e-5` | smaller steps where gradients are tiny |
# | 4 step size falls to 0 | `anneal` | the end is steady |
# | 5 GAE | `make_batch` | lesson 5 |
# | 6 minibatches in a new order | `rng.permutation` | each epoch sees other neighbours |
# | 7 normalised advantages, a minibatch | `normalize_advantages` | a step does not depend on the rewards' scale |
# | 8 clipped surrogate | `cliprange` | above |
# | 9 clipped value | `cliprange_value`, off | rarely helps |
# | 10 entropy bonus | `entropy_coef` | against early certainty |
# | 11 gradient's norm ≤ 0.5 | `max_grad_norm` | one odd minibatch does little harm |
# | 12 KL and clip fraction | the curve | to see what happens |
# | time limit is no termination | `gae` | below |
# | rewards ÷ their return's deviation | `normalize_rewards` | the critic sees numbers near 1 |
#
# **Exercise 6.3.** Normalise advantages as PPO does. Then say what changes (`True`/`False`) in the
# normalised ones if all advantages (a) are ten times as large, (b) are larger by 5, (c) change
# sign.


# %% tags=["exercise"]
def my_normalised(advantages):
    # your code: zero mean, unit (sample) standard deviation
    ...


changes = ...  # [a, b, c]

# %% tags=["check"]
with exercise("6.3"):
    raw = np.array([1.0, 2.0, 6.0])
    found = np.asarray(my_normalised(raw), dtype=float)
    assert abs(found.mean()) < 1e-6, "take the mean off first"
    assert not np.allclose(found, (raw - 3) / raw.var(ddof=1)), (
        "divide by the standard deviation, not by the variance"
    )
    assert np.allclose(found, (raw - 3) / raw.std(ddof=1), atol=1e-5) or np.allclose(
        found, (raw - 3) / raw.std(), atol=1e-5
    ), "(x − mean) / standard deviation"
    assert len(changes) == 3, "three answers"
    assert not changes[0], "(a): scale both the deviation and the spread by ten"
    assert not changes[1], "(b): the mean moves by 5, too"
    assert changes[2], "(c): try it; good actions would become bad ones"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_normalised(advantages):
#     return (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
#
#
# changes = [False, False, True]
# ```
#
# Note (b): if *all* actions of a minibatch were good, those below the mean are now pushed down.
#
# </details>

# %% [markdown]
# ## A probe: truncation is not termination
#
# How do you find a mistake in one of these? With an environment so small that only this detail can
# fail. The probe *time limit* has one state, pays 0.2 a step and is cut off after five steps. With
# γ = 0.8 the value is exactly 0.2 / (1 − 0.8) = 1, **if** what would have followed counts.

# %%
probe = PROBES["time limit"]
small_settings = ppo.PPOConfig(
    env_id=probe.env_id,
    total_steps=either(2000, 100),
    n_steps=16,
    epochs=4,
    hidden=(16,),
    learning_rate=2e-2,
    gamma=GAMMA,
)
right = ppo.train(small_settings)

library_gae = ppo.gae


def cut_is_an_end(*columns, **settings):
    """The common mistake: each end counts as a termination."""
    return library_gae(*columns, **{**settings, "terminated": settings["ended"]})


ppo.gae = cut_is_an_end
try:
    mistaken = ppo.train(small_settings)
finally:
    ppo.gae = library_gae

learned_values = {}
for name, run in (("right", right), ("mistaken", mistaken)):
    learned_values[name] = float(run.policy.act(probe.observations).values[0])
    found = failures(run.policy, probe, 0.1) or ["passes"]
    print(f"{name:9} value {learned_values[name]:.2f}: {found[0]}")
claim("the right one passes", not failures(right.policy, probe, 0.1))
claim("the mistake is found", failures(mistaken.policy, probe, 0.1))

# %% [markdown]
# On CartPole this mistake teaches that the 500th step is as bad as a fall. It still learns
# something, and so nobody looks. The probes are in `classic_rl/deep/probes.py`; every algorithm
# here passes all of them.

# %% [markdown]
# ## Continuous actions
#
# The policy is a Gaussian: its mean is the network's output, its width a weight of its own. Two
# rules:
#
# - **Score what was drawn.** The environment gets the action clipped to its bounds; the
#   log-probability is that of the action *before* the clip. Else the ratio compares numbers of two
#   distributions.
# - **Squashing needs a correction.** Some methods send $u$ through tanh: $a = \tanh u$. Then the
#   density is another one: $\log \pi(a) = \log \mathcal N(u) - \log(1 - \tanh^2 u)$. PPO here
#   clips instead and needs none.

# %%
show(ActorCritic.log_probs, "z =", "logps =")
show(ActorCritic.for_environment, "return np.clip")

# %% [markdown]
# **Exercise 6.4.** Write the log-density of the squashed action $a = \tanh u$ for a normal $u$
# with mean `mu` and standard deviation `sigma`. The density of $a$ must have the integral 1 over
# −1 to 1: the check computes it.


# %% tags=["exercise"]
def my_squashed_logp(u, mu, sigma):
    # your code: NumPy, for an array u
    ...


# %% tags=["check"]
with exercise("6.4"):
    a = np.linspace(-1, 1, 200_001)[1:-1]
    u = np.arctanh(a)
    plain = -0.5 * ((u - 0.3) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    found = np.asarray(my_squashed_logp(u, 0.3, 0.5), dtype=float)
    assert found.shape == u.shape, "a number for each u"
    total = np.exp(found).sum() * (a[1] - a[0])
    assert not np.allclose(found, plain), (
        f"the density of a has the integral {total:.2f}: the correction is missing"
    )
    assert not np.allclose(found, plain + np.log(1 - a**2)), "the correction has the other sign"
    assert abs(total - 1) < 1e-3, f"the integral over a is {total:.3f}, not 1"
    assert np.allclose(found, plain - np.log(1 - a**2)), "log N(u) − log(1 − tanh²u)"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_squashed_logp(u, mu, sigma):
#     gaussian = -0.5 * ((u - mu) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
#     return gaussian - np.log(1 - np.tanh(u) ** 2)
# ```
#
# Tanh presses a stretch $du$ into $da = (1 - \tanh^2 u)\, du$, so the density grows by its inverse.
#
# </details>

# %% [markdown]
# Pendulum: one number for the torque, and each step costs the angle, the speed and the torque.
# Good play earns about −150, since it must swing up first; random play earns about −1200.

# %%
pendulum = ppo.train(configure("ppo", "Pendulum-v1", flags=either({}, {"total_steps": 3300})))
greedy = evaluate(pendulum.policy, "Pendulum-v1", either(100, 2)).returns
display(
    plots.curves(
        {"PPO": returns_of([pendulum])},
        title="PPO on Pendulum",
        xlabel="environment steps",
        ylabel="episode return",
    )
)
print(f"Pendulum, one seed: greedy return {greedy.mean():.0f} over 100 episodes")
claim("Pendulum earns more than −200", greedy.mean() > -200)

# %% [markdown]
# ## The last step: text
#
# Now the environment is a *language*: `TokenMDP`. The state is the tokens so far, an action is the
# next token, and only the finished completion is paid. There is a **reference policy**, and
# leaving it costs (β = 0.25 reward a nat), exactly as for a language model:
#
# $$J_\beta(\pi) = E[r(y)] - \beta\, \mathrm{KL}(\pi \Vert \pi_{ref}), \qquad
# \pi^*(y) \propto \pi_{ref}(y)\, e^{r(y) / \beta}$$
#
# The penalty is paid token by token, as a part of the reward. These are the lines that do it:

# %%
show(ppo._train, "if reference is not None", "rollout.rewards -=")

# %%
language = make("classic_rl/TokenMDP-v0").unwrapped
settings = configure(
    "ppo", "classic_rl/TokenMDP-v0", flags=either({}, {"total_steps": 1100, "n_steps": 8})
)
texts = ppo.train(settings)
table = tabulate(texts.policy)
score = optimality(language, table, settings.kl_coef)
best, _ = language.optimum(settings.kl_coef)
reached = np.exp(language.sequence_logps(table))
start = np.exp(language.sequence_logps(language.reference))
print(f"{len(best)} completions of {len(language.names)} tokens: {', '.join(language.names)}")
print(f"PPO after {texts.steps:,} steps: {score:.4f}; the reference is 0, the optimum 1")
claim("PPO is within 2 % of the exact optimum", score > 0.98)

# %%
likely = np.argsort(-best)[:8]
labels = [" ".join(language.names[token] for token in language.sequences[i]) for i in likely]
figure, axes = plt.subplots(figsize=(6.4, 3.4))
for k, (name, chances) in enumerate(
    (("reference", start), ("PPO", reached), ("exact optimum π*", best))
):
    axes.bar(
        np.arange(8) + 0.27 * (k - 1), chances[likely], 0.25, color=plots.SERIES[k], label=name
    )
axes.set_xticks(range(8), labels, rotation=30, ha="right", fontsize=8)
axes.set_ylabel("probability")
axes.set_xlabel("completion")
axes.legend()
figure.tight_layout()
for i, label in list(zip(likely, labels, strict=True))[:3]:
    print(f"{label:14} reward {language.sequence_rewards[i]:+.2f}: π_ref {start[i]:.3f}, ", end="")
    print(f"PPO {reached[i]:.3f}, π* {best[i]:.3f}")

# %% [markdown]
# *What to see.* PPO does not put all probability on the best completion. It finds the compromise
# between reward and reference, and the optimum is known because the language can be enumerated. A
# real one cannot. But the functions are the same: `pipeline/ppo` imports `clipped_surrogate`,
# `value_loss` and `kl_estimate` of this lesson, and `completion_gae`, which calls `gae`. The next lesson runs them on a real
# model.
#
# ## Run it on your own
#
# In a terminal, five seeds, with the tuned settings:
#
# ```
# python -m classic_rl ppo --env CartPole-v1 --seeds 0 1 2 3 4
# python -m classic_rl ppo --env LunarLander-v3 --seeds 0 1 2 3 4
# python docs/make/classic_deep_figures.py ppo-vs-vanilla clip-range
# ```
#
# Change the names in the next cell. Three things worth trying:
#
# 1. `epochs=1`, `4`, `30`: watch `kl` and `clip_fraction` beside the return.
# 2. `kl_coef=0.05`, then `1.0`, with `TokenMDP`: how far from the reference does it go?
# 3. `normalize_advantages=false`, then `max_grad_norm=0`, on CartPole: which of the details do you
#    miss?

# %%
ENVIRONMENT = "CartPole-v1"
SETTINGS = ["epochs=4", "cliprange=0.2"]
STEPS = either(30_000, 1100)

mine = ppo.train(configure("ppo", ENVIRONMENT, flags={"total_steps": STEPS}, overrides=SETTINGS))
print(f"{ENVIRONMENT}: the last 100 training episodes earned {mine.episodes.recent_return():.0f}")
for name in ("kl", "clip_fraction", "entropy", "explained_variance"):
    print(f"{name:20} first update {mine.curve[name][0]:7.3f}, last {mine.curve[name][-1]:7.3f}")
