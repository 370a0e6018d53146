"""The tables of docs/applications.md: two applications solved, beside what else one could do.

    python docs/make/applications.py                # both, seeds 0 to 4
    python docs/make/applications.py recommender
    python docs/make/applications.py bidding --seeds 0

Every number is exact: a policy is valued by the problem's own model, not by playing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from classic_rl import cli  # noqa: E402
from classic_rl.envs import Bidding, Recommender, linear_bids  # noqa: E402
from classic_rl.envs.bidding import HIGHEST, WORTHS  # noqa: E402
from classic_rl.tabular.evaluation import policy_evaluation  # noqa: E402
from classic_rl.tabular.planning import policy_iteration  # noqa: E402

SEEDS = (0, 1, 2, 3, 4)
RATES = np.arange(1, 101) / 10  # of linear bids, of which the best is taken


def recommender(seeds: Sequence[int], steps: int | None) -> None:
    """Minutes a session: fixed items, the optimum, Q-learning."""
    env = Recommender()
    mdp = env.mdp(1.0)
    begin = int(np.flatnonzero(mdp.start)[0])

    def minutes(policy: np.ndarray) -> float:
        return float(policy_evaluation(mdp, policy)[begin])

    always = [minutes(np.full(mdp.n_states, item)) for item in range(env.items)]
    chance = minutes(np.full((mdp.n_states, env.items), 1 / env.items))
    best = policy_iteration(mdp)
    print("Recommender: minutes a session")
    _row("any item by chance", chance)
    _row("the most minutes now: all clickbait", always[-1])
    _row("all content", always[0])
    _row(f"the best single item: {int(np.argmax(always))}", max(always))
    words = ["q-learning", "--env", "Recommender", "--no-pictures", "--seeds", *map(str, seeds)]
    words += ["--steps", str(steps)] if steps else []
    learned = _quietly(words)
    _row("Q-learning", *[one["exact"] for one in learned["results"]["evaluation"]])
    _row("optimum", float(best.values[begin]))
    print(f"  item by satisfaction: {' '.join(str(item) for item in best.policy[:-1])}\n")


def _quietly(words: list[str]) -> dict:
    """The results.json of a tabular command."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            if cli.main([*words, "--out", folder]) != 0:
                raise SystemExit(2)
        return json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))


def bidding(seeds: Sequence[int], steps: int | None) -> None:
    """Clicks a hundred campaigns' worth: bids in proportion, the optimum, PPO."""
    env = Bidding()
    optimum, bids = env.plan()
    linear = [env.plan(linear_bids(rate))[0] for rate in RATES]
    best = int(np.argmax(linear))
    print("Bidding: clicks in a hundred campaigns")
    _row("the highest bid, always", env.plan(np.array(HIGHEST))[0])
    _row("the worth itself", env.plan(linear_bids(1.0))[0])
    _row(f"the best multiple of the worth: {RATES[best]:g}", linear[best])
    _row("PPO", *[_ppo(env, seed, steps) for seed in seeds])
    _row("optimum", optimum)
    half = bids[env.auctions // 2 - 1]
    for purse in (env.budget // 4, env.budget // 2, env.budget):
        shown = ", ".join(f"{bid} for {v:g}" for bid, v in zip(half[purse], WORTHS, strict=True))
        print(f"  best bids with half of the auctions and a budget of {purse} left: {shown}")


def _ppo(env: Bidding, seed: int, steps: int | None) -> float:
    """The exact worth of the greedy policy that a seed's training ends with."""
    from classic_rl import ppo
    from classic_rl.deep.configuration import configure

    config = replace(configure("ppo", "Bidding"), seed=seed)
    config = replace(config, total_steps=steps) if steps else config
    assert isinstance(config, ppo.PPOConfig)
    policy = ppo.train(config).policy
    grid = np.indices((env.auctions, env.budget + 1, len(WORTHS))).reshape(3, -1)
    seen = env.observation(grid[0] + 1, grid[1], grid[2]).T
    actions = policy.for_environment(policy.act(policy.scale(seen)).actions)
    return env.plan(actions.reshape(env.auctions, env.budget + 1, len(WORTHS)))[0]


def _row(name: str, *values: float) -> None:
    """A line: the value, or the values of the seeds with their mean."""
    text = " ".join(f"{value:.2f}" for value in values)
    mean = f"  mean {np.mean(values):.2f}" if len(values) > 1 else ""
    print(f"  {name:<38}{text}{mean}", flush=True)


PARTS = {"recommender": recommender, "bidding": bidding}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables asked for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="of each training, for a try")
    arguments = parser.parse_args(argv)
    for name in arguments.parts or PARTS:
        PARTS[name](arguments.seeds, arguments.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
