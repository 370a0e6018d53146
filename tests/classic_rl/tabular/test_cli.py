"""``python -m classic_rl``: every tabular command from its words to its files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from PIL import Image

from classic_rl import cli
from classic_rl.pictures.plots import moving_mean
from classic_rl.progress import Progress
from classic_rl.results import write_bytes
from tests.checkout import ROOT

PNG, GIF = b"\x89PNG\r\n", b"GIF8"
PLANNING = ("value-iteration", "policy-iteration", "modified-policy-iteration")
LEARNING = ("monte-carlo-control", "sarsa", "expected-sarsa", "q-learning", "double-q-learning")


def run(words: str, out: Path) -> dict:
    """Run a command and return its results.json."""
    assert cli.main([*words.split(), "--out", str(out)]) == 0
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for name in content["pictures"]:
        start = (out / name).read_bytes()[:6]
        assert start.startswith(GIF if name.endswith(".gif") else PNG), name
    return content


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake prints."""
    assert cli.main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1, printed
    return printed


@pytest.mark.parametrize("name", PLANNING)
def test_planning(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GridWorld 3x4, gamma 0.9: the optimum that Russell & Norvig's world is known for."""
    made = run(f"{name} --env GridWorld3x4 --gamma 0.9 --eval-episodes 20", tmp_path)
    results = made["results"]
    # R(s) + gamma V(s) are the textbook's utilities; step reward 0 leaves gamma V(s).
    utilities = 0.9 * np.array(results["values"])
    assert utilities[[0, 1, 2]] == pytest.approx([0.64, 0.74, 0.85], abs=0.011)
    assert results["policy"][:3] == [2, 2, 2]
    assert results["residual"] < 1e-8
    printed = capsys.readouterr().out
    assert "0.94→" in printed and "#" in printed
    assert ("sweeps.png" in made["pictures"]) == (name == "value-iteration")


@pytest.mark.parametrize("name", PLANNING)
def test_undiscounted_planning_shows_a_policy_that_ends(name: str, tmp_path: Path) -> None:
    """Without slipping all ways on FrozenLake are worth 1, and greedy policies walk in circles."""
    words = "--env FrozenLake-v1 --env-arg is_slippery=false --gamma 1 --eval-episodes 5"
    made = run(f"{name} {words} --no-pictures", tmp_path)
    assert made["results"]["evaluation"][0]["exact"] == 1
    assert made["results"]["optimum"] == 1
    assert made["pictures"] == []


@pytest.mark.parametrize(("policy", "value"), [("uniform", 0.0139), ("optimal", 0.7442)])
def test_policy_evaluation(policy: str, value: float, tmp_path: Path) -> None:
    """FrozenLake's chance of success within 100 steps, at random and at best (about 0.74)."""
    made = run(f"policy-evaluation --policy {policy} --gamma 1 --eval-episodes 10", tmp_path)
    assert made["results"]["evaluation"][0]["exact"] == pytest.approx(value, abs=0.005)
    assert made["results"]["optimum"] == pytest.approx(0.7442, abs=5e-5)


def test_soft_value_iteration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run("soft-value-iteration --env TokenMDP --beta 0.5 --eval-episodes 10", tmp_path)
    best, reference = made["results"]["optimum"], made["results"]["reference"]
    soft = made["results"]["regularised"]
    assert soft["objective"] == pytest.approx(made["results"]["enumerated"], abs=1e-10)
    assert soft["objective"] == pytest.approx(soft["reward"] - 0.5 * soft["kl"], abs=1e-10)
    assert reference["kl"] == 0 and reference["objective"] < soft["objective"] < best
    assert made["pictures"] == ["completions.png"]
    assert "<end>" in capsys.readouterr().out


def test_soft_value_iteration_on_a_grid(tmp_path: Path) -> None:
    made = run("soft-value-iteration --env FrozenLake-v1 --beta 0.01 --eval-episodes 5", tmp_path)
    policy = np.array(made["results"]["policy"])
    assert policy.shape == (16, 4) and policy.sum(axis=1) == pytest.approx(1)
    assert made["pictures"] == ["values.png"]


@pytest.mark.parametrize("words", ["monte-carlo-prediction", "td", "td --n 3", "td --lam 0.8"])
def test_prediction(words: str, tmp_path: Path) -> None:
    """Values near the exact ones; from nothing the RMS error is 0.13."""
    made = run(f"{words} --seeds 0 1 --steps 20000", tmp_path)
    errors = made["results"]["rms_error"]
    assert len(errors) == 2 and max(errors) < 0.06 and errors[0] != errors[1]
    assert made["pictures"] == ["error.png", "values.png"]


@pytest.mark.parametrize("name", LEARNING)
def test_control(name: str, tmp_path: Path) -> None:
    """The 4x4 world without slipping: six steps to the goal, 1 - 5 * 0.01, is soon found."""
    words = f"{name} --env GridWorld4x4 --seeds 0 1 --steps 4000 --eval-episodes 5 --no-pictures"
    made = run(words, tmp_path)
    for one in made["results"]["evaluation"]:
        assert one["exact"] == pytest.approx(0.95) and one["mean"] == pytest.approx(0.95)
    assert made["results"]["optimum"] == pytest.approx(0.95)
    assert made["seeds"] == [0, 1] and made["settings"]["steps"] == 4000
    assert set(made["versions"]) == {"python", "numpy", "scipy", "gymnasium", "matplotlib"}
    assert made["pictures"] == [] and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("length", ["--steps 1000", "--episodes 50"])
def test_pictures_of_learning(length: str, tmp_path: Path) -> None:
    made = run(f"q-learning --env GridWorld4x4 --seeds 0 1 {length}", tmp_path)
    names = ["values.png", "q-table.png", "q-table.gif", "learning-curve.png"]
    assert made["pictures"] == names
    with Image.open(tmp_path / "q-table.gif") as animation:
        assert getattr(animation, "n_frames", 1) > 20


def test_monte_carlo_can_average(tmp_path: Path) -> None:
    words = "monte-carlo-control --env GridWorld4x4 --steps 4000 --no-pictures --alpha average"
    made = run(words, tmp_path)
    assert made["settings"]["alpha"] == "average"
    assert made["results"]["evaluation"][0]["exact"] == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("explore", "setting"),
    [
        ("greedy --initial 1", ("initial", 1.0)),
        ("softmax --temperature 0.5:0.01", ("temperature", "0.5:0.01")),
        ("ucb --confidence 0.2", ("confidence", 0.2)),
        ("epsilon --epsilon 1:0.1:2000", ("epsilon", "1:0.1:2000")),
    ],
)
def test_exploration(explore: str, setting: tuple, tmp_path: Path) -> None:
    words = f"q-learning --env GridWorld4x4 --steps 4000 --no-pictures --explore {explore}"
    made = run(f"{words} --eval-episodes 2", tmp_path)
    assert made["settings"][setting[0]] == setting[1]
    assert made["results"]["evaluation"][0]["exact"] == pytest.approx(0.95)


def test_tuned_settings_and_environment_arguments(tmp_path: Path) -> None:
    """FrozenLake without slipping has settings of its own, and always succeeds."""
    words = "q-learning --env FrozenLake-v1 --env-arg is_slippery=false --no-pictures"
    made = run(words, tmp_path)
    assert made["env_args"] == {"is_slippery": False}
    assert made["settings"]["gamma"] == 0.95 and made["settings"]["initial"] == 1.0
    assert made["results"]["evaluation"][0]["mean"] == 1.0


def test_cliff_walking_as_in_the_book(tmp_path: Path) -> None:
    """Sutton & Barto 2018, example 6.6: Q-learning learns the shortest path, 13 steps along the
    edge; SARSA, which counts its own exploring, a longer one."""
    words = "--env CliffWalking-v1 --eval-episodes 2 --no-pictures --seed 1"
    learned = run(f"q-learning {words}", tmp_path)
    assert learned["settings"]["episodes"] == 500
    assert learned["results"]["evaluation"][0]["exact"] == -13
    safe = run(f"sarsa {words}", tmp_path)["results"]["evaluation"][0]["exact"]
    assert -20 < safe < -13


@pytest.mark.parametrize("swept", ["alpha=0.05,0.5", "alpha=0.05,0.5 gamma=0.5,0.9,0.95"])
def test_sweep(swept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"q-learning --env GridWorld4x4 --seeds 0 1 --steps 3000 --sweep {swept}"
    made = run(f"{words} --eval-episodes 2", tmp_path)
    scores = np.array(made["results"]["scores"])
    assert scores.shape == (6 if "gamma" in swept else 2, 2)
    assert scores.max() == pytest.approx(0.95)
    assert "alpha" not in made["settings"] and made["pictures"] == ["sweep.png"]
    assert "alpha 0.05" in capsys.readouterr().out


class Coin(gym.Env):
    """Action 1 pays 1, action 0 nothing; one step, and no table of its transitions."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        return 1, float(action), True, False, {}


def test_environment_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning works from steps alone; what needs a model says so."""
    spec = EnvSpec("Coin-v0", lambda **_: Coin())
    monkeypatch.setitem(gym.registry, "Coin-v0", spec)
    words = "--env Coin-v0 --steps 500 --eval-episodes 5"
    made = run(f"sarsa {words}", tmp_path)["results"]
    assert made["optimum"] is None and made["evaluation"][0]["mean"] == 1
    assert made["evaluation"][0]["exact"] is None
    made = run(f"sarsa {words} --sweep alpha=0.1,0.5", tmp_path)["results"]
    assert made["scores"] == [[1], [1]]
    made = run(f"td {words} --alpha 0.1:0.01", tmp_path)["results"]
    assert made["values"][0][0] == pytest.approx(0.5, abs=0.2) and "exact" not in made
    assert "no exact model" in capsys.readouterr().out
    out = ["--out", str(tmp_path)]
    assert "no exact model" in error_of(["policy-iteration", "--env", "Coin-v0", *out], capsys)
    optimal = ["td", "--env", "Coin-v0", "--policy", "optimal", *out]
    assert "no exact model" in error_of(optimal, capsys)


def test_a_swept_discount_is_used(tmp_path: Path) -> None:
    """Where every step pays 0.3 and the goal 1, a far-sighted agent stays and a short-sighted one
    goes: 0.3 / (1 - gamma) is 0.6 or 3."""
    words = "q-learning --env GridWorld4x4 --env-arg step_reward=0.3 --steps 3000 --alpha 0.5"
    made = run(f"{words} --sweep gamma=0.5,0.9 --no-pictures --eval-episodes 1", tmp_path)
    goes, stays = made["results"]["scores"]
    assert goes == [pytest.approx(5 * 0.3 + 1)] and stays == [pytest.approx(100 * 0.3)]


def test_same_seed_same_results(tmp_path: Path) -> None:
    words = "sarsa --env FrozenLake-v1 --steps 2000 --no-pictures --eval-episodes 20 --seed"
    first = run(f"{words} 3", tmp_path / "a")
    run(f"{words} 3", tmp_path / "b")
    other = run(f"{words} 4", tmp_path / "c")
    a, b = ((tmp_path / x / "results.json").read_bytes() for x in "ab")
    assert a == b
    tables = [made["results"]["learned"][0]["action_values"] for made in (first, other)]
    assert tables[0] != tables[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "no algorithm given"),
        ("qlearning", "did you mean q-learning?"),
        ("Q_Learning", "did you mean q-learning?"),
        ("xyzzy", "--help` lists them"),
        ("q-learning --env FrozenLak-v1", "did you mean FrozenLake-v1?"),
        ("q-learning --env TrafficLight", "tabular methods need Discrete observations"),
        ("value-iteration --env CartPole-v1", "no exact model"),
        ("sarsa --env Blackjack-v1", "tabular methods need Discrete observations"),
        ("q-learning --gamma 1.5", "--gamma: '1.5' is not a discount in (0, 1]"),
        ("q-learning --alpha nan", "--alpha: 'nan' is not a number"),
        ("q-learning --alpha 2", "alpha: 2.0 is outside (0, 1]"),
        ("q-learning --epsilon 2:0", "epsilon: 2.0 is outside [0, 1]"),
        ("q-learning --episodes 9 --alpha 0.5:0.1", "say over how many steps: 0.5:0.1:STEPS"),
        ("q-learning --steps 0", "'0' is not a whole number of at least 1"),
        ("q-learning --steps 9 --episodes 9", "not allowed with"),
        ("q-learning --seeds 1 1", "a seed is there twice"),
        ("q-learning --seed -1", "'-1' is not a whole number of at least 0"),
        ("q-learning --env-arg is_slippery", "'is_slippery' is not KEY=VALUE"),
        ("q-learning --env-arg wet=true", "'wet'"),
        ("q-learning --env-arg map_name=9x9", "map_name=9x9"),
        ("q-learning --env GridWorld3x4 --env-arg slip=2", "slip: 2 is not a probability"),
        ("q-learning --explore ucb --epsilon 0.1", "epsilon is used by --explore epsilon only"),
        ("q-learning --sweep alhpa=0.1", "did you mean alpha?"),
        ("q-learning --alpha 0.1 --sweep alpha=0.2", "keep one of them"),
        ("q-learning --wrong", "unrecognized arguments: --wrong; `"),
        ("q-learning --max_steps 9", "did you mean --max-steps?"),
        ("td --n 2 --lam 0.5", "not allowed with"),
        ("soft-value-iteration --beta 0", "'0' is not a number above 0"),
        ("q-learning --alpha 0.5:0.1:0", "STEPS at least 1"),
        ("td --env CliffWalking-v1 --lam 0.9 --alpha 0.5", "the values grew without bound"),
        ("value-iteration --env GridWorld3x4 --env-arg step_reward=1e308", "the values overflow"),
        (
            "value-iteration --env GridWorld3x4 --gamma 1 --env-arg rewards={'+':-1,'-':-1}",
            "going round for ever at no cost",
        ),
    ],
)
def test_mistakes_are_one_line(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words.split()
    out = ["--out", str(tmp_path)] if len(given) > 1 else []
    assert told in error_of([*given, *out], capsys)


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    printed = error_of(["value-iteration", "--out", str(tmp_path / "file" / "below")], capsys)
    assert "cannot be written" in printed and "--out" in printed


def test_interruption_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.tabular, "main", interrupted)
    assert cli.main(["sarsa"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", list(cli.tabular.COMMANDS))
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "--env" in printed and "default" in printed


def test_overview_names_tabular_and_deep(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in (*cli.tabular.COMMANDS, "ppo", "dqn", "watch"):
        assert f"\n  {name} " in printed


def test_tabular_commands_need_no_torch(tmp_path: Path) -> None:
    """As a program neither torch nor yaml nor rich is imported, for the overview not even numpy."""
    code = (
        "import sys; from classic_rl.cli import main; main(['--help']); "
        "assert 'numpy' not in sys.modules; "
        f"main(['q-learning', '--steps', '500', '--out', {str(tmp_path)!r}, '--no-pictures']); "
        "assert not {'torch', 'yaml', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results.json").is_file()


def test_a_terminal_without_arrows(tmp_path: Path) -> None:
    """ASCII output: plain arrows in the table, nothing fails; nor does a reader that leaves."""
    words = [sys.executable, "-m", "classic_rl"]
    plan = [*words, "value-iteration", "--no-pictures", "--out", str(tmp_path)]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        plan, cwd=ROOT, env=ascii_only, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "0.54<" in done.stdout and "?" not in done.stdout, done.stderr
    with subprocess.Popen(
        [*words, "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as left:
        assert left.stdout and left.stderr
        left.stdout.close()
        assert left.stderr.read() == b""
    assert left.returncode == 1


def test_moving_mean() -> None:
    """Episodes end at 2, 4 and 9 with returns 1, 3 and 7; the window is 3 wide."""
    ends, returns = np.array([2, 4, 9]), np.array([1.0, 3.0, 7.0])
    means = moving_mean(ends, returns, np.array([1.0, 2.0, 4.0, 8.0, 9.0]), 3)
    np.testing.assert_allclose(means, [np.nan, 1, 2, 3, 7])


def test_progress_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("classic_rl.progress.REDRAW", 0.0)
    with Progress("learning", parts=2) as bar:
        bar.next()
        bar(50, 100)
    printed = capsys.readouterr().err
    assert re.search(r"learning.* 50%", printed) and re.search(r"learning.* 75%", printed)
    assert re.search(r"learning: \d+\.\d s$", printed.rstrip())


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = write_bytes(tmp_path / "kept", b"old")

    def full(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(kept, b"new")
    assert kept.read_bytes() == b"old" and list(tmp_path.iterdir()) == [kept]


def test_learned_values_stand_beside_the_exact_ones_with_what_mends_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A constant step size keeps the values of FrozenLake far off; the one advised does not."""
    gamma = 0.96
    words = ["q-learning", "--episodes", "20000", "--epsilon", "0.9", "--gamma", str(gamma)]
    words += ["--no-pictures", "--seed", "1", "--out", str(tmp_path)]
    assert cli.main([*words, "--alpha", "0.81"]) == 0
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    model: Any = gym.make("FrozenLake-v1").unwrapped
    exact = np.zeros(16)
    for _ in range(2000):
        exact = np.array(
            [
                max(
                    sum(p * (r + gamma * (not end) * exact[s2]) for p, s2, r, end in model.P[s][a])
                    for a in range(4)
                )
                for s in range(16)
            ]
        )
    inner = [s for s in range(16) if model.desc.flat[s] in b"SF"]
    learned = np.array(results["learned"][0]["action_values"]).max(1)[:16]
    error = np.sqrt(((learned - exact)[inner] ** 2).mean())
    assert results["rms_error"][0] == pytest.approx(error, rel=1e-6)
    assert error > 0.2
    assert f"seed 1: {error:.3g}" in shown and "exact optimal values" in shown
    advised = re.search(r"let it fall \(--alpha (\S+)\)", shown)
    assert advised and cli.main([*words, "--alpha", advised[1]]) == 0
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert results["rms_error"][0] < 0.08 and "let it fall" not in shown
    assert results["evaluation"][0]["exact"] > 0.95 * results["optimum"]


def test_values_of_a_policy_that_explores_are_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sarsa", "--env", "CliffWalking-v1", "--no-pictures", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "they are those of the policy that explores" in shown and "let it fall" not in shown
