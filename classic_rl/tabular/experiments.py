"""What a tabular command does: solve or learn, evaluate, sweep; `report` shows it."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse.csgraph import breadth_first_order

from classic_rl.errors import ProblemError
from classic_rl.folders import RUNS, slug
from classic_rl.mdp import MDP
from classic_rl.progress import Progress
from classic_rl.results import prepare_folder
from classic_rl.tabular import control, prediction, report
from classic_rl.tabular.evaluation import (
    finite_horizon_values,
    policy_evaluation,
    under_policy,
)
from classic_rl.tabular.experience import Learned, Prediction
from classic_rl.tabular.names import CONTROL, PLANNING
from classic_rl.tabular.planning import (
    Solution,
    modified_policy_iteration,
    policy_iteration,
    value_iteration,
)
from classic_rl.tabular.rollouts import Played, evaluate
from classic_rl.tabular.settings import Learning, Problem, learning, open_problem
from classic_rl.tabular.soft import SoftSolution, soft_value_iteration

SNAPSHOTS = 40  # of a table while it is learned
# Evaluation plays episodes that no training has seen.
EVALUATION_SEED = 1_000_000
SHOWN_SWEEPS = (1, 2, 3, 4, 5)
LEARNERS: dict[str, Callable[..., Learned]] = {
    "monte-carlo-control": control.monte_carlo_control,
    "sarsa": control.sarsa,
    "expected-sarsa": control.expected_sarsa,
    "q-learning": control.q_learning,
    "double-q-learning": control.double_q_learning,
}


def run(arguments: argparse.Namespace) -> None:
    """Run a parsed command: print its tables, write its files."""
    problem = open_problem(arguments)
    folder = arguments.out or RUNS / f"{arguments.algorithm}-{slug(problem.env_id)}"
    paper = report.Report(arguments, problem, prepare_folder(folder))
    if arguments.algorithm in PLANNING:
        _plan(arguments, problem, paper)
    elif arguments.algorithm not in CONTROL:
        _predict(arguments, problem, paper)
    elif arguments.sweep:
        _sweep(arguments, problem, paper)
    else:
        _control(arguments, problem, paper)
    paper.finish()
    problem.env.close()


def _plan(arguments: argparse.Namespace, problem: Problem, paper: report.Report) -> None:
    mdp, name = problem.model, arguments.algorithm
    settings: dict[str, Any] = {"gamma": mdp.gamma}
    for option in ("policy", "beta", "tolerance"):
        if hasattr(arguments, option):
            settings[option] = getattr(arguments, option)
    paper.begin(settings)
    sweeps: list[tuple[str, np.ndarray]] = []
    if name == "policy-evaluation":
        policy = given_policy(problem, arguments.policy)
        values = policy_evaluation(mdp, policy)
        facts = {"residual": _residual(mdp, policy, values)}
    else:
        solved = _solve(arguments, problem, sweeps)
        values, policy = solved.values, solved.policy
        if mdp.gamma == 1 and name in ("value-iteration", "modified-policy-iteration"):
            # Their greedy policy may go round for ever among actions that tie.
            ending = policy_iteration(mdp, tolerance=arguments.tolerance)
            policy = ending.policy
            if np.abs(ending.values - values).max() > 1e-6 * (1 + np.abs(values).max()):
                raise ProblemError(
                    "with gamma = 1 going round for ever at no cost is worth more here than any "
                    "way to an end: lower gamma, or take policy-iteration for the best that ends"
                )
        facts = {"sweeps": solved.sweeps, "residual": solved.residual}
        if isinstance(solved, SoftSolution):
            paper.soft(mdp, solved, reference_policy(problem), arguments.beta)
    played = [play(arguments, problem, policy, seed) for seed in arguments.seeds]
    paper.plan(values, policy, facts, sweeps)
    paper.played(played, optimum(problem))


def _solve(
    arguments: argparse.Namespace, problem: Problem, sweeps: list[tuple[str, np.ndarray]]
) -> Solution | SoftSolution:
    """The exact solution; ``sweeps`` gets value iteration's first."""
    mdp, name, tolerance = problem.model, arguments.algorithm, arguments.tolerance

    def keep(k: int, values: np.ndarray) -> None:
        if k in SHOWN_SWEEPS:
            sweeps.append((f"sweep {k}", values))

    if name == "soft-value-iteration":
        reference = reference_policy(problem)
        return soft_value_iteration(mdp, reference, arguments.beta, tolerance=tolerance)
    if name == "value-iteration":
        return value_iteration(mdp, tolerance=tolerance, on_sweep=keep)
    if name == "policy-iteration":
        return policy_iteration(mdp, tolerance=tolerance)
    return modified_policy_iteration(mdp, tolerance=tolerance)


def _control(arguments: argparse.Namespace, problem: Problem, paper: report.Report) -> None:
    how = learning(arguments, problem.tuned)
    paper.begin(how.text)
    many = arguments.seeds
    with Progress(f"{arguments.algorithm}, {report.plural(len(many), 'seed')}", len(many)) as bar:
        learned = [learn(arguments, problem, how, seed, bar) for seed in many]
    played = [
        play(arguments, problem, one.policy, seed) for one, seed in zip(learned, many, strict=True)
    ]
    best = optimum(problem)
    paper.control(learned, how.episodes is not None, best)
    exact = optimal_values(problem)
    if exact is not None:
        seen = reached(problem.model, problem.uniform_policy())
        paper.distance(learned, exact, seen)
    paper.played(played, best, learned)


def learn(
    arguments: argparse.Namespace,
    problem: Problem,
    how: Learning,
    seed: int,
    bar: Progress,
    record: bool = True,
) -> Learned:
    """One seed's training, with snapshots unless ``record`` is off."""
    every = max((how.steps or how.episodes or 1) // SNAPSHOTS, 1) if record else 0
    learned = LEARNERS[arguments.algorithm](
        problem.mdp or problem.env,
        explore=how.explore,
        seed=seed,
        max_steps=problem.limit,
        record=every,
        on_progress=bar,
        **how.options,
    )
    bar.next()
    return learned


def _predict(arguments: argparse.Namespace, problem: Problem, paper: report.Report) -> None:
    how = learning(arguments, problem.tuned)
    policy = given_policy(problem, arguments.policy)
    settings = how.text | {"policy": arguments.policy}
    method: Callable[..., Prediction] = prediction.monte_carlo_prediction
    options = how.options
    if arguments.algorithm == "td":
        method = prediction.td0
        for setting, other in (("n", prediction.n_step_td), ("lam", prediction.td_lambda)):
            if getattr(arguments, setting) is not None:
                method = other
                options[setting] = settings[setting] = getattr(arguments, setting)
    paper.begin(settings)
    record = max((how.steps or how.episodes or 1) // SNAPSHOTS, 1)
    many = arguments.seeds
    predictions = []
    with Progress(f"{arguments.algorithm}, {report.plural(len(many), 'seed')}", len(many)) as bar:
        for seed in many:
            options |= {"seed": seed, "max_steps": problem.limit, "record": record}
            predictions.append(
                method(problem.mdp or problem.env, policy, on_progress=bar, **options)
            )
            bar.next()
    exact = errors = None
    if problem.mdp is not None:
        exact = policy_evaluation(problem.mdp, policy)
        seen = reached(problem.mdp, policy)
        snapshots = [[values for _, values in one.snapshots] for one in predictions]
        errors = np.sqrt(((np.array(snapshots) - exact)[:, :, seen] ** 2).mean(axis=2))
    paper.prediction(predictions, policy, exact, errors, how.episodes is not None)


def _sweep(arguments: argparse.Namespace, problem: Problem, paper: report.Report) -> None:
    names = [name for name, _ in arguments.sweep]
    points = list(itertools.product(*(values for _, values in arguments.sweep)))
    settings = [
        learning(arguments, problem.tuned, **dict(zip(names, point, strict=True)))
        for point in points
    ]
    paper.begin({key: v for key, v in settings[0].text.items() if key not in names})
    label = f"{len(points)} settings, {report.plural(len(arguments.seeds), 'seed')} each"
    scores = []
    with Progress(label, len(points) * len(arguments.seeds)) as bar:
        for how in settings:
            at_gamma = problem
            if problem.mdp is not None:
                at_gamma = replace(problem, mdp=problem.mdp.with_gamma(how.gamma))
            row = []
            for seed in arguments.seeds:
                learned = learn(arguments, at_gamma, how, seed, bar, record=False)
                played = play(arguments, at_gamma, learned.policy, seed)
                row.append(played.mean if played.exact is None else played.exact)
            scores.append(row)
    paper.sweep(arguments.sweep, np.array(scores), optimum(problem))


def given_policy(problem: Problem, name: str) -> np.ndarray:
    """The policy to value: int ``(S,)`` or float ``(S, A)``."""
    if name == "uniform":
        return problem.uniform_policy()
    return policy_iteration(problem.model).policy


def reference_policy(problem: Problem) -> np.ndarray:
    """The environment's own reference ``(S, A)``, else the uniform policy."""
    own = getattr(problem.env.unwrapped, "reference", None)
    return problem.uniform_policy() if own is None else own


def play(arguments: argparse.Namespace, problem: Problem, policy: np.ndarray, seed: int) -> Played:
    """Undiscounted returns of a policy within the time limit, sampled and exact."""
    returns = evaluate(
        problem.mdp or problem.env,
        policy,
        episodes=arguments.eval_episodes,
        seed=EVALUATION_SEED + seed,
        max_steps=problem.limit,
    )
    exact = None
    if problem.mdp is not None:
        exact = expected_return(problem.mdp, policy, problem.limit)
    return Played(float(returns.mean()), float(returns.std()), exact)


def optimum(problem: Problem) -> float | None:
    """The best expected return within the time limit; None without a model."""
    if problem.mdp is None:
        return None
    return expected_return(problem.mdp, None, problem.limit)


def optimal_values(problem: Problem) -> np.ndarray | None:
    """The exact optimal values ``(S,)``; None without a model, or where no policy ever ends."""
    if problem.mdp is None:
        return None
    try:
        return policy_iteration(problem.mdp).values
    except ProblemError:
        return None


def expected_return(mdp: MDP, policy: np.ndarray | None, steps: int) -> float:
    """E[Σ r] of ``steps`` steps from the start, of a policy or of the best one (None)."""
    undiscounted = mdp.with_gamma(1.0)
    return float(mdp.start @ finite_horizon_values(undiscounted, policy, steps))


def reached(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """The states, terminal ones aside, that a policy can come to from the start, ``(K,)``."""
    chain, _ = under_policy(mdp, policy)
    chain.eliminate_zeros()
    seen: Sequence[np.ndarray] = [
        breadth_first_order(chain, start, return_predecessors=False)
        for start in np.flatnonzero(mdp.start)
    ]
    states = np.unique(np.concatenate(seen))
    return states[~mdp.terminal[states]]


def _residual(mdp: MDP, policy: np.ndarray, values: np.ndarray) -> float:
    """‖r + γPV − V‖∞ of a policy's values."""
    chain, rewards = under_policy(mdp, policy)
    return float(np.abs(rewards + chain @ values - values).max())
