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
# # 9. DPO, IPO, KTO, and where each of them ends
#
# After this lesson you can
#
# - derive DPO's loss from the optimum of the problem that PPO solves, and write it by hand;
# - draw the best reward that any policy can have at a given KL, and see how far each method comes;
# - say what IPO, KTO and best-of-n aim at instead, and why the chosen answer gets *less* likely;
# - tell a collapse from the loss of variety that was asked for.
#
# *Before*: lessons [7](07_ppo_for_language_models.ipynb) and [8](08_reward_models.ipynb).
# *Takes*: two minutes. *Beside it*: [the certificate](../certificate.md),
# [the methods](../methods.md), [what was measured on a real model](../learning.md).

# %%
from pipeline.output import quiet

quiet.before_imports()  # the libraries' warnings and bars stay away

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from lesson import claim, either, exercise, show
from scipy.special import expit
from trl import DPOTrainer

from pipeline.certify import optima
from pipeline.certify.methods import METHODS
from pipeline.certify.problem import Problem
from pipeline.certify.study import certify
from pipeline.compare.best_of_n import kl_bound
from pipeline.compare.texts import distinct

quiet.after_imports()
torch.set_num_threads(1)

# %% [markdown]
# ## A language model whose every answer can be listed
#
# To judge a method we want to know the right answer. So the problem is small: a GPT-2 with random
# weights writes at most three of five tokens. That makes 85 completions $y$. Each has a reward $r(y)$,
# drawn from a normal distribution. All that follows is a sum over 85 numbers, without any noise.

# %%
SEED, BETA = 2, 0.6
problem = Problem(SEED, BETA)
reference, rewards = problem.reference, problem.rewards
print(f"{len(rewards)} completions, for example {problem.texts[5]!r} and {problem.texts[40]!r}")
print(f"mean reward of the reference: {reference @ rewards:+.3f}")


# %%
def kl(policy):
    """KL(π‖π_ref) in nats, exactly."""
    some = policy > 1e-300
    return float(policy[some] @ np.log(policy[some] / reference[some]))


def entropy(policy):
    """In nats; e to this power is the number of completions that are as good as in use."""
    some = policy > 1e-300
    return float(-policy[some] @ np.log(policy[some]))


# %% [markdown]
# ## The optimum in closed form
#
# RLHF asks for much reward and little distance from the reference:
#
# $$\max_\pi \; E_{y \sim \pi}[r(y)] - \beta\, KL(\pi \Vert \pi_{ref})$$
#
# $\beta$ is a price: so much reward for each nat of KL. Lesson 7 solved this by PPO. Here the solution
# can be written down. Put $Z = \sum_y \pi_{ref}(y)\, e^{r(y)/\beta}$. Then the objective is
#
# $$\sum_y \pi(y) \Big( r(y) - \beta \log \frac{\pi(y)}{\pi_{ref}(y)} \Big)
#   = \beta \log Z - \beta\, KL\Big(\pi \;\Big\Vert\; \tfrac1Z \pi_{ref}\, e^{r/\beta}\Big).$$
#
# A KL is never negative, and 0 only where both are the same. So the best policy is
#
# $$\pi^*(y) = \frac{1}{Z}\, \pi_{ref}(y)\, e^{r(y)/\beta}, \qquad J^* = \beta \log Z.$$
#
# **Exercise 9.1.** Write it.


# %% tags=["exercise"]
def my_optimum(reference, rewards, beta):
    """π*(y) of every completion, an array like `reference`."""
    # your code
    ...


# %% tags=["check"]
with exercise("9.1"):
    two = np.asarray(my_optimum(np.array([0.5, 0.5]), np.array([1.0, 0.0]), 0.5))
    assert abs(two.sum() - 1) < 1e-9, "it does not sum to 1: divide by Z"
    assert abs(two[0] - expit(0.5)) > 1e-6, "β divides the reward: a low price of KL moves further"
    assert abs(two[0] - expit(2.0)) < 1e-9, "with equal references π* is a softmax of r / β"
    mine = np.asarray(my_optimum(reference, rewards, BETA))
    assert np.allclose(mine, problem.optimal), "the reference counts too: weigh e^(r/β) by it"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_optimum(reference, rewards, beta):
#     weights = reference * np.exp(rewards / beta)
#     return weights / weights.sum()  # the sum is Z
# ```
#
# </details>

# %% [markdown]
# The library's is `env.optimum(beta)`. Below, completions stand in the order of their reward. π* takes
# from the left and gives to the right. But a completion that the reference hardly writes stays rare.

# %%
order = np.argsort(rewards)
figure, axes = plt.subplots(figsize=(6.4, 3))
axes.bar(range(len(order)), reference[order], width=1.0, color="0.7", label="π_ref")
axes.bar(range(len(order)), problem.optimal[order], width=0.5, color="C0", label="π*, β = 0.6")
axes.set(xlabel="completion, from the least to the highest reward", ylabel="probability")
axes.legend(frameon=False)

# %% [markdown]
# ## The frontier
#
# Each $\beta$ has its optimum, with a KL and a mean reward. Together they are a curve: the **frontier**.
# No policy lies above it, whatever trained it. A line of slope $\beta$ joins the policies that are
# equally good at the price $\beta$. The highest such line touches the frontier at $\pi^*_\beta$.

# %%
betas = np.geomspace(0.05, 30, 80)
best = [problem.env.optimum(beta)[0] for beta in betas]
frontier_kl = np.array([kl(policy) for policy in best])
frontier_reward = np.array([policy @ rewards for policy in best])


def draw_frontier(axes, most=3.0):
    """The frontier, the reference and π* at our β, for other things to be drawn over."""
    at, value = problem.kl, float(problem.optimal @ rewards)
    axes.plot(frontier_kl, frontier_reward, color="black", label="frontier")
    axes.plot([0], [reference @ rewards], "ko", markersize=5)
    axes.annotate("π_ref", (0, reference @ rewards), (8, -4), textcoords="offset points")
    axes.plot([at], [value], "*", color="gold", markeredgecolor="black", markersize=15, zorder=5)
    axes.set(xlabel="KL(π‖π_ref), nats", ylabel="mean reward", xlim=(-0.1, most))


figure, axes = plt.subplots(figsize=(6.4, 3.4))
draw_frontier(axes)
x = np.array([0.0, 3.0])
axes.plot(x, problem.best + BETA * x, "--", color="C0", label=f"equally good at β = {BETA}")
axes.legend(frameon=False, loc="lower right")
print(f"π* at β = {BETA}: KL {problem.kl:.2f} nats, reward {problem.optimal @ rewards:.2f}")

# %% [markdown]
# ## From the optimum to a loss
#
# DPO (Rafailov et al. 2023) turns the closed form round. It solves it for the reward:
#
# $$r(y) = \beta \log \frac{\pi^*(y)}{\pi_{ref}(y)} + \beta \log Z$$
#
# So every policy is the optimum for *some* reward: its **implicit reward**
# $\hat r(y) = \beta \log \pi(y) / \pi_{ref}(y)$. $Z$ is a sum over all completions, which for a real
# model nobody can compute. But people compare two answers to one prompt, and Bradley–Terry (lesson 8)
# knows only differences:
#
# $$P(y_w \succ y_l) = \sigma(r(y_w) - r(y_l)) = \sigma(\hat r(y_w) - \hat r(y_l))$$
#
# $Z$ is gone. Put the *policy* into the loss of a reward model, and that is DPO:
#
# $$L = -\log \sigma\Big(\beta \log \frac{\pi(y_w)}{\pi_{ref}(y_w)}
#       - \beta \log \frac{\pi(y_l)}{\pi_{ref}(y_l)}\Big)$$
#
# There is no reward model, no sampling and no critic. There is only a classifier of pairs, whose
# logit is written with the policy.
#
# **Exercise 9.2.** Write the loss of one pair from the four log-probabilities (tensors).


# %% tags=["exercise"]
def my_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """log π(y_w), log π(y_l), log π_ref(y_w), log π_ref(y_l) to the loss."""
    # your code
    ...


# %% tags=["check"]
with exercise("9.2"):
    chosen, rejected = torch.tensor([-2.0]), torch.tensor([-5.0])
    same = float(my_dpo_loss(chosen, rejected, chosen, rejected, 0.1))
    assert abs(same - np.log(1 + np.exp(-0.3))) > 1e-4, "the reference is missing"
    assert abs(same - np.log(2)) < 1e-5, "at π = π_ref no pair is told apart: the loss is log 2"
    better = float(my_dpo_loss(chosen + 1, rejected, chosen, rejected, 0.5))
    assert better < np.log(2), "a likelier chosen answer must lower the loss: look at the signs"
    assert abs(better - np.log(1 + np.exp(-1.0))) > 1e-4, "β is missing"
    assert abs(better - np.log(1 + np.exp(-0.5))) < 1e-5, "−log σ(β · (difference of log-ratios))"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
#     margin = (chosen - ref_chosen) - (rejected - ref_rejected)
#     return -F.logsigmoid(beta * margin)
# ```
#
# </details>

# %% [markdown]
# TRL's line is the same. `delta_score` is the difference of the two log-ratios:

# %%
show(DPOTrainer._compute_loss, 'if loss_type == "sigmoid"', "per_sequence_loss")

# %% [markdown]
# ## Two roads to one place
#
# Now we train. The policy is a table of logits, one row for each prefix. That is all that a language
# model is, when it is small enough. First without any sampling: DPO on *all* pairs of $\pi_{ref}$'s
# completions, each weighed by how often it is drawn and labelled so; and the gradient of the objective
# itself, which PPO estimates from samples.

# %%
env = problem.env
place = {prefix: number for number, prefix in enumerate(env.prefixes)}
visits = [  # every token of every completion: which completion, in which state, which token
    (n, place[y[:t]], y[t]) for n, y in enumerate(env.sequences) for t in range(len(y))
]
WHICH, STATES, TOKENS = torch.tensor(visits).T
R = torch.from_numpy(rewards)
LOG_REF = torch.from_numpy(np.log(reference))


def log_probabilities(logits):
    """log π(y) of all completions ``(N,)`` from the logits ``(S, A)``."""
    tokens = torch.log_softmax(logits, -1)[STATES, TOKENS]
    return torch.zeros(len(rewards), dtype=logits.dtype).index_add(0, WHICH, tokens)


def descend(loss, steps, rate=0.05, begin=None):
    """Adam on a loss of log π ``(N,)``. All policies on the way ``(steps + 1, N)``, and the logits."""
    start = torch.from_numpy(np.log(env.reference)) if begin is None else begin
    logits = start.clone().requires_grad_()
    optimizer, path = torch.optim.Adam([logits], lr=rate), []
    for _ in range(steps):
        logps = log_probabilities(logits)
        path.append(logps.detach().exp().numpy())
        optimizer.zero_grad()
        loss(logps).backward()
        optimizer.step()
    path.append(log_probabilities(logits).detach().exp().numpy())
    return np.array(path), logits.detach()


# %%
pairs = torch.outer(LOG_REF.exp(), LOG_REF.exp())  # how often (y, y') is drawn
label = torch.sigmoid(R[:, None] - R[None])  # P(y ≻ y')


def dpo_loss(logps):
    implicit = BETA * (logps - LOG_REF)
    margins = implicit[:, None] - implicit[None]
    return -(pairs * label * F.logsigmoid(margins)).sum() * 2  # each pair stands here twice


def objective_loss(logps):
    return -(logps.exp() * (R - BETA * (logps - LOG_REF))).sum()


STEPS = either(600, 20)
dpo_path, _ = descend(dpo_loss, STEPS)
rl_path, _ = descend(objective_loss, STEPS)
for name, path in (("DPO", dpo_path), ("reward − β KL", rl_path)):
    far = 0.5 * np.abs(path[-1] - problem.optimal).sum()
    print(f"{name:14s} optimality {problem.optimality_of(path[-1]):.4f}, distance to π* {far:.4f}")
claim(
    "both end at π*",
    all(np.abs(path[-1] - problem.optimal).sum() < 0.1 for path in (dpo_path, rl_path)),
)

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.6))
draw_frontier(axes, most=2.2)
for name, path, colour in (("DPO", dpo_path, "C1"), ("gradient of the objective", rl_path, "C0")):
    axes.plot([kl(p) for p in path], path @ rewards, ".-", markersize=3, color=colour, label=name)
axes.legend(frameon=False, loc="lower right")

# %% [markdown]
# Both end at the star. Neither lies above the frontier on its way, and neither can. With all pairs and all
# completions at hand even their roads are nearly the same, though one loss has a reward in it and the other
# has only labels.
#
# Were all implicit rewards right? At the optimum $\hat r(y) = r(y) - J^*$: the true reward, moved down
# by a constant.

# %%
implicit = BETA * np.log(dpo_path[-1] / reference)
figure, axes = plt.subplots(figsize=(4, 3.6))
axes.scatter(rewards, implicit, s=400 * reference + 2, color="C1")
span = np.array([rewards.min(), rewards.max()])
axes.plot(span, span - problem.best, color="black", linewidth=1, label="r − J*")
axes.set(xlabel="reward r(y)", ylabel="implicit reward β log π/π_ref")
axes.legend(frameon=False)
slope = np.polyfit(rewards, implicit, 1, w=np.sqrt(reference))[0]
print(f"slope {slope:.3f} (1 where all is learned), J* = {problem.best:.3f}")

# %% [markdown]
# ## The same with the real trainers
#
# These are the pipeline's own: the trainer of lesson 7, and TRL's `DPOTrainer` as the stage makes it.
# They train the weights of the GPT-2 on *sampled* completions and on *sampled* pairs. The settings are
# those of [the certificate](../certificate.md), but shorter.

# %%
runs = {
    "PPO": certify(METHODS["ppo"], SEED, BETA, effort=either(0.6, 0.01)),
    "DPO": certify(METHODS["dpo"], SEED, BETA, effort=either(0.4, 0.001)),
}
figure, axes = plt.subplots(figsize=(6.4, 3.6))
draw_frontier(axes, most=2.2)
for (name, run), colour in zip(runs.items(), ("C0", "C1"), strict=True):
    curve = run["curve"]
    axes.plot(
        [p["kl"] for p in curve], [p["reward"] for p in curve], ".-", color=colour, label=name
    )
    last = curve[-1]
    print(
        f"{name}: optimality {last['optimality']:.3f}, distance {last['distance']:.3f},"
        f" KL {last['kl']:.2f} nats (π* has {problem.kl:.2f})"
    )
axes.legend(frameon=False, loc="lower right")
claim(
    "PPO and DPO reach nine tenths of what can be reached",
    all(run["curve"][-1]["optimality"] > 0.9 for run in runs.values()),
)

# %% [markdown]
# This is one run each. The certificate has five seeds, and the same result: **with pairs drawn from
# $\pi_{ref}$, labels by Bradley–Terry on the same reward, and enough of them, DPO and PPO have the same
# optimum.** Most of what is said about "PPO against DPO" is about where these conditions fail. The rest
# of this lesson lets them fail one after another.
#
# ## Losses against the margin
#
# Call $h = \log \pi(y_w)/\pi_{ref}(y_w) - \log \pi(y_l)/\pi_{ref}(y_l)$ the margin of a pair, in nats.
#
# | | loss of a pair | it is content at |
# | --- | --- | --- |
# | DPO | $-\log \sigma(\beta h)$ | $h = \infty$ |
# | IPO (Azar et al. 2024) | $(h - \frac{1}{2\tau})^2$ | $h = \frac{1}{2\tau}$ |
# | KTO (Ethayarajh et al. 2024) | $1 - \sigma(\beta h_w - z)$ and $1 - \sigma(z - \beta h_l)$, each answer alone | $\infty$, and hardly cares far out |
#
# KTO needs no pairs, only answers marked good or bad. $z$ is a reference point, an estimate of the KL.
# In the picture $z = 0$ and both answers move by half the margin.

# %%
TAU = 0.1
h = np.linspace(-15, 25, 400)
curves = {
    "DPO": np.logaddexp(0, -BETA * h),
    "IPO": (h - 1 / (2 * TAU)) ** 2 * TAU**2,
    "KTO": 2 * expit(-BETA * h / 2),
}
figure, both = plt.subplots(1, 2, figsize=(8, 3))
for name, loss in curves.items():
    both[0].plot(h, loss, label=name)
    both[1].plot(h, -np.gradient(loss, h), label=name)
both[0].set(xlabel="margin h, nats", ylabel="loss (IPO: times τ²)", ylim=(0, 5))
both[1].set(xlabel="margin h, nats", ylabel="push to a larger margin", ylim=(-0.3, 0.8))
both[1].axhline(0, color="black", linewidth=0.5)
both[0].legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# See the right picture. DPO pushes hard on pairs that it has wrong, and never quite stops. IPO pulls
# *back* beyond its target. KTO gives up on what is far wrong: its push has a hump in the middle.
#
# **Exercise 9.3.** Write IPO's loss of a margin. Then say by which *factor* IPO wants the ratio
# $\pi(y_w)/\pi(y_l)$ to exceed the reference's, for $\tau = 0.1$.


# %% tags=["exercise"]
def my_ipo_loss(margin, tau):
    # your code
    ...


my_factor = ...

# %% tags=["check"]
with exercise("9.3"):
    assert my_ipo_loss(5.0, 0.1) < 1e-12, "at h = 1/(2τ) = 5 the loss is 0"
    assert my_ipo_loss(7.0, 0.1) > 0, "beyond the target there is a loss too"
    assert abs(my_ipo_loss(0.0, 0.25) - 4.0) < 1e-9, "the square of the way to 1/(2τ) = 2"
    assert my_factor != 5 and my_factor != 5.0, "5 is the margin in nats; the ratio is its e-power"
    assert abs(my_factor - np.exp(5)) < 0.5, "the margin is a log of ratios: e to the power of 5"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_ipo_loss(margin, tau):
#     return (margin - 1 / (2 * tau)) ** 2
#
#
# my_factor = np.exp(1 / (2 * 0.1))  # 148
# ```
#
# </details>

# %% [markdown]
# What the difference is for: suppose one answer *always* wins, as it does in a data set where each pair
# is labelled once. Bradley–Terry then says that the rewards differ by infinity. DPO follows, and no β
# holds it back, IPO does not. Here is one pair, trained for long:

# %%
margins = {}
for name in curves:
    margin = torch.zeros(1, requires_grad=True)
    optimizer, seen = torch.optim.Adam([margin], lr=0.2), []
    for _ in range(either(2000, 10)):
        loss = {
            "DPO": lambda m: -F.logsigmoid(BETA * m),
            "IPO": lambda m: (m - 1 / (2 * TAU)) ** 2,
            "KTO": lambda m: 2 * torch.sigmoid(-BETA * m / 2),
        }[name](margin)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        seen.append(float(margin.detach()))
    margins[name] = seen
figure, axes = plt.subplots(figsize=(6.4, 2.6))
for name, seen in margins.items():
    axes.plot(seen, label=name)
axes.set(xlabel="step", ylabel="margin h, nats")
axes.legend(frameon=False)
print("margins at the end:", {name: round(seen[-1], 1) for name, seen in margins.items()})
claim("IPO stops at 1/(2τ), DPO does not", margins["IPO"][-1] < 5.1 and margins["DPO"][-1] > 10)

# %% [markdown]
# ## Where they end
#
# IPO's and KTO's losses have minima of their own, which can be computed: IPO (of the paper) tilts by the
# *chance to win* $P(y)$, not by the reward, and KTO drives to 0 what loses more often than it wins.
# Best-of-n has no loss at all: draw n answers, keep the best. Its distribution is
# $F(y)^n - F(y^-)^n$, with $F$ the chance that the reference's reward is at most $r(y)$.

# %%
ends = {
    "PPO, DPO": problem.optimal,
    "IPO, τ = 0.25": optima.ipo(problem, 0.25, per_token=False),
    "KTO": optima.kto(problem, BETA),
    **{f"best of {n}": optima.best_of_n(problem, n) for n in (2, 4, 8, 16)},
}
figure, axes = plt.subplots(figsize=(6.4, 3.8))
draw_frontier(axes, most=2.6)
print(f"{'':14s} {'KL':>6s} {'reward':>7s} {'optimality':>11s} {'KL efficiency':>14s}")
for name, policy in ends.items():
    spent, reward = kl(policy), float(policy @ rewards)
    needed = float(np.interp(reward, frontier_reward[::-1], frontier_kl[::-1]))
    print(
        f"{name:14s} {spent:6.2f} {reward:7.2f} {problem.optimality_of(policy):11.3f}"
        f" {needed / spent:14.2f}"
    )
    if name != "PPO, DPO":
        axes.plot([spent], [reward], "s" if "best" in name else "D", label=name)
axes.legend(frameon=False, loc="lower right", fontsize=8)

# %% [markdown]
# *KL efficiency* is the share of its KL that a policy's reward was worth: the frontier needs so much,
# the policy spent 1. See that best-of-n lies not far below the frontier, and needs no training. But n, not
# β, says how far it goes. And see that a policy can be *efficient* and yet have a poor optimality: it
# stands at another point of the frontier than the one that our β asks for.
#
# ## What best-of-n costs
#
# Rank all answers by reward, and let $u \in [0, 1]$ be the rank of a sample of $\pi_{ref}$: it is uniform.
# The best of n has the density $n u^{n-1}$. So
#
# $$KL = \int_0^1 n u^{n-1} \log(n u^{n-1})\, du$$
#
# **Exercise 9.4.** Solve the integral (hint: $\int_0^1 n u^{n-1} \log u\, du = -1/n$), and write the KL.


# %% tags=["exercise"]
def my_best_of_n_kl(n):
    # your code
    ...


# %% tags=["check"]
with exercise("9.4"):
    assert my_best_of_n_kl(1) == 0, "the best of one is the reference itself"
    assert abs(my_best_of_n_kl(4) - np.log(4)) > 1e-9, "log n alone leaves out E[log u^(n−1)]"
    u = (np.arange(20000) + 0.5) / 20000
    numeric = float(np.mean(4 * u**3 * np.log(4 * u**3)))
    assert abs(my_best_of_n_kl(4) - numeric) < 1e-3, f"the integral for n = 4 is {numeric:.3f}"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_best_of_n_kl(n):
#     return np.log(n) - (n - 1) / n
# ```
#
# </details>

# %% [markdown]
# That is exact where every answer is rare, as long texts are. Where one answer has much probability, the
# best of n is often that same answer. Then it is an upper bound (Beirami et al. 2024):

# %%
sizes = [1, 2, 4, 8, 16, 32, 64, 128]
exact = [kl(optima.best_of_n(problem, n)) for n in sizes]
bound = [kl_bound(n) for n in sizes]
figure, axes = plt.subplots(figsize=(6.4, 2.8))
axes.plot(sizes, bound, "o-", label="log n − (n − 1)/n")
axes.plot(sizes, exact, "s--", label="here, exactly")
axes.set(xscale="log", xlabel="n", ylabel="KL, nats")
axes.set_xticks(sizes, sizes)
axes.legend(frameon=False)
claim(
    "the formula is an upper bound", all(a <= b + 1e-9 for a, b in zip(exact, bound, strict=True))
)
print(f"the best of 128 costs {exact[-1]:.2f} nats: KL grows with the log of the work")

# %% [markdown]
# ## The chosen answer gets less likely
#
# Everyone who runs DPO sees it: the margin grows, the accuracy rises, and the log-probability of the
# *chosen* answers falls. Is that a fault? On this problem we can ask what the optimum itself does.

# %%
wins = optima.win_probability(problem)
as_chosen, as_rejected = 2 * reference * wins, 2 * reference * (1 - wins)  # each sums to 1
move = np.log(dpo_path / reference)
asked = np.log(problem.optimal / reference)
figure, axes = plt.subplots(figsize=(6.4, 3))
for name, weights, colour in (("chosen", as_chosen, "C2"), ("rejected", as_rejected, "C3")):
    axes.plot(move @ weights, color=colour, label=name)
    axes.axhline(weights @ asked, color=colour, linestyle=":")
axes.axhline(0, color="black", linewidth=0.5)
axes.set(xlabel="step of DPO", ylabel="mean log π − log π_ref, nats")
axes.legend(frameon=False)
print(f"at π*: chosen {as_chosen @ asked:+.2f}, rejected {as_rejected @ asked:+.2f} nats")
claim("the chosen answer's log-probability falls, as π* asks", as_chosen @ asked < 0)

# %% [markdown]
# The dotted lines are π*. **There the chosen answers have fallen as well.** Since
# $\log \pi^*/\pi_{ref} = (r - J^*)/\beta$, only answers better than $J^*$ rise. $J^*$ is far above the
# mean, and the chosen of two ordinary answers is an ordinary answer. The probability went to the few best.
#
# So a fall alone is no fault. It is one if it goes on below what is asked, and that is what few pairs and
# many epochs do: probability then leaves *both* answers for something that stands in no pair at all.
# The loss cannot see where it goes (Razin et al. 2024).
#
# ## Whose pairs?
#
# In theory DPO's optimum is the same from whatever pairs, if each completion occurs. In practice pairs
# are few. Take a budget of pairs from three sources: $\pi_{ref}$; a worse model, which writes
# what is good even less often; and the policy itself as it learns, in four rounds (*online DPO*).

# %%
worse = reference * np.exp(-rewards / BETA)
worse /= worse.sum()
print(f"mean reward: worse model {worse @ rewards:+.2f}, π_ref {reference @ rewards:+.2f}")


def draw_pairs(policy, count, rng):
    """``count`` pairs (winner, loser) of a policy's completions, labelled by Bradley–Terry."""
    drawn = rng.choice(len(rewards), size=(count, 2), p=policy / policy.sum())
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]  # an answer beside itself says nothing
    first_wins = rng.random(len(drawn)) < expit(rewards[drawn[:, 0]] - rewards[drawn[:, 1]])
    return np.where(first_wins[:, None], drawn, drawn[:, ::-1])


def dpo_on(drawn, steps, begin=None):
    won, lost = torch.from_numpy(drawn.copy()).T

    def loss(logps):
        implicit = BETA * (logps - LOG_REF)
        return -F.logsigmoid(implicit[won] - implicit[lost]).mean()

    path, logits = descend(loss, steps, begin=begin)
    return path[-1], logits


def train(source, budget, seed):
    """DPO on a budget of pairs of one source; the optimality that it reaches."""
    rng, rounds, steps = np.random.default_rng(seed), 4, either(80, 2)
    seen, policy, logits = np.empty((0, 2), int), reference, None
    for _ in range(rounds):
        writer = {"π_ref": reference, "a worse model": worse, "the policy": policy}[source]
        seen = np.concatenate([seen, draw_pairs(writer, budget // rounds, rng)])
        policy, logits = dpo_on(seen, steps, logits)
    return problem.optimality_of(policy)


budgets, seeds = either([200, 800, 3200], [40]), either(range(5), range(2))
sources = ("π_ref", "a worse model", "the policy")
found = {s: np.array([[train(s, b, seed) for seed in seeds] for b in budgets]) for s in sources}
figure, axes = plt.subplots(figsize=(6.4, 3))
for source, values in found.items():
    axes.plot(budgets, np.median(values, axis=1), "o-", label=f"pairs of {source}")
    axes.fill_between(budgets, values.min(axis=1), values.max(axis=1), alpha=0.15)
    text = ", ".join(f"{b}: {np.median(v):.2f}" for b, v in zip(budgets, values, strict=True))
    print(f"{source:14s} median optimality by pairs: {text}")
axes.axhline(0, color="black", linewidth=0.5)
axes.set(xscale="log", xlabel="pairs", ylabel="optimality", ylim=(-1.3, 1.05))
axes.set_xticks(budgets, budgets)
axes.minorticks_off()
axes.legend(frameon=False)

# %% [markdown]
# Bands are from the worst to the best of five seeds. All three see the same number of pairs and take
# the same number of steps. Pairs of a worse model are mostly about answers that π* never writes. That is
# the practical meaning of *off-policy*: not a bias of the loss, but knowledge in the wrong place. On the
# real task the same question is asked by [the sweep](../sweep.md).
#
# ## Has it collapsed?
#
# "RLHF destroys variety" is said of entropy that falls. But π* at a small β has little entropy itself: who
# asks for reward at a low price of KL has asked for few answers. So compare with the **optimum's own**
# entropy. What lies below that is collapse, the rest was asked for.

# %%
no_price, _ = descend(lambda logps: -(logps.exp() * R).sum(), either(600, 20))
few = draw_pairs(reference, either(200, 40), np.random.default_rng(0))
learnt_by_heart, _ = dpo_on(few, either(1500, 5))
policies = {
    "π_ref": reference,
    "π*": problem.optimal,
    "DPO, all pairs": dpo_path[-1],
    "DPO, 200 pairs, long": learnt_by_heart,
    "no KL penalty": no_price[-1],
}
rng = np.random.default_rng(0)
print(f"{'':22s} {'entropy':>8s} {'e^entropy':>10s} {'distinct-2':>11s} {'texts of 64':>12s}")
for name, policy in policies.items():
    drawn = rng.choice(len(policy), size=64, p=policy / policy.sum())
    texts = [problem.texts[n] for n in drawn]
    print(
        f"{name:22s} {entropy(policy):8.2f} {np.exp(entropy(policy)):10.1f}"
        f" {distinct(texts, 2) or 0.0:11.2f} {len(set(texts)):12d}"
    )

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.4))
axes.plot(frontier_kl, [entropy(p) for p in best], color="black", label="π* of each β")
for (name, policy), mark in zip(policies.items(), "o*sDX", strict=True):
    axes.plot([kl(policy)], [entropy(policy)], mark, markersize=9, label=name)
for path, colour in ((dpo_path, "C1"), (no_price, "C4")):
    axes.plot([kl(p) for p in path], [entropy(p) for p in path], color=colour, linewidth=0.8)
axes.set(xlabel="KL(π‖π_ref), nats", ylabel="entropy, nats", ylim=(-0.1, None))
axes.legend(frameon=False, fontsize=8)
claim(
    "without a price of KL the variety goes far below what β asks for",
    entropy(no_price[-1]) < 0.5 * entropy(problem.optimal),
)

# %% [markdown]
# The black line is the optima's entropy at each KL. DPO on all pairs lands at the star. Without a penalty,
# one answer is left in the end. DPO that has learned its few pairs by heart has gone far beyond the star
# too: β stands in its loss, but no longer holds it, as the labels say "always".
#
# **Exercise 9.5.** Split a loss of entropy into what was asked for and what is collapse.


# %% tags=["exercise"]
def asked_and_collapse(reference_entropy, optimal_entropy, policy_entropy):
    """(what π* gives up of the reference's entropy, what the policy lost beyond that; at least 0)."""
    # your code
    ...


# %% tags=["check"]
with exercise("9.5"):
    asked, collapse = asked_and_collapse(4.0, 2.5, 1.0)
    assert collapse != 3.0, "that is the whole loss; a part of it was asked for"
    assert (asked, collapse) == (1.5, 1.5), "4.0 to 2.5 was asked for, 2.5 to 1.0 was not"
    assert asked_and_collapse(4.0, 2.5, 3.0) == (1.5, 0.0), "more variety than π* is no collapse"

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def asked_and_collapse(reference_entropy, optimal_entropy, policy_entropy):
#     return reference_entropy - optimal_entropy, max(0.0, optimal_entropy - policy_entropy)
# ```
#
# </details>

# %% [markdown]
# ## Which method when
#
# | you have | take | because |
# | --- | --- | --- |
# | no time, and n answers a question are cheap to draw | best-of-n | near the frontier, nothing to train; n sets the KL |
# | pairs from people, and no reward | DPO | the loss needs nothing else |
# | … each labelled once, with almost no doubt | IPO, or DPO stopped early | DPO has no end there |
# | answers marked good or bad, no pairs | KTO | no other method here reads them; it ends elsewhere than π* |
# | a reward that can be asked as often as you like | PPO, RLOO, online DPO | they learn where the policy *is* |
# | pairs of another, worse model | draw your own | what they know lies elsewhere |
#
# What this lesson cannot say: how the methods do at size. On the quickstart's task neither PPO nor DPO
# gets near the frontier, and the page [how well it learns](../learning.md) says what was tried there and
# what is not known. [The methods](../methods.md) has settings and costs, and
# [controlled sentiment](../controlled-sentiment.md) the two against each other on a real model.

# %% [markdown]
# ## Run it on your own
#
# 1. Let PPO and DPO compete at a high price of KL, `PRICE = 2`, and at a low one, `0.2`. Which of them
#    suffers first, and why? (Look at how far the optimum is.)
# 2. Take `"ipo"`, `"kto"`, `"rloo"` or `"grpo"`: each is a name in `METHODS`. Where does it come to rest?
#    Compare `distance` with `own_distance`.
# 3. Take another seed. Is there one where the chosen answers do *not* fall at π*?

# %%
METHOD, PRICE, MY_SEED = "rloo", 0.6, 1
result = certify(METHODS[METHOD], MY_SEED, PRICE, effort=either(0.2, 0.001))
end = result["curve"][-1]
print(f"{METHOD}: " + ", ".join(f"{key} {value:.3f}" for key, value in end.items()))
