"""An agent's card says how it was made and how good it is, as the hub lists agents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from classic_rl import cli
from classic_rl.deep import card
from classic_rl.deep.configuration import configure

WORDS = ["ppo", "--env", "CartPole-v1", "--steps", "600", "--seed", "3", "--episodes", "2"]
SMALL = ["n_envs=4", "n_steps=64", "epochs=1", "minibatch_size=128"]


def test_a_trained_agent_has_one(tmp_path: Path) -> None:
    assert cli.main([*WORDS, "--out", str(tmp_path), *SMALL]) == 0
    found = ModelCard.load(tmp_path / "README.md")
    measured = json.loads((tmp_path / "evaluation.json").read_text())
    assert {"CartPole-v1", "ppo", "reinforcement-learning"} <= set(found.data.get("tags"))
    results: Any = found.data.get("eval_results")
    assert results[0].metric_type == "mean_reward" and results[0].dataset_type == "CartPole-v1"
    assert results[0].metric_value == f"{measured['mean']:.2f} +/- {measured['std']:.2f}"
    assert "with seed 3" in found.text and str(tmp_path) not in found.content
    settings = found.text.split("```yaml\n")[1].split("\n```")[0]
    (tmp_path / "settings.yaml").write_text(settings)
    assert yaml.safe_load(settings)["n_steps"] == 64
    again = configure("ppo", path=tmp_path / "settings.yaml")
    assert again == configure("ppo", path=tmp_path / "config.yaml")


def test_it_follows_the_last_evaluation_and_leaves_a_persons_alone(tmp_path: Path) -> None:
    assert cli.main([*WORDS, "--out", str(tmp_path), *SMALL]) == 0
    path, first = tmp_path / "README.md", (tmp_path / "README.md").read_text()
    assert cli.main(["evaluate", str(tmp_path), "--episodes", "3"]) == 0
    second = path.read_text()
    assert second != first and "| 3 |" in second
    path.write_text("# mine\n")
    assert cli.main(["evaluate", str(tmp_path), "--episodes", "2"]) == 0
    assert cli.main([*WORDS, "--out", str(tmp_path), *SMALL]) == 0
    assert path.read_text() == "# mine\n"


def test_the_best_on_the_way_says_so() -> None:
    about = {"algorithm": "dqn", "config": {"env_id": "E-v0", "seed": 1}, "steps": 9000}
    about |= {"best": {"steps": 4000}, "versions": {"numpy": "2"}}
    measured = {"mean": 1.0, "std": 0.5, "low": 0.0, "high": 2.0, "episodes": 5, "seed": 7}
    text = card.card(about, measured, best=True)
    assert "the best policy of its training" in text and "after 4,000" in text
    assert "after 9,000" in card.card(about, measured)
