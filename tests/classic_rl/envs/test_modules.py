"""``module:Env-v0``, and the time limit as an argument: alike for tables and for networks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest

from classic_rl.cli import main
from classic_rl.deep.configuration import config_path, configure
from classic_rl.envs import environments
from classic_rl.errors import ProblemError
from tests.checkout import ROOT

CORRIDOR = """
import gymnasium as gym

class Corridor(gym.Env):
    def __init__(self, length=4):
        self.observation_space = gym.spaces.Discrete(length + 1)
        self.action_space = gym.spaces.Discrete(2)
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return 0, {}

    def step(self, action):
        self.place = max(0, self.place + (1 if action else -1))
        return self.place, -1.0, self.place == self.length, False, {}

class Unregistered(Corridor):
    pass

gym.register("Corridor-v0", entry_point="corridor:Corridor", max_episode_steps=30)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The present folder, with corridor.py and broken.py in it."""
    (tmp_path / "corridor.py").write_text(CORRIDOR)
    (tmp_path / "broken.py").write_text("\nwords = 1 / 0\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "misspelt.py").write_text("\n\nx = 3 3\n")
    for name, text in (("bad_package", "\n1 / 0\n"), ("poor_package", "import absent\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
        (tmp_path / name / "envs.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("corridor", "broken", "script", "misspelt", "bad_package", "poor_package"):
        sys.modules.pop(name, None)
    gym.registry.pop("Corridor-v0", None)


def test_the_id_keeps_its_module_for_the_next_process(folder: Path) -> None:
    train = ["ppo", "--env", "corridor:Corridor", "--steps", "300", "--episodes", "1"]
    assert main([*train, "--env-arg", "length=2"]) == 2  # the version is part of the id
    train[2] += "-v0"
    assert main([*train, "--env-arg", "length=2"]) == 0
    [run] = (folder / "runs" / "classic").iterdir()
    assert run.name == "ppo-corridor-Corridor-v0-seed0"
    again = "import sys; from classic_rl.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", again, "evaluate", str(run), "--episodes", "2"],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 episodes: return -")
    asks = "policy.safetensors asks for corridor:Corridor-v0: importing corridor"
    assert asks in done.stderr and done.stderr.count("\n") == 1


def test_a_table_learns_in_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["q-learning", "--env", "corridor:Corridor-v0", "--steps", "3000", "--no-pictures"]
    assert main([*words, "--env-arg", "length=6", "--out", "q"]) == 0
    content = json.loads((folder / "q" / "results.json").read_text())
    assert content["env_id"] == "corridor:Corridor-v0" and content["env_args"] == {"length": 6}
    assert content["results"]["evaluation"][0]["mean"] == -6


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("absent:A-v0", "absent:A-v0: there is no module absent; start in its folder, or install"),
        ("corridor.sub:A-v0", "there is no module corridor.sub"),
        (":A-v0", "there is no module"),
        ("odd.py:A-v0", "odd.py:A-v0: that is a file; the module is odd:A-v0, started here"),
        ("of/odd.py:A-v0", "that is a file; the module is odd:A-v0, started in of"),
        ("corridor:Corridor", "did you mean corridor:Corridor-v0"),
        ("corridor:Unregistered", "Unregistered is a class: corridor must register it"),
        ("corridor:TokenMDP", "corridor:TokenMDP: no such environment"),  # ours, not that module's
        ("broken:A-v0", "importing broken fails in broken.py, line 2: ZeroDivisionError: division"),
        ("script:A-v0", "importing script fails in script.py, line 2: SystemExit: 0"),
        ("misspelt:A-v0", "importing misspelt fails in misspelt.py, line 3: SyntaxError: invalid"),
        ("bad_package.envs:A-v0", "importing bad_package fails in __init__.py, line 2: ZeroDiv"),
        ("poor_package.envs:A-v0", "importing poor_package fails in __init__.py, line 1: Module"),
    ],
)
@pytest.mark.parametrize("algorithm", ["ppo", "q-learning"])
def test_mistakes_are_a_line(
    algorithm: str, env_id: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([algorithm, "--env", env_id]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_tuned_settings_are_found_behind_a_module() -> None:
    assert config_path("ppo", "gymnasium:CartPole-v1") == config_path("ppo", "CartPole-v1")
    config = configure("ppo", "gymnasium:CartPole-v1")
    assert config.env_id == "gymnasium:CartPole-v1" and config.total_steps == 100_000


@pytest.mark.parametrize(("given", "limit"), [("200", 200), ("7", 7), ("-1", 1000)])
def test_the_time_limit_is_an_argument_of_tables(folder: Path, given: str, limit: int) -> None:
    words = ["q-learning", "--env", "corridor:Corridor-v0", "--steps", "500", "--no-pictures"]
    words += ["--eval-episodes", "1", "--out", "q", "--initial", "-2000", "--explore", "greedy"]
    assert main([*words, "--env-arg", "length=300", "--env-arg", f"max_episode_steps={given}"]) == 0
    content = json.loads((folder / "q" / "results.json").read_text())
    assert content["max_steps"] == limit
    assert content["results"]["evaluation"][0]["mean"] == -min(limit, 1000)


def test_max_steps_goes_beyond_the_environment_s_own_limit(folder: Path) -> None:
    words = ["q-learning", "--env", "corridor:Corridor-v0", "--steps", "300", "--no-pictures"]
    words += ["--eval-episodes", "1", "--out", "q", "--env-arg", "length=300"]
    assert main([*words, "--max-steps", "90"]) == 0
    content = json.loads((folder / "q" / "results.json").read_text())
    assert content["results"]["evaluation"][0]["mean"] == -90  # not the 30 it was registered with


def test_one_limit_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["q-learning", "--max-steps", "9", "--env-arg", "max_episode_steps=8"]
    assert main(words) == 2
    assert "say the same: give one" in capsys.readouterr().err


@pytest.mark.parametrize("given", [0, -3, 2.5, "long", None, True])
def test_limits_that_are_none(given: object) -> None:
    with pytest.raises(ProblemError, match="CartPole-v1: cannot be made with max_episode_steps="):
        environments.make("CartPole-v1", {"max_episode_steps": given})


def test_a_longer_limit_reaches_the_networks() -> None:
    envs = environments.make_vector("CartPole-v1", 2, {"max_episode_steps": 700})
    assert envs.envs[0].spec.max_episode_steps == 700  # type: ignore[attr-defined]
    envs.close()


MODEL = """    def mdp(self, gamma):
        from classic_rl.mdp import from_function
        return from_function(lambda s, a: [(1.0, 1, -1.0)], 2, 2, 0.9, terminal=[1])

    def step"""


@pytest.mark.parametrize(
    ("what", "instead", "message"),
    [
        # From its second place on, which no first step sees.
        ("return self.place,", "return self.place + 3 * (self.place > 1),", "observation 5 is not"),
        (
            "return self.place,",
            "return self.place - 3 * (self.place > 1),",
            "observation -1 is not",
        ),
        ("return 0, {}", "return -1, {}", "reset()'s observation is -1, which is not in"),
        ("return self.place,", "return float(self.place),", "step()'s observation is "),
        (", -1.0,", ", [-1.0],", "step()'s reward must be a number"),
        ("    def step", "    mdp = None\n\n    def step", "mdp must be a method that returns"),
        (
            "    def step",
            MODEL,
            "mdp(0.5) returns a process with the discount 0.9; it must hand on",
        ),
    ],
)
def test_what_would_be_learned_wrongly_is_refused(
    folder: Path, what: str, instead: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert what in CORRIDOR
    (folder / "corridor.py").write_text(CORRIDOR.replace(what, instead))
    environments._KEPT_TO.clear()  # the same name and arguments as in other tests
    words = ["q-learning", "--env", "corridor:Corridor-v0", "--steps", "2000", "--no-pictures"]
    assert main([*words, "--gamma", "0.5", "--out", "q"]) == 2
    assert message in capsys.readouterr().err
    environments._KEPT_TO.clear()


def test_an_attribute_p_of_one_s_own_is_no_table(folder: Path) -> None:
    own = CORRIDOR.replace("self.length = length", "self.length = length; self.P = 1.5")
    assert own != CORRIDOR
    (folder / "corridor.py").write_text(own)
    words = ["q-learning", "--env", "corridor:Corridor-v0", "--steps", "2000", "--no-pictures"]
    assert main([*words, "--eval-episodes", "1", "--out", "q"]) == 0


@pytest.mark.parametrize("away", [-3, 3])
def test_networks_refuse_it_too(
    folder: Path, away: int, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = f"return self.place + {away} * (self.place > 1),"
    (folder / "corridor.py").write_text(CORRIDOR.replace("return self.place,", wrong))
    assert main(["ppo", "--env", "corridor:Corridor-v0", "--steps", "2000", "--out", "p"]) == 2
    assert f"the observation {2 + away} is not in Discrete(5)" in capsys.readouterr().err
