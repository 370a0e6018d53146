"""PPO's own switches, one at a time: which of them move the optimum, and where to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.certify import optima
from pipeline.certify.methods import METHODS, Method, Optimum
from pipeline.certify.problem import Problem


def _in_loss(tilt: Any) -> Optimum:
    return lambda problem: optima.in_loss(problem, tilt, problem.beta)


def _among_ended(problem: Problem) -> np.ndarray:
    kept = np.where(problem.ended, problem.optimal, 0.0)
    return kept / kept.sum()


def _switch(
    name: str,
    title: str,
    why: str,
    optimum: Optimum | None = None,
    given: Optimum | None = None,
    **settings: Any,
) -> Method:
    plain = METHODS["ppo"]
    return replace(
        plain,
        name=f"ppo-{name}",
        title=title,
        why=why,
        settings=plain.settings | settings,
        optimum=optimum,
        given=given,
    )


_RUNAWAY = "a rarer token pays more the rarer it gets, and falls to 0: its gradient is left out"

SWITCHES = {
    method.name: method
    for method in (
        _switch("k2", "k2 in the reward", _RUNAWAY, kl_estimator="k2"),
        _switch("k3", "k3 in the reward", _RUNAWAY, kl_estimator="k3"),
        _switch(
            "loss-k2",
            "k2 in the loss",
            "π ∝ π_ref exp(Q/β) at each token, Q without the KL that later tokens pay",
            _in_loss(optima.reverse_tilt),
            kl_in="loss",
            kl_estimator="k2",
        ),
        _switch(
            "loss-k3",
            "k3 in the loss",
            "π = βπ_ref/(c − Q) at each token: k3's gradient is the forward KL's",
            _in_loss(optima.forward_tilt),
            kl_in="loss",
            kl_estimator="k3",
        ),
        _switch(
            "whiten",
            "advantages whitened",
            "π*: one positive factor for all",
            whiten_advantages=True,
        ),
        _switch(
            "whiten-rewards",
            "rewards whitened",
            "π*: score and KL are divided by the same number",
            whiten_rewards=True,
        ),
        _switch(
            "value-clip", "value clipping 0.2", "π*: it slows the critic down", cliprange_value=0.2
        ),
        _switch(
            "exact",
            "exact KL",
            "π*: a token's own KL is differentiated, that of later states stays in its return",
            kl_estimator="exact",
        ),
        _switch(
            "exact-defaults",
            "exact KL, advantages whitened",
            "π*: the KL in the loss is divided by the advantages' deviation as well",
            kl_estimator="exact",
            whiten_advantages=True,
        ),
        _switch(
            "prefix",
            "prefix critic",
            "π*: a baseline of the state, whatever a prefix's score is worth",
            critic="prefix",
        ),
        _switch(
            "prefix-lam-0.9",
            "prefix critic, λ = 0.9",
            "π* as far as line and head are right",
            critic="prefix",
            lam=0.9,
        ),
        _switch(
            "exact-prefix-lam-0.9",
            "exact KL, prefix critic, λ = 0.9",
            "π* as far as line and head are right",
            kl_estimator="exact",
            critic="prefix",
            lam=0.9,
        ),
        _switch(
            "cut-mask",
            "cut-off completions masked",
            "π* among the completions that end (its own optimum; the distance to it is among them);"
            " how many end is left to drift",
            _among_ended,
            lambda problem: problem.ended,
            cut_off="mask",
        ),
        _switch(
            "cut-bootstrap",
            "cut-off completions bootstrapped",
            "another problem, texts without a limit: what one is worth beyond it the critic says,"
            " and no completion shows it that",
            cut_off="bootstrap",
        ),
        _switch(
            "overlap",
            "one update old",
            "π*: there every advantage is 0, whoever drew the completions",
            overlap=True,
        ),
        _switch(
            "overlap-exact",
            "one update old, exact KL",
            "π*: a policy that has come to rest draws what it is",
            overlap=True,
            kl_estimator="exact",
        ),
        _switch("lam-0.95", "λ = 0.95", "π* as far as the critic is right", lam=0.95),
        _switch(
            "shared",
            "shared critic",
            "π*: the value loss moves the policy's weights too",
            value_backprop=True,
            vf_coef=1.0,
        ),
        _switch(
            "defaults",
            "PPOConfig's defaults",
            "π*: whitened advantages, a small critic that learns at the usual rate",
            whiten_advantages=True,
            value_learning_rate=None,
            value_head_hidden=1.0,
        ),
    )
}
