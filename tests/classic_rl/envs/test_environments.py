"""Other people's environments: yesterday's ids, and interfaces that are not gymnasium's."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from classic_rl import a2c, dqn, ppo, reinforce
from classic_rl.cli import main
from classic_rl.envs import environments
from classic_rl.errors import ProblemError

SETTINGS: dict[str, Any] = {"total_steps": 64}


class Walk(gym.Env):
    """Four places in a row; the last is the end."""

    observation_space: Any = gym.spaces.Box(0, 3, (1,), np.float32)
    action_space: Any = gym.spaces.Discrete(2)
    place = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = 0
        return self.see(), {}

    def see(self) -> Any:
        return np.array([self.place], np.float32)

    def step(self, action: Any) -> Any:
        self.place = max(0, self.place + (1 if action else -1))
        return self.see(), 1.0, self.place == 3, False, {}


class FourValues(Walk):
    def step(self, action: Any) -> Any:
        see, reward, done, _, info = super().step(action)
        return see, reward, done, info


class BareReset(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class NoSeed(Walk):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class NoOptions(Walk):
    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class AnyKeyword(Walk):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(seed=kwargs["seed"])


class OtherShape(Walk):
    def see(self) -> Any:
        return np.array([self.place, 0], np.float32)


class NoSpaces(Walk):
    observation_space = None


class TextReward(Walk):
    def step(self, action: Any) -> Any:
        return self.see(), "much", False, False, {}


class TextEnd(Walk):
    def step(self, action: Any) -> Any:
        return self.see(), 1.0, None, False, {}


class Broken(Walk):
    def step(self, action: Any) -> Any:
        return self.see(), 1.0 / (self.place - self.place), False, False, {}


class NotAnEnv:
    observation_space = Walk.observation_space
    action_space = Walk.action_space
    metadata: dict[str, Any] = {"render_modes": []}

    def reset(self) -> Any:
        return 0

    def step(self, action: Any) -> Any:
        return 0, 0, False, {}


class Discrete(FourValues):
    observation_space = gym.spaces.Discrete(4)

    def see(self) -> Any:
        return self.place


OURS = [Walk, AnyKeyword, FourValues, BareReset, NoSeed, NoOptions, OtherShape]
OURS += [NoSpaces, TextReward, TextEnd, Broken, NotAnEnv, Discrete]


@pytest.fixture(autouse=True)
def registered() -> Any:
    for cls in OURS:
        gym.register(f"Test{cls.__name__}-v0", entry_point=cls, max_episode_steps=20)  # type: ignore[arg-type]
    yield
    for cls in OURS:
        del gym.registry[f"Test{cls.__name__}-v0"]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (FourValues, r"step\(\) returns 4 values \(ndarray, float, bool, dict\); gymnasium wants"),
        (FourValues, r"five of step\(\) \(observation, reward, terminated, truncated, info\)"),
        (BareReset, r"reset\(\) returns one value, ndarray; gymnasium wants two values of reset"),
        (NoSeed, r"reset\(\) must take seed and options; write `def reset\(self, \*, seed=None"),
        (NoOptions, r"reset\(\) must take seed and options"),
        (OtherShape, r"reset\(\)'s observation has the shape \(2,\), and observation_space \(1,\)"),
        (NoSpaces, "observation_space is not a gymnasium space"),
        (TextReward, r"step\(\)'s reward must be a number, it is 'much'"),
        (TextEnd, r"step\(\)'s terminated must be a bool, it is None"),
        (Broken, r"step\(\) fails in test_environments.py, line \d+: ZeroDivisionError: "),
        (NotAnEnv, "must be a gymnasium.Env"),
    ],
)
def test_another_interface_is_told_in_a_line(cls: type, message: str) -> None:
    env_id = f"Test{cls.__name__}-v0"
    with pytest.raises(ProblemError, match=f"^{env_id}: .*{message}") as error:
        ppo.train(ppo.PPOConfig(env_id=env_id, **SETTINGS))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "config"),
    [
        (a2c.train, a2c.A2CConfig),
        (dqn.train, dqn.DQNConfig),
        (reinforce.train, reinforce.ReinforceConfig),
    ],
)
def test_whatever_is_to_learn_in_it(train: Any, config: Any) -> None:
    with pytest.raises(ProblemError, match="TestFourValues-v0: step"):
        train(config(env_id="TestFourValues-v0", **SETTINGS))


def test_tables_too(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    words = ["q-learning", "--env", "TestDiscrete-v0", "--episodes", "9", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "error: TestDiscrete-v0: step() returns 4 values" in capsys.readouterr().err


@pytest.mark.parametrize("cls", [Walk, AnyKeyword])
def test_what_keeps_to_the_interface_is_trained_in(cls: type) -> None:
    result = ppo.train(ppo.PPOConfig(env_id=f"Test{cls.__name__}-v0", **SETTINGS))
    assert result.steps >= 64


@pytest.mark.parametrize(
    ("env_id", "today"),
    [
        ("MountainCar-v9", "MountainCar-v0"),
        ("Acrobot-v0", "Acrobot-v1"),
        ("acrobot-v1", "Acrobot-v1"),
        ("BipedalWalkerHardcore-v2", "BipedalWalkerHardcore-v3"),
        ("LunarLanderContinuous", "LunarLanderContinuous-v3"),
        ("Blackjack-v0", "Blackjack-v1"),  # not the Atari game
        ("gym/CartPole-v3", "CartPole-v1"),  # not the one that needs jax
        ("FrozenLakeNotSlippery-v0", "FrozenLake-v1"),
        ("FrozenLake8x8-v0", "FrozenLake8x8-v1"),
        ("trafficlight-v3", "classic_rl/TrafficLight-v0"),
        ("Hopper-v1", "Hopper-v5"),
    ],
)
def test_the_newest_id_of_the_same_name_is_named(env_id: str, today: str) -> None:
    with pytest.raises(ProblemError, match=f"no such environment; did you mean {today}"):
        environments.find(env_id)


def test_an_id_like_no_other_gets_no_other() -> None:
    with pytest.raises(ProblemError, match="Roulette-v0: no such environment$"):
        environments.find("Roulette-v0")


@pytest.mark.parametrize("env_id", ["Pong-v0", "PongNoFrameskip-v4", "PongDeterministic-v4"])
def test_old_ids_of_atari_games_are_never_trained_on_raw_frames(env_id: str) -> None:
    pytest.importorskip("ale_py")
    for _ in range(2):  # the first look registers ale-py's, which has the old ones too
        with pytest.raises(ProblemError, match="did you mean ALE/Pong-v5"):
            environments.find(env_id)


def test_an_environment_that_moved_away_is_told_with_today_s() -> None:
    with pytest.raises(ProblemError, match="Hopper-v2 needs a package: .* today's is Hopper-v5$"):
        environments.make("Hopper-v2")
