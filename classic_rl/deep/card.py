"""The model card of a trained agent: a README.md as the Hugging Face hub reads it.

The hub lists agents by the tag ``reinforcement-learning`` and the metric ``mean_reward``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from classic_rl.deep.policy_file import POLICY_FILE
from classic_rl.results import write_bytes

CARD_FILE = "README.md"
_MARK = "<!-- This card is rewritten by every evaluation; without this line it is kept. -->"


def write_card(
    folder: Path, about: Mapping[str, Any], measured: Mapping[str, Any], best: bool = False
) -> Path | None:
    """Write the card of the agent in ``folder``; None where a person's own stands there.

    Args:
        about: what `Result.save` wrote. measured: what the evaluation wrote.
        best: whether it is the best policy on the way and not the last.
    """
    path = folder / CARD_FILE
    if not is_replaceable(path):
        return None
    return write_bytes(path, card(about, measured, best).encode())


def is_replaceable(path: Path) -> bool:
    """Whether no card is there, or one of these."""
    return not path.exists() or _MARK in path.read_text(encoding="utf-8", errors="replace")


def card(about: Mapping[str, Any], measured: Mapping[str, Any], best: bool = False) -> str:
    """The text of a card."""
    config, algorithm = about["config"], about["algorithm"]
    env_id, score = config["env_id"], f"{measured['mean']:.2f} +/- {measured['std']:.2f}"
    head = yaml.safe_dump(_metadata(algorithm, env_id, score), sort_keys=False).strip()
    steps = about["best"]["steps"] if best else about["steps"]
    which = "the best policy of its training by its last episodes" if best else "the last policy"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    settings = yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False).strip()
    return f"""---
{head}
---

# {algorithm} on {env_id}

An agent trained from random weights by `{algorithm}` of classic_rl: {which}, after {steps:,}
environment steps with seed {config["seed"]}.

| evaluation | |
| --- | --- |
| mean return ± standard deviation | {score.replace("+/-", "±")} |
| lowest, highest | {measured["low"]:.2f}, {measured["high"]:.2f} |
| episodes, greedy, that no training has seen | {measured["episodes"]} |
| seeds of their environments | {measured["seed"]} and up |

One seed says little: returns differ from seed to seed by more than from episode to episode.

## How to load it

```python
from classic_rl.deep.evaluation import evaluate
from classic_rl.deep.policy_file import load_policy

policy, env_id, env_kwargs = load_policy("path/to/this/folder")  # it holds {POLICY_FILE}
print(evaluate(policy, env_id, env_kwargs=env_kwargs).returns.mean())
```

## How to make it again

With these settings in `settings.yaml`,
`python -m classic_rl {algorithm} --config settings.yaml --episodes {measured["episodes"]}` trains
and measures it:

```yaml
{settings}
```

Made with {versions}.

## Licence

None is chosen: these weights began as random numbers, and are for whoever trained them to license.
The environment has the licence of the package that it comes with.

{_MARK}
"""


def _metadata(algorithm: str, env_id: str, score: str) -> dict[str, Any]:
    metric = {"type": "mean_reward", "value": score, "name": "mean_reward", "verified": False}
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    result = {"task": task, "dataset": {"name": env_id, "type": env_id}, "metrics": [metric]}
    return {
        "library_name": "classic_rl",
        "tags": [env_id, algorithm, "deep-reinforcement-learning", "reinforcement-learning"],
        "model-index": [{"name": f"{algorithm} {env_id}", "results": [result]}],
    }
